"""The sweep of the distortion over a training, and the scale of the loss at each distortion."""

from __future__ import annotations

import math

from torch import Tensor

from mec.coding.checks import check_positive, describe
from mec.coding.gram import Scale

FIRST_DISTORTION, LAST_DISTORTION = 1 / 2048, 1 / 8
"""Ends of the default sweep (docs/objective-distortion.md)."""


def sweep_distortion(progress: float, first: float = FIRST_DISTORTION, last: float = LAST_DISTORTION) -> float:
    """Return the distortion after a fraction ``progress`` of the training, in [0, 1], for ``MECLoss()(codes,
    distortion=...)``: from ``first`` to ``last`` in equal factors.

    Examples:
        >>> [round(sweep_distortion(progress, 0.01, 1.0), 4) for progress in (0, 0.5, 1)]
        [0.01, 0.1, 1.0]
    """
    check_positive("first", first)
    check_positive("last", last)
    if not 0 <= progress <= 1:
        raise ValueError(f"progress: expected a fraction in [0, 1], got {describe(progress)}")
    return last if progress == 1 else first * (last / first) ** progress  # exact at the ends, and where they are equal


def ideal_rate(distortion: float, total: Scale, dim: int) -> Scale:
    """Return minus the loss of codes whose views agree and fill all directions evenly."""
    if isinstance(total, Tensor):
        x = total.clamp(max=dim) * distortion
        return x * (1 / x).log1p()
    y = min(total, dim) * distortion
    return y * math.log1p(1 / y)
