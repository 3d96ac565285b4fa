"""One-line errors for invalid options and settings: the name, the expected value, the actual value, a suggestion."""

from __future__ import annotations

import argparse
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

from mec.errors import did_you_mean, join_with_or

TYPE_DESCRIPTIONS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a value",
    type(None): "null",
    dict: "{name: value, ...}",
}


def union_members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or any other type as the only member."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def choices(hint: Any) -> list[str]:
    """Return the values that a type allows, as typed on the command line; [] if it is not a finite set."""
    values: list[str] = []
    for member in union_members(hint):
        if get_origin(member) is Literal:
            values += [str(value) for value in get_args(member)]
        elif member is bool:
            values += ["true", "false"]
        elif member is type(None):
            values.append("null")
        else:
            return []
    return values


def describe_type(hint: Any) -> str:
    """Return the description of a type, such as "a whole number or null"."""
    descriptions = []
    for member in union_members(hint):
        origin, members = get_origin(member), get_args(member)
        if origin is Literal:
            descriptions += [str(value) for value in members]
        elif origin is tuple:
            descriptions.append(f"{len(members)} numbers, such as 0.2,1")
        elif origin is not None and origin is not dict:
            descriptions.append("integers, such as 1,5" if int in members else "a list, such as [a,b]")
        elif member is bool:
            descriptions += ["true", "false"]
        else:
            descriptions.append(TYPE_DESCRIPTIONS.get(origin or member, "a path"))
    return join_with_or(descriptions)


def one_line_error(message: str, parser: argparse.ArgumentParser) -> str:
    """Rewrite an error message of argparse or jsonargparse about the arguments of ``parser`` as one line."""
    message = " ".join(message.split())
    # older versions of jsonargparse name only the first missing argument
    message = re.sub(
        r'^Validation failed: Key "([\w.]+)" is required.*', r"the following arguments are required: \1", message
    )
    if match := re.match(r'(?:the following arguments are required: |expected ")([\w.]+)', message):
        subparser, _ = _subparser_of(parser, match[1])
        if subparser is not parser:
            message = message.replace(match[1].rpartition(".")[0] + ".", "")
        return f"{subparser.prog}: {_rewrite(message, subparser)}"
    return f"{parser.prog}: {_rewrite(message, parser)}"


def _rewrite(message: str, parser: argparse.ArgumentParser) -> str:
    if match := re.match(r"[Uu]nrecognized arguments: (.*)", message):
        return _unrecognized(match[1].split(" "), parser)
    if match := re.match(r"the following arguments are required: (.*)", message):
        missing = [format_option(parser, key) for key in match[1].split(", ")]
        return f"expected {' and '.join(missing)}"
    if re.match(r'expected "\S+" to be one of', message):
        subcommands = _subcommands(parser)
        assert subcommands is not None
        return f"expected {subcommands.metavar}, one of {', '.join(subcommands.choices)}"
    if match := re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
        names = [name.strip("' ") for name in match[3].split(",")]
        suggestion = did_you_mean(match[2], names) or f"; expected {join_with_or(names)}"
        return f"unknown {match[1].lower()} {match[2]!r}{suggestion}"
    if match := re.match(r"argument (\S+): expected (one|at least one) argument", message):
        option = _action(parser, match[1].lstrip("-"))
        expected = "a value" if option is None else describe_type(type_hint(option))
        return f"{match[1]}: expected {expected}, got nothing"
    if match := re.match(r"argument (\S+?): ignored explicit argument '(.*)'", message):
        return f"{match[1]}: expected no value, got {match[2]!r}"
    if invalid := invalid_value(message, parser):
        key, description = invalid
        return f"{format_option(parser, key, metavar=False)}: {description}"
    return message


def _unrecognized(arguments: list[str], parser: argparse.ArgumentParser) -> str:
    option = next((a.partition("=")[0] for a in arguments if a.startswith("-")), None)
    if option is None:
        return f"unexpected argument {arguments[0]!r}"
    for action in parser._actions:
        if not action.option_strings and action.dest == option.lstrip("-"):  # --data
            name = format_option(parser, action.dest)
            return f"unrecognized option {option}; {name} is given without an option name"
    return f"unrecognized option {option}{did_you_mean(option, option_names(parser))}"


def invalid_value(message: str, parser: argparse.ArgumentParser) -> tuple[str, str] | None:
    """Return the setting whose value jsonargparse refuses and a description: "expected a number, got 'ten'".

    None if the message is about something else.
    """
    message = " ".join(message.split())
    match = re.match(r'(?:Parser key "([^"]+)"|([\w.]+)|argument --([\w.]+)):', message)
    key = next(filter(None, match.groups()), "") if match else ""
    action = _action(parser, key)
    if action is None:
        return None
    settings = [name for name in option_names(parser) if name.startswith(f"--{key}.")]
    if settings:
        return key, f"expected one of its settings: {', '.join(settings)}"
    hint = type_hint(action)
    match = re.search(r"(?:Got value: |Given value: |invalid \w+ value: |load config )(.*)$", message)
    value = match[1].partition(" - ")[0].strip("'\"") if match else None
    got = "" if value is None else f", got {value!r}{did_you_mean(value, choices(hint))}"
    return key, f"expected {describe_type(hint)}{got}"


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of the options that the help of ``parser`` lists."""
    return [
        name
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for name in action.option_strings
        if name.startswith("--") and not name.endswith("+")
    ]


def type_hint(action: argparse.Action) -> Any:
    """Return the type of the value of an option, None for flags."""
    return getattr(action, "_typehint", None) or action.type or (None if action.nargs == 0 else str)


def format_option(parser: argparse.ArgumentParser, key: str, metavar: bool = True) -> str:
    """Return an argument as typed on the command line, such as DATA or --out OUT."""
    parser, key = _subparser_of(parser, key)
    action = _action(parser, key)
    if action is not None and not action.option_strings:
        return str(action.metavar or key.upper())
    return f"--{key} {key.rpartition('.')[2].upper()}" if metavar else f"--{key}"


def _subparser_of(parser: argparse.ArgumentParser, key: str) -> tuple[argparse.ArgumentParser, str]:
    """Resolve the sub-commands in a key: evaluate.knn.encoder -> (the parser of knn, "encoder")."""
    command, _, rest = key.partition(".")
    while rest and command in _subparsers(parser):
        parser, key = _subparsers(parser)[command], rest
        command, _, rest = key.partition(".")
    return parser, key


def _action(parser: argparse.ArgumentParser, key: str) -> argparse.Action | None:
    parser, key = _subparser_of(parser, key)
    return next((a for a in parser._actions if a.dest == key), None)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    action = _subcommands(parser)
    return {} if action is None else dict(action.choices)


def _subcommands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[Any] | None:
    return next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
