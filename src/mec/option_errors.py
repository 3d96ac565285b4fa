"""What is wrong with an option or a setting, in one line: its name, what came, what was expected, what is near."""

from __future__ import annotations

import argparse
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

from mec.errors import did_you_mean, either

WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a value",
    type(None): "null",
    dict: "{name: value, ...}",
}


def kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def choices(hint: Any) -> list[str]:
    """The words that a type allows, as they are typed; [] where it allows others too."""
    words: list[str] = []
    for kind in kinds(hint):
        if get_origin(kind) is Literal:
            words += [str(a) for a in get_args(kind)]
        elif kind is bool:
            words += ["true", "false"]
        elif kind is type(None):
            words.append("null")
        else:
            return []
    return words


def expected(hint: Any) -> str:
    """A type in plain words."""
    said = []
    for kind in kinds(hint):
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Literal:
            said += [str(a) for a in inner]
        elif origin is tuple:
            said.append(f"{len(inner)} numbers in brackets, such as [0.2,1]")
        elif origin is not None and origin is not dict:
            said.append(f"a list, such as [{'1,5' if int in inner else 'a,b'}]")
        elif kind is bool:
            said += ["true", "false"]
        else:
            said.append(WORDS.get(origin or kind, "a path"))
    return either(said)


def line(message: str, parser: argparse.ArgumentParser) -> str:
    """What argparse or jsonargparse found wrong with the arguments of ``parser``, in our words."""
    message = " ".join(message.split())
    # older versions of jsonargparse name the first of those that are missing
    message = re.sub(
        r'^Validation failed: Key "([\w.]+)" is required.*', r"the following arguments are required: \1", message
    )
    if found := re.match(r'(?:the following arguments are required: |expected ")([\w.]+)', message):
        inner, _ = _innermost(parser, found[1])
        keys = message if inner is parser else message.replace(found[1].rpartition(".")[0] + ".", "")
        return f"{inner.prog}: {_sentence(keys, inner)}"
    return f"{parser.prog}: {_sentence(message, parser)}"


def _sentence(message: str, parser: argparse.ArgumentParser) -> str:
    if found := re.match(r"[Uu]nrecognized arguments: (.*)", message):
        words = found[1].split(" ")
        option = next((w.partition("=")[0] for w in words if w.startswith("-")), None)
        if option is None:
            return f"unexpected argument {words[0]!r}"
        return f"unrecognized option {option}{did_you_mean(option, option_names(parser))}"
    if found := re.match(r"the following arguments are required: (.*)", message):
        missing = [shown(parser, key) for key in found[1].split(", ")]
        return f"expected {' and '.join(missing)}"
    if re.match(r'expected "\S+" to be one of', message):
        action = _subcommands(parser)
        assert action is not None
        return f"expected {action.metavar}, one of {', '.join(action.choices)}"
    if found := re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
        names = [name.strip("' ") for name in found[3].split(",")]
        proposed = did_you_mean(found[2], names) or f"; expected {either(names)}"
        return f"unknown {found[1].lower()} {found[2]!r}{proposed}"
    if found := re.match(r"argument (\S+): expected (one|at least one) argument", message):
        return f"{found[1]}: expected {_expected(parser, found[1].lstrip('-'))}, got nothing"
    if found := re.match(r"argument (\S+?): ignored explicit argument '(.*)'", message):
        return f"{found[1]}: expected no value, got {found[2]!r}"
    if wrong := wrong_value(message, parser):
        return f"{shown(parser, wrong[0], metavar=False)}: {wrong[1]}"
    return message


def wrong_value(message: str, parser: argparse.ArgumentParser) -> tuple[str, str] | None:
    """The setting whose value jsonargparse refuses, and what was expected; None where it complains of other things."""
    message = " ".join(message.split())
    found = re.match(r'(?:Parser key "([^"]+)"|([\w.]+)|argument --([\w.]+)):', message)
    key = next(filter(None, found.groups()), "") if found else ""
    action = _action(parser, key)
    if action is None:
        return None
    inner = [name for name in option_names(parser) if name.startswith(f"--{key}.")]
    if inner:
        return key, f"expected one of its settings: {', '.join(inner)}"
    hint = hint_of(action)
    value = re.search(r"(?:Got value: |Given value: |invalid \w+ value: |load config )(.*)$", message)
    came = value[1].partition(" - ")[0].strip("'\"") if value else None
    words = choices(hint)
    got = "" if came is None else f", got {came!r}{did_you_mean(came, words)}"
    return key, f"expected {expected(hint)}{got}"


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Those that its help shows."""
    return [
        name
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for name in action.option_strings
        if name.startswith("--") and not name.endswith("+")
    ]


def hint_of(action: argparse.Action) -> Any:
    """The type of its value; None for flags."""
    return getattr(action, "_typehint", None) or action.type or (None if action.nargs == 0 else str)


def shown(parser: argparse.ArgumentParser, key: str, metavar: bool = True) -> str:
    """A setting as it is typed: DATA, --out OUT."""
    parser, key = _innermost(parser, key)
    action = _action(parser, key)
    if action is not None and not action.option_strings:
        return str(action.metavar or key.upper())
    return f"--{key} {key.rpartition('.')[2].upper()}" if metavar else f"--{key}"


def _innermost(parser: argparse.ArgumentParser, key: str) -> tuple[argparse.ArgumentParser, str]:
    """evaluate.knn.encoder: the parser of knn, and encoder."""
    head, _, rest = key.partition(".")
    while rest and head in _subparsers(parser):
        parser, key = _subparsers(parser)[head], rest
        head, _, rest = key.partition(".")
    return parser, key


def _action(parser: argparse.ArgumentParser, key: str) -> argparse.Action | None:
    parser, key = _innermost(parser, key)
    return next((a for a in parser._actions if a.dest == key), None)


def _expected(parser: argparse.ArgumentParser, key: str) -> str:
    action = _action(parser, key)
    return "a value" if action is None else expected(hint_of(action))


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    action = _subcommands(parser)
    return {} if action is None else dict(action.choices)


def _subcommands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[Any] | None:
    return next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
