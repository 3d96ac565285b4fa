"""Shell completion: a static script generated from the parser, so that a key press does not start Python."""

from __future__ import annotations

import argparse
import os
from typing import Any

import shtab

from mec.option_errors import choices, type_hint, union_members

SCRIPT_PATHS = {
    "bash": "~/.local/share/bash-completion/completions/mec",
    "zsh": '"${fpath[1]}/_mec"',
    "fish": "~/.config/fish/completions/mec.fish",
}
"""Path from which each shell loads the script."""


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a shell of SCRIPT_PATHS. ``parser`` has the options of all commands and is modified."""
    _prepare(parser)
    script: str = shtab.complete(parser, shell)
    return script


def _prepare(parser: argparse.ArgumentParser) -> None:
    """Copy choices and files from the types, where jsonargparse has them, to the actions, where shtab reads them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _prepare(command)
            continue
        action.option_strings = [name for name in action.option_strings if not name.endswith("+")]
        if action.choices is None and action.nargs != 0:
            action.choices = choices(type_hint(action)) or None
            if action.choices is None and any(_may_be_path(kind) for kind in union_members(type_hint(action))):
                action.complete = shtab.FILE  # type: ignore[attr-defined]


def _may_be_path(kind: Any) -> bool:
    return kind is str or (isinstance(kind, type) and issubclass(kind, os.PathLike)) or "PathLike" in str(kind)
