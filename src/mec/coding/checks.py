"""Checks of the arguments of the objective. Every failure is a ``ValueError`` of one line that names the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FORMS = ("reduction", "pooled", "cross", None)


def describe(value: object) -> str:
    """Describe a value that was not expected, in a few words: never the content of a tensor, an array or a list."""
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:40]}..."
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"a {kind} of shape {tuple(value.shape)}, {value.dtype}, on {value.device}"
    if isinstance(value, (tuple, list)):
        return f"a {kind} of length {len(value)}"
    return f"a value of type {kind}"


def check_embeddings(name: str, z: Tensor, min_rows: int = 2) -> None:
    """Raise unless ``z`` is a floating-point matrix with at least ``min_rows`` rows and one column."""
    if not isinstance(z, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor of shape (m, d), got {describe(z)}")
    if z.ndim != 2:
        raise ValueError(f"{name}: expected two dimensions (m, d), got shape {tuple(z.shape)}")
    if not z.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {z.dtype}")
    if z.shape[0] < min_rows or z.shape[1] < 1:
        rows = "1 row" if min_rows == 1 else f"{min_rows} rows"
        raise ValueError(f"{name}: expected at least {rows} and 1 column, got shape {tuple(z.shape)}")


def check_pair(p_name: str, p: Tensor, z_name: str, z: Tensor, min_rows: int = 2) -> None:
    """Raise unless both matrices are valid and agree in shape and device, as two views of the same images do."""
    check_embeddings(p_name, p, min_rows)
    check_embeddings(z_name, z, min_rows)
    if p.shape != z.shape:
        raise ValueError(f"{z_name}: expected the shape of {p_name}, {tuple(p.shape)}, got {tuple(z.shape)}")
    if p.device != z.device:
        raise ValueError(f"{z_name}: expected the device of {p_name}, {p.device}, got {z.device}")


def check_view_count(name: str, views: Sequence[Tensor], count: int | None = None) -> list[Tensor]:
    """Return the views as a list. Raise unless they are a sequence of ``count`` tensors, or of at least two."""
    number = len(views) if isinstance(views, Sequence) and not isinstance(views, str) else 0
    if number < 2 if count is None else number != count:
        expected = "at least two tensors" if count is None else "one tensor" if count == 1 else f"{count} tensors"
        raise ValueError(f"{name}: expected {expected}, one for each view, got {describe(views)}")
    return list(views)


def check_positive(name: str, value: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}: expected a positive finite number, got {describe(value)}")


def check_distortion(distortion: float) -> None:
    check_positive("distortion", distortion)


def check_optional_count(name: str, value: int | None, meaning_of_none: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name}: expected an integer >= 1, or None for {meaning_of_none}, got {describe(value)}")


def check_order(order: int | None) -> None:
    check_optional_count("order", order, "the exact log det")


def check_choice(name: str, value: str | None, choices: Sequence[str | None]) -> None:
    if not (value is None or isinstance(value, str)) or value not in choices:
        *first, last = map(repr, choices)
        raise ValueError(f"{name}: expected {', '.join(first)} or {last}, got {describe(value)}")


def check_finite(value: Tensor, **embeddings: Tensor) -> None:
    """Raise when ``value`` is not finite, naming the embeddings with non-finite entries. All processes hold the same
    value, so they raise together and none waits for the others. A compiled graph cannot raise and returns the NaN."""
    if torch.compiler.is_compiling() or bool(torch.isfinite(value)):
        return
    for name, z in embeddings.items():
        bad_rows = int((~torch.isfinite(z)).any(dim=1).sum())
        if bad_rows:
            raise ValueError(f"{name}: expected finite embeddings, got NaN or infinity in {bad_rows} of {len(z)} rows")
    raise ValueError(
        f"{', '.join(embeddings)}: the result is {float(value)} although the embeddings of this process are finite: "
        "another process holds NaN, the series diverged (raise distortion, or use order=None), or distortion is too "
        "small for the dtype"
    )
