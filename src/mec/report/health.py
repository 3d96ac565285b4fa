"""Check the health of a run from its metrics, and suggest settings to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mec.pretraining.health_warnings import COLLAPSED_RANK, FALLEN_RANK_FRACTION, MAX_SPECTRAL_NORM, PATIENCE
from mec.report.record import Columns, Record

MAX_DATA_WAIT = 0.2
"""Fraction of the time spent waiting for data above which more workers or smaller files pay off."""


@dataclass(frozen=True)
class HealthMessage:
    """The outcome of a health check.

    Attributes:
        run: name of the run.
        level: severity.
        text: one or two sentences.
    """

    run: str
    level: Literal["ok", "note", "warning"]
    text: str


def check_health(record: Record) -> list[HealthMessage]:
    """Return a warning for each failed check, or one message of level ok. Empty for folders without a recipe."""
    metrics = record.metrics
    if not record.recipe:
        return []
    if not len(metrics.get("step", [])):
        return [HealthMessage(record.name, "note", "No step has been written to metrics.csv yet.")]
    warnings = [*_check_skipped(metrics), *_check_rank(metrics), *_check_radius(record), *_check_data_wait(metrics)]
    messages = [HealthMessage(record.name, "warning", text) for text in warnings]
    return messages or [HealthMessage(record.name, "ok", _describe_trend(metrics))]


def _check_skipped(metrics: Columns) -> list[str]:
    skipped = int(np.nanmax(metrics.get("skipped_steps", np.zeros(1)), initial=0))
    if not skipped:
        return []
    return [
        f"{skipped:,} step{'s were' if skipped > 1 else ' was'} skipped because loss or gradient was not finite. "
        "Lower optimizer.lr or lengthen optimizer.warmup_epochs."
    ]


def _check_rank(metrics: Columns) -> list[str]:
    steps, rank = _after_warmup(metrics, "effective_rank")
    if not len(rank):
        return []
    best = np.maximum.accumulate(rank)
    collapsed = _first_sustained(rank < COLLAPSED_RANK)
    falling = _first_sustained((rank >= COLLAPSED_RANK) & (rank < FALLEN_RANK_FRACTION * best))
    if collapsed is not None:
        return [
            f"The codes collapsed at step {steps[collapsed]:,.0f}: effective rank of the codes {rank[collapsed]:.1f}, "
            "all images have nearly the same code. Lower optimizer.lr, weaken the augmentations, or raise batch_size."
        ]
    if falling is not None:
        return [
            f"The effective rank of the codes fell from {best[falling]:.1f} to {rank[falling]:.1f} by step "
            f"{steps[falling]:,.0f}: the codes use fewer dimensions. Lower optimizer.lr or objective.distortion."
        ]
    return []


def _check_radius(record: Record) -> list[str]:
    """Only the cross form with a Taylor series has a radius of convergence."""
    form, order = record.recipe.get("objective.form"), record.recipe.get("objective.order")
    steps, norm = _after_warmup(record.metrics, "spectral_norm")
    outside = _first_sustained(norm > MAX_SPECTRAL_NORM)
    if form != "cross" or order is None or outside is None:
        return []
    return [
        f"The Taylor series left its radius of convergence at step {steps[outside]:,.0f} (spectral norm "
        f"{norm[outside]:.1f}, expected below 1); its loss is meaningless there. Set objective.form to pooled, or "
        f"raise objective.distortion by a factor of about {norm[outside]:.0f}."
    ]


def _check_data_wait(metrics: Columns) -> list[str]:
    fractions = metrics.get("data_wait_fraction", np.empty(0))
    fractions = fractions[np.isfinite(fractions)]
    if not len(fractions) or (mean := float(np.mean(fractions))) <= MAX_DATA_WAIT:
        return []
    return [
        f"{mean:.0%} of the time was spent waiting for data. Raise workers, use more CPU cores, store the images on a "
        "faster disk, or store smaller images."
    ]


def _describe_trend(metrics: Columns) -> str:
    rank, loss = _after_warmup(metrics, "effective_rank")[1], _after_warmup(metrics, "loss")[1]
    if len(rank) < 2 or len(loss) < 2:
        return "No problem found so far. The learning rate is still warming up."
    return (
        f"No problem found. Since the warm-up, the effective rank of the codes went from {rank[0]:.1f} to "
        f"{rank[-1]:.1f} and the loss from {loss[0]:.3f} to {loss[-1]:.3f}."
    )


def _after_warmup(metrics: Columns, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (n,) steps and finite values after the step with the highest learning rate."""
    if name not in metrics:
        return np.empty(0), np.empty(0)
    steps, values = metrics["step"], metrics[name]
    lr = metrics.get("lr", np.empty(0))
    selected = np.isfinite(values)
    if np.isfinite(lr).any():
        selected &= np.arange(len(steps)) > int(np.nanargmax(lr))
    return steps[selected], values[selected]


def _first_sustained(failed: NDArray[np.bool_]) -> int | None:
    """Return the index at which ``PATIENCE`` measurements in a row have failed for the first time, or None."""
    consecutive = 0
    for index, is_failure in enumerate(failed):
        consecutive = consecutive + 1 if is_failure else 0
        if consecutive == PATIENCE:
            return index
    return None
