"""How learning rate, distortion and teacher momentum go, step by step, as in the paper's code."""

from __future__ import annotations

import math


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Share of the base rate at ``step``: 0 to 1 linearly over ``warmup`` steps, a half cosine to 0 at ``steps``."""
    if step < warmup:
        return step / max(1, warmup - 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def distortion_at(step: int, distortion: float, factor: float, warmup: int) -> float:
    """``factor`` times the distortion at step 0, falling linearly to it over ``warmup`` steps."""
    if step >= warmup:
        return distortion
    return distortion * (factor + (1 - factor) * step / max(1, warmup - 1))


def teacher_momentum(step: int, steps: int, base: float) -> float:
    """From ``base`` to 1 along a half cosine over ``steps``."""
    return 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * step / steps))
