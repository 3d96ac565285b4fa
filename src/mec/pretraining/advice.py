"""Advice on settings, as clauses of a warning: each names the setting of the run, its value and a better one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Setting = Callable[[str], Any]
"""Returns the value of a setting of the recipe ("optimizer.lr") of a run; None if the run has no such setting, such as
those of mec with another objective; anything if its recipe.yaml is damaged."""

PRETRAINED = "hf:timm/resnet18.a1_in1k"
"""Weights that advice names to start from."""
FEW_IMAGES = 5_000
"""Images below which trained weights are usually a better start than random ones."""
DISTORTION = 1 / 32
"""The distortion of the paper, toward which advice points from twice or half of it on."""
USUAL_BATCH_SIZE = 256


def _number(setting: Setting, name: str) -> float | None:
    value = setting(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else None


def sweeps_distortion(setting: Setting) -> bool:
    """Return whether the distortion changes over the training: the rank of the codes then follows it."""
    return isinstance(setting("objective.distortion"), (list, tuple))


def has_series(setting: Setting) -> bool:
    """Return whether the loss is a Taylor series, of either form: only a series has a radius of convergence."""
    return setting("objective.order") is not None


def stable_form(setting: Setting) -> str:
    """Advise the stable form: reduction and exact. One of the two is not set yet."""
    changes = ["objective.form to reduction"] * (setting("objective.form") == "cross")
    changes += ["objective.order to null"] * has_series(setting)
    return f"set {' and '.join(changes)}"


def spread_codes(setting: Setting) -> list[str]:
    """Advise settings of the objective without which codes do not spread; an empty list if they are as usual."""
    order, distortion = setting("objective.order"), _number(setting, "objective.distortion")
    if isinstance(order, int) and order % 2:
        reason = "is the mean cosine alone, which equal codes maximize" if order == 1 else "favors equal codes"
        return [f"{stable_form(setting)} (order {order} {reason})"]
    if distortion is not None and distortion <= DISTORTION / 2:
        return [f"raise objective.distortion from {distortion:.4g} toward {DISTORTION:.4g} (1/32)"]
    if distortion is not None and distortion >= 2 * DISTORTION:
        # of a series, a smaller distortion alone would leave the radius of convergence
        first = f"{stable_form(setting)}, and " if has_series(setting) else ""
        return [f"{first}lower objective.distortion from {distortion:.4g} toward {DISTORTION:.4g} (1/32)"]
    return []


def lower_lr(setting: Setting) -> str:
    lr = _number(setting, "optimizer.lr")
    return "lower optimizer.lr" if lr is None else f"lower optimizer.lr from {lr:.3g} to about {lr / 3:.2g}"


def stabilize(setting: Setting) -> list[str]:
    """Advise settings that keep loss and gradient finite."""
    clauses = [lower_lr(setting)]
    warmup, epochs = _number(setting, "optimizer.warmup_epochs") or 0.0, _number(setting, "epochs")
    if epochs is not None and warmup < epochs / 4:  # the largest length, see OptimizerSettings
        clauses.append(f"lengthen optimizer.warmup_epochs from {warmup:g} to {min(2 * warmup or 1, epochs / 4):g}")
    if has_series(setting) or setting("objective.form") == "cross":
        clauses.append(stable_form(setting))
    return clauses


def raise_distortion(setting: Setting, factor: float) -> str:
    distortion = _number(setting, "objective.distortion")
    if distortion is None:
        return f"raise objective.distortion by a factor of about {factor:.0f}"
    return f"raise objective.distortion from {distortion:.4g} to about {factor * distortion:.2g}"


def raise_batch_size(setting: Setting) -> list[str]:
    size = _number(setting, "batch_size")
    return [f"raise batch_size from {size:g} to {USUAL_BATCH_SIZE}"] if size and size < USUAL_BATCH_SIZE else []


def raise_workers(setting: Setting) -> list[str]:
    """Advise more loader processes, where the recipe limits them; by default there is one for each core."""
    workers = setting("workers")
    return [f"raise workers from {workers} (null: one per core)"] if isinstance(workers, int) else []


def sentence(*clauses: str) -> str:
    """Join alternatives, the first of which is the most promising: "Do this, do that, or do the other."."""
    *others, last = clauses
    text = f"{', '.join(others)}{',' if len(others) > 1 else ''} or {last}" if others else last
    return f"{text[0].upper()}{text[1:]}."
