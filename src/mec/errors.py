"""What the user got wrong, said in one line. Everything else that is raised is a bug."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

NEAR, AS_NEAR, MOST = 0.6, 0.1, 3
"""How alike a name must be to be proposed, by how much less than the best, and how many."""


class InputError(ValueError):
    """A bad argument, file or setting; the message names it, what came and what was expected.

    ``agreed``: several processes raise it alike, and the first of them says it.
    """

    agreed = False


def either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """``; did you mean --epochs?``, or nothing where no name is like the word.

    The parts of a dotted name are compared one by one, and its last part may be given alone, or as initials (lr).
    """
    scores = {name: _likeness(word.lstrip("-"), name.lstrip("-")) for name in names}
    best = sorted((n for n in scores if scores[n] >= NEAR), key=lambda n: -scores[n])[:MOST]
    best = [n for n in best if scores[n] > scores[best[0]] - AS_NEAR]
    return f"; did you mean {either(best)}?" if best else ""


def _likeness(word: str, name: str) -> float:
    word, name = word.lower().replace("-", "_"), name.lower().replace("-", "_")
    word_head, _, word_leaf = word.rpartition(".")
    name_head, _, name_leaf = name.rpartition(".")
    parts = name_leaf.split("_")
    if word_leaf == name_leaf or (len(parts) > 1 and word_leaf == "".join(p[:1] for p in parts)):
        leaf = 1.0
    else:
        leaf = 0.8 if word_leaf in parts else SequenceMatcher(None, word_leaf, name_leaf).ratio()
    if word_head and name_head:
        return (SequenceMatcher(None, word_head, name_head).ratio() + leaf) / 2
    whole = SequenceMatcher(None, word, name).ratio()
    return max(whole, leaf - 0.05 if name_head or word_head else leaf)
