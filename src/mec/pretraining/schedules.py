"""Per-step schedules of learning rate, distortion and teacher momentum, as in the paper's code."""

from __future__ import annotations

import math


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Return the fraction of the base lr at ``step``: linear from 0 to 1 over ``warmup`` steps, then half a cosine to 0
    at ``steps``."""
    if step < warmup:
        return step / max(1, warmup - 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def distortion_at(step: int, distortion: float, factor: float, warmup: int) -> float:
    """Return the distortion at ``step``: linear from ``factor`` times ``distortion`` to it over ``warmup`` steps."""
    if step >= warmup:
        return distortion
    return distortion * (factor + (1 - factor) * step / max(1, warmup - 1))


def teacher_momentum(step: int, steps: int, base: float) -> float:
    """Return the momentum of the teacher at ``step``: half a cosine from ``base`` to 1 over ``steps``."""
    return 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * step / steps))
