"""Parser of one command: options from typed functions, help in groups, errors in one line that names the option."""

from __future__ import annotations

import argparse
import copy
import inspect
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NoReturn, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from mec.errors import InputError, check_value, choices, describe_type, did_you_mean, union_members

Run = Callable[..., object]
"""Function of a command: takes the values of the options. A string or path that it returns is printed."""
DATA_HELP = (
    "a folder of images (labels: its sub-folders), a .txt list or a .csv with path and label, WebDataset shards "
    "(a-{0000..0099}.tar, a folder of them, a URL), .parquet or hf:owner/name, a video, an .npz file, or digits, "
    "cifar10, cifar100, fashion-mnist, stl10"
)
ENCODER_HELP = (
    "a run folder; a file of weights: MEC's, SimSiam's, MoCo's, Barlow Twins', VICReg's, SwAV's, DINO's, solo-learn's, "
    "lightly's, torchvision's, timm's, detectron2's (FILE:teacher or FILE:student selects the branch); a timm folder "
    "or hf:owner/name; or a timm name: resnet18.a1_in1k from the hub, resnet18 untrained"
)
MACHINE = frozenset({"accelerator", "devices", "nodes", "precision", "strategy", "workers"})
"""Settings that decide where a result is computed and not what it is: a help group of their own."""
LISTS: dict[Any, re.Pattern[str]] = {Sequence: re.compile(r"-?\d+(,-?\d+)*"), tuple: re.compile(r"-?[\d.]+,-?[\d.]+")}
"""Types whose values may be written without the brackets that jsonargparse needs: --shots 1,5."""


