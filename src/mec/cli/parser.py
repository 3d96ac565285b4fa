"""Argument parser: help in groups, errors in one line."""

from __future__ import annotations

import argparse
import copy
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from mec.option_errors import choices, one_line_error, type_hint, union_members

DATA_HELP = (
    "a folder of images (labels: its sub-folders), a .txt list or a .csv with path and label, WebDataset shards "
    "(a-{0000..0099}.tar, a folder of them, a URL), .parquet or hf:owner/name, a video, an .npz file, or digits, "
    "cifar10, cifar100, fashion-mnist, stl10"
)
ENCODER_HELP = (
    "a run folder; a file of weights: MEC's, SimSiam's, MoCo's, Barlow Twins', VICReg's, SwAV's, DINO's, solo-learn's, "
    "lightly's, torchvision's, timm's, detectron2's (FILE:teacher or FILE:student selects the branch); a timm folder "
    "or hf:owner/name; or a timm name (untrained)"
)
MACHINE = frozenset({"accelerator", "devices", "nodes", "precision", "strategy", "workers"})
"""Settings that decide where a result is computed and not what it is: a help group of their own."""


INTEGERS = re.compile(r"-?\d+(,-?\d+)*")
NUMBER_PAIR = re.compile(r"-?[\d.]+,-?[\d.]+")


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keep the paragraphs of a description; show values and defaults as typed on the command line."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = re.sub(r"(?<!\.)\.$", "", action.help or "")
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            return text[:1].lower() + text[1:]
        if not action.option_strings:
            return text
        if action.required:
            return f"{text} (required)"
        describes_default = action.default is None and "absent" in text.lower()
        return text if describes_default or action.nargs == 0 else f"{text} (default: {format_value(action.default)})"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        displayed = copy.copy(action)
        # hide --k+ of jsonargparse, which appends to a list: one way to write a list is enough
        displayed.option_strings = [name for name in action.option_strings if not name.endswith("+")]
        if not action.option_strings and action.nargs != argparse.PARSER:
            displayed.metavar = action.metavar or action.dest.upper()
        elif action.metavar is None or action.metavar == "[ITEM,...]":
            displayed.metavar = metavar(action)
        text: str = super()._format_action_invocation(displayed)
        return text

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):
            return "".join(self._format_action(a) for a in self._iter_indented_subactions(action))
        text: str = super()._format_action(action)
        return text


class Parser(ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def __init__(self, **options: Any) -> None:
        # an abbreviation such as --epoch would change its meaning when an option is added
        super().__init__(formatter_class=Formatter, allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Namespace:  # type: ignore[override]
        return super().parse_args(_bracket_lists(self, sys.argv[1:] if args is None else args), *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(one_line_error(str(message), self), file=sys.stderr)
        sys.exit(2)


def add_settings(
    parser: Parser, title: str, function: Callable[..., Any], skip: Collection[str] = ()
) -> argparse._ArgumentGroup:
    """Add the parameters of a function as options: settings in a group ``title``, those of MACHINE in another."""
    names = set(inspect.signature(function).parameters)
    group, machine = parser.add_argument_group(title), parser.add_argument_group("machine")
    group.add_function_arguments(function, as_group=False, skip={*names & MACHINE, *skip})
    machine.add_function_arguments(function, as_group=False, skip={*names - MACHINE, *skip})
    return group


def _bracket_lists(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Write ``--shots 1,5`` as ``--shots [1,5]``, which jsonargparse needs, for every option that takes numbers."""
    patterns = _number_list_patterns(parser)
    bracketed: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        previous = bracketed[-1] if bracketed else ""
        if name in patterns and patterns[name].fullmatch(value):
            bracketed.append(f"{name}{equals}[{value}]")
        elif previous in patterns and patterns[previous].fullmatch(argument):
            bracketed.append(f"[{argument}]")
        else:
            bracketed.append(argument)
    return bracketed


def _number_list_patterns(parser: argparse.ArgumentParser) -> dict[str, re.Pattern[str]]:
    patterns: dict[str, re.Pattern[str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                patterns |= _number_list_patterns(subparser)
        elif "Sequence[int]" in (hint := str(type_hint(action))):
            patterns |= dict.fromkeys(action.option_strings, INTEGERS)
        elif "tuple[float, float]" in hint:
            patterns |= dict.fromkeys(action.option_strings, NUMBER_PAIR)
    return patterns


def metavar(action: argparse.Action) -> str:
    """Return the placeholder of an option's value: N for integers, X for other numbers, choices in braces."""
    hint = type_hint(action)
    if values := choices(hint):
        return f"{{{','.join(values)}}}"
    names = []
    for kind in union_members(hint):
        text = str(kind)
        if kind in (int, float):
            names.append({int: "N", float: "X"}[kind])
        elif "Literal" in text:
            names += choices(kind)
        elif text.startswith("tuple"):
            names.append("X,X")
        elif "Sequence[int]" in text:
            names.append("N,...")
        elif text.startswith("dict"):
            names.append("{NAME: VALUE,...}")
        elif kind is not type(None):
            return action.dest.rpartition(".")[2].upper()
    return "|".join(names)


def format_value(value: object) -> str:
    """Return a value as it is written on the command line and in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(format_value(v) for v in value)}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def description_of(function: Callable[..., Any]) -> str:
    """Return the docstring before its arguments, wrapped to the width of the terminal."""
    text = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0].replace("``", "")
    paragraphs = text.split("\n\n")
    return "\n\n".join(textwrap.fill(p, min(120, shutil.get_terminal_size().columns - 2)) for p in paragraphs)
