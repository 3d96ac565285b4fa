"""What the user got wrong, said in one line. Everything else that is raised is a bug."""

from __future__ import annotations


class InputError(ValueError):
    """A bad argument, file or setting; the message names it, what came and what was expected.

    ``agreed``: several processes raise it alike, and the first of them says it.
    """

    agreed = False