def split_values(text: str) -> list[str]:
    """Return the values of an option, separated by commas outside of brackets and braces."""
    values, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


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
            displayed.metavar = _label(action)
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
    """A parser that checks names and values before jsonargparse does, whose errors are long."""

    def __init__(self, **options: Any) -> None:
        # an abbreviation such as --epoch would change its meaning when an option is added
        super().__init__(formatter_class=Formatter, allow_abbrev=False, **options)

        self.varied: Collection[str] = ()
        """Options that take several values, separated by commas; see ``parse_args``."""

    def describe(self, usage: str, description: str, example: str) -> None:
        """Set the text of the help."""
        self.usage, self.description = f"{self.prog} {usage}", description
        self.epilog = f"example: {self.prog} {example}"

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """Parse a command line. With several values of a varied option, also parse all combinations of values: ``grid``
        of the result holds for each the values by option, as typed, and all parsed settings."""
        arguments = list(sys.argv[1:] if args is None else args)
        if not self.varied or {"-h", "--help"} & {*arguments}:
            return self._parse(arguments, *more, **options)
        tokens, typed = self.split(arguments)
        values = {name: split_values(value) for name, value in typed.items() if value and self._is_varied(name, value)}
        varied = {name: given for name, given in values.items() if len(given) > 1}
        fixed = [*tokens, *(f"{n}={v}" if v is not None else n for n, v in typed.items() if n not in varied)]
        grid = []
        for combination in itertools.product(*varied.values()):
            chosen = dict(zip(varied, combination, strict=True))
            parsed = self._parse([*fixed, *(f"{n}={v}" for n, v in chosen.items())], *more, **options)
            grid.append(({name.lstrip("-"): value for name, value in chosen.items()}, parsed.as_dict()))
        parsed["grid"] = grid
        return parsed

    def _is_varied(self, name: str, value: str) -> bool:
        action = self._option_string_actions.get(name)
        # 0.2,1.0 is one value of a pair; several are [0.2,1.0],[0.5,1.0]
        is_list = action is not None and _bracket(type_hint(action), value) != value
        return name.lstrip("-").partition(".")[0] in self.varied and not is_list

    def _parse(self, arguments: list[str], *more: Any, **options: Any) -> Namespace:
        try:
            checked = arguments if {"-h", "--help"} & {*arguments} else list(self._checked(arguments))
        except InputError as error:
            self.error(str(error))
        return super().parse_args(checked, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"{self.prog}: {' '.join(str(message).split())}", file=sys.stderr)
        sys.exit(2)

    def split(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
        """Return the positional arguments, and the options with their values: None without one."""
        positional, options, tokens = [], {}, iter(arguments)
        for token in tokens:
            name, equals, value = token.partition("=")
            if not token.startswith("-"):
                positional.append(token)
            elif equals or (name in self._option_string_actions and self._option_string_actions[name].nargs == 0):
                options[name] = value if equals else None
            else:
                options[name] = next(tokens, None)
        return positional, options

    def _checked(self, arguments: Sequence[str]) -> Iterator[str]:
        """Yield the arguments in the form that jsonargparse reads; raise InputError for the first wrong one."""
        tokens, options = self.split(arguments)
        for name, value in options.items():
            action = self._option_string_actions.get(name)
            if action is None or action.help == argparse.SUPPRESS:
                if not self._is_dictionary(name.rpartition(".")[0]):
                    raise InputError(f"unrecognized option {name}{self._suggestion(name)}")
                yield f"{name}={value}"
            elif action.nargs == 0:
                if value is not None:
                    raise InputError(f"{name}: expected no value, got {value!r}")
                yield name
            elif value is None or value.startswith("--"):
                raise InputError(f"{name}: expected {describe_type(type_hint(action))}, got nothing")
            else:
                bracketed = _bracket(type_hint(action), value)
                if type_hint(action) is not str:
                    check_value(name, type_hint(action), bracketed)
                yield f"{name}={bracketed}"
        missing = []
        positional = [action for action in self._actions if not action.option_strings]
        for action in self._actions:
            own = tokens[positional.index(action) :] if action in positional else []
            given = options.keys() & {*action.option_strings} if action.option_strings else own
            if action.required and not given:
                missing.append(_label(action))
            elif own and type_hint(action) is not str:
                check_value(_label(action), type_hint(action), own[0])
        if missing:
            raise InputError(f"expected {' and '.join(missing)}")
        if len(tokens) > len(positional) and all(action.nargs != "+" for action in positional):
            raise InputError(f"unexpected argument {tokens[len(positional)]!r}")
        yield from tokens

    def _is_dictionary(self, name: str) -> bool:
        """Return whether ``name``.ANY sets an entry of a dictionary."""
        action = self._option_string_actions.get(name)
        return action is not None and get_origin(type_hint(action)) is dict

    def _suggestion(self, name: str) -> str:
        for action in self._actions:
            if not action.option_strings and action.dest == name.lstrip("-"):  # --data
                return f"; {_label(action)} is given without an option name"
        return did_you_mean(name, self.option_names())

    def option_names(self) -> list[str]:
        """Return the names of the options that the help lists."""
        actions = [action for action in self._actions if action.help != argparse.SUPPRESS]
        return [n for a in actions for n in a.option_strings if n.startswith("--") and not n.endswith("+")]


def parameter_names(function: Callable[..., Any]) -> set[str]:
    """Return the names of the parameters of a function, and of the dataclass that it passes **settings to."""
    return set(ArgumentParser().add_function_arguments(function, as_group=False))


def add_settings(
    parser: Parser, title: str, function: Callable[..., Any], skip: Collection[str] = ()
) -> argparse._ArgumentGroup:
    """Add the parameters of a function as options: settings in a group ``title``, those of MACHINE in another."""
    names = parameter_names(function)
    group, machine = parser.add_argument_group(title), parser.add_argument_group("machine")
    group.add_function_arguments(function, as_group=False, skip={*names & MACHINE, *skip})
    machine.add_function_arguments(function, as_group=False, skip={*names - MACHINE, *skip})
    return group


def type_hint(action: argparse.Action) -> Any:
    """Return the type of the value of an option, None for flags."""
    return getattr(action, "_typehint", None) or action.type or (None if action.nargs == 0 else str)


def _label(action: argparse.Action) -> str:
    """Return an argument as typed on the command line: DATA or --out OUT."""
    return " ".join([*action.option_strings[:1], str(action.metavar or action.dest.upper())])


def _bracket(hint: Any, value: str) -> str:
    patterns = [LISTS[origin] for origin in map(get_origin, union_members(hint)) if origin in LISTS]
    return f"[{value}]" if any(pattern.fullmatch(value) for pattern in patterns) else value


def metavar(action: argparse.Action) -> str:
    """Return the placeholder of an option's value: N for integers, X for other numbers, choices in braces."""
    hint = type_hint(action)
    if values := choices(hint):
        return f"{{{','.join(values)}}}"
    placeholders: dict[Any, str] = {int: "N", float: "X", tuple: "X,X", Sequence: "N,...", dict: "{NAME: VALUE,...}"}
    names = []
    for kind in union_members(hint):
        if (get_origin(kind) or kind) in placeholders:
            names.append(placeholders[get_origin(kind) or kind])
        elif literals := choices(kind):
            names += [value for value in literals if value != "null"]
        else:
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
