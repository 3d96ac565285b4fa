"""InputError, the error of a user, and suggestions for misspelled names. Any other exception is a bug."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

MIN_SIMILARITY = 0.6
"""Similarity, in [0, 1], from which on a name is suggested."""
SIMILARITY_MARGIN = 0.1
"""Names are only suggested if their similarity is this close to the best."""
MAX_SUGGESTIONS = 3
SYNONYMS = {
    "arch": ("backbone", "encoder"),
    "batch": ("batch_size",),
    "bs": ("batch_size",),
    "checkpoint": ("encoder",),
    "draws": ("trials",),
    "gpus": ("devices",),
    "half": ("precision",),
    "learning_rate": ("optimizer.lr", "lr", "head_lr", "backbone_lr"),
    "lr": ("optimizer.lr", "lr", "head_lr", "backbone_lr"),
    "model": ("backbone", "encoder"),
    "num_epochs": ("epochs",),
    "num_workers": ("workers",),
    "optimizer.learning_rate": ("optimizer.lr", "lr", "head_lr", "backbone_lr"),
    "output": ("out",),
    "output_dir": ("out",),
    "seeds": ("trials",),
    "weights": ("encoder",),
}
"""Names of options in other libraries -> their names here. A command has some of these."""


class InputError(ValueError):
    """Invalid argument, file or setting. The message is one line: the name, the expected value and the actual one.

    Attributes:
        on_all_ranks: whether all processes raise this error, so that only rank 0 prints it.
    """

    on_all_ranks = False


def join_with_or(items: list[str]) -> str:
    return " or ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def did_you_mean(name: str, known_names: Iterable[str]) -> str:
    """Return ``; did you mean --epochs?``, or "" if no known name is similar.

    A name from ``SYNONYMS`` comes before similar spellings. The components of a dotted name are compared one by one.
    The last component may stand alone, or as initials (wd for optimizer.weight_decay).
    """
    known_names = list(known_names)
    suggestions = _synonyms(name, known_names) or _similar_names(name, known_names)
    return f"; did you mean {join_with_or(suggestions)}?" if suggestions else ""


def _synonyms(name: str, known_names: list[str]) -> list[str]:
    by_key = {known_name.lstrip("-"): known_name for known_name in known_names}
    return [by_key[key] for key in SYNONYMS.get(_normalize(name), ()) if key in by_key]


def _similar_names(name: str, known_names: list[str]) -> list[str]:
    similarities = {known_name: _similarity(_normalize(name), _normalize(known_name)) for known_name in known_names}
    best = sorted((n for n in similarities if similarities[n] >= MIN_SIMILARITY), key=lambda n: -similarities[n])
    return [n for n in best[:MAX_SUGGESTIONS] if similarities[n] > similarities[best[0]] - SIMILARITY_MARGIN]


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
