"""InputError, the error of a user; checks of values against types; suggestions for misspelled names."""

from __future__ import annotations

import types
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any, Literal, Union, get_args, get_origin

EXIT_PREEMPTED = 75
"""Exit status after SIGTERM of a command that can be continued: EX_TEMPFAIL of sysexits.h, which asks for a retry."""
MIN_SIMILARITY, SIMILARITY_MARGIN, MAX_SUGGESTIONS = 0.6, 0.1, 3
"""Similarity in [0, 1] from which on a name is suggested, how close it must be to the best, and number of names."""
NETWORK, LEARNING_RATE = ("backbone", "encoder"), ("optimizer.lr", "lr", "head_lr", "backbone_lr")
SYNONYMS = {
    "arch": NETWORK, "model": NETWORK, "checkpoint": ("encoder",), "weights": ("encoder",),
    "lr": LEARNING_RATE, "learning_rate": LEARNING_RATE, "optimizer.learning_rate": LEARNING_RATE,
    "batch": ("batch_size",), "bs": ("batch_size",), "num_epochs": ("epochs",), "num_workers": ("workers",),
    "gpus": ("devices",), "half": ("precision",), "output": ("out",), "output_dir": ("out",),
    "seeds": ("trials",), "draws": ("trials",),
}  # fmt: skip
"""Names of options in other libraries -> their names here. A command has some of these."""
TYPE_DESCRIPTIONS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "a value", dict: "{name: value, ...}", type(None): "null",
}  # fmt: skip


class InputError(ValueError):
    """Invalid argument, file or setting, in one line: the name, what is expected, what came. All else is a bug."""

    on_all_ranks = False  # whether all processes raise this error, so that only rank 0 prints it


def check_value(name: str, hint: Any, value: Any) -> Any:
    """Return a value from the command line or a YAML file, converted to a type. Raise InputError if it has another."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        # jsonargparse accepts None for every type
        return parser.parse_object({"value": "null" if value is None else value}).value
    except ArgumentError as error:
        suggestion = did_you_mean(str(value), choices(hint))
        raise InputError(f"{name}: expected {describe_type(hint)}, got {value!r}{suggestion}") from error


def union_members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or any other type as the only member."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def choices(hint: Any) -> list[str]:
    """Return the values that a type allows, as typed on the command line; [] if it is not a finite set."""
    values: list[str] = []
    for member in union_members(hint):
        if get_origin(member) is Literal:
            values += map(str, get_args(member))
        elif member in (bool, type(None)):
            values += ["true", "false"] if member is bool else ["null"]
        else:
            return []
    return values


def describe_type(hint: Any) -> str:
    """Return the description of a type, such as "a whole number or null"."""
    descriptions = choices(hint)
    for member in () if descriptions else union_members(hint):
        members, origin = get_args(member), get_origin(member)
        if origin is Literal:
            descriptions += map(str, members)
        elif members == (int, ...):
            descriptions.append("integers, such as 16,24")
        elif origin is tuple:
            descriptions.append(f"{len(members)} numbers, such as 0.2,1")
        elif members == (int,):
            descriptions.append("integers, such as 1,5")
        else:
            descriptions.append(TYPE_DESCRIPTIONS.get(origin or member, "a path"))
    return join_with_or(descriptions)


def join_with_or(items: list[str]) -> str:
    return " or ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def did_you_mean(name: str, known_names: Iterable[str]) -> str:
    """Return ``; did you mean --epochs?``, or "" if no known name is similar. Synonyms come before similar spellings.
    The last component of a dotted name may stand alone, or as initials (wd for optimizer.weight_decay)."""
    known = {known_name.lstrip("-"): known_name for known_name in known_names}
    suggestions = [known[synonym] for synonym in SYNONYMS.get(_normalize(name), ()) if synonym in known]
    if not suggestions:
        similarities = {full: _similarity(_normalize(name), _normalize(full)) for full in known.values()}
        best = sorted((n for n in similarities if similarities[n] >= MIN_SIMILARITY), key=lambda n: -similarities[n])
        suggestions = [n for n in best[:MAX_SUGGESTIONS] if similarities[n] > similarities[best[0]] - SIMILARITY_MARGIN]
    return f"; did you mean {join_with_or(suggestions)}?" if suggestions else ""


def _normalize(name: str) -> str:
    return name.lstrip("-").lower().replace("-", "_")


def _similarity(name: str, known_name: str) -> float:
    prefix, _, last = name.rpartition(".")
    known_prefix, _, known_last = known_name.rpartition(".")
    known_words = known_last.split("_")
    if last == known_last or (len(known_words) > 1 and last == "".join(word[:1] for word in known_words)):
        last_similarity = 1.0
    else:
        last_similarity = 0.8 if last in known_words else SequenceMatcher(None, last, known_last).ratio()
    if prefix and known_prefix:
        return (SequenceMatcher(None, prefix, known_prefix).ratio() + last_similarity) / 2
    full_similarity = SequenceMatcher(None, name, known_name).ratio()
    return max(full_similarity, last_similarity - 0.05 if known_prefix or prefix else last_similarity)
