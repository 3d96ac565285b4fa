"""Whether a run learns, in sentences: what a figure means, and what to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mec.pretraining.health_warnings import COLLAPSED_RANK, FALLEN_RANK_FRACTION, MAX_SPECTRAL_NORM, PATIENCE
from mec.report.record import Columns, Record

WAITS = 0.2
"""Share of the time spent waiting for data from which on more workers, or smaller files, pay."""


@dataclass(frozen=True)
class Verdict:
    """A finding on one run; ``kind`` is good, note or warning."""

    run: str
    kind: Literal["good", "note", "warning"]
    text: str


def verdicts(record: Record) -> list[Verdict]:
    """Warnings first; one that all is well where there are none."""
    metrics = record.metrics
    if not record.recipe:
        return []
    if not len(metrics.get("step", [])):
        return [Verdict(record.name, "note", "No step has been written to metrics.csv yet.")]
    warnings = [*_skipped(metrics), *_rank(metrics), *_radius(record), *_waiting(metrics)]
    found = [Verdict(record.name, "warning", text) for text in warnings]
    return found or [Verdict(record.name, "good", _well(metrics))]


def _skipped(metrics: Columns) -> list[str]:
    skipped = int(np.nanmax(metrics.get("skipped_steps", np.zeros(1)), initial=0))
    if not skipped:
        return []
    return [
        f"{skipped:,} step{'s were' if skipped > 1 else ' was'} left out: loss or gradient was not finite. Lower "
        "optimizer.lr or lengthen optimizer.warmup_epochs."
    ]


def _rank(metrics: Columns) -> list[str]:
    steps, rank = _after_warmup(metrics, "effective_rank")
    if not len(rank):
        return []
    best = np.maximum.accumulate(rank)
    collapsed = _since(rank < COLLAPSED_RANK)
    falling = _since((rank >= COLLAPSED_RANK) & (rank < FALLEN_RANK_FRACTION * best))
    if collapsed is not None:
        return [
            f"The codes collapsed at step {steps[collapsed]:,.0f}: effective rank {rank[collapsed]:.1f}, all images "
            "look alike to the encoder. Lower optimizer.lr, weaken the augmentations, or raise batch_size."
        ]
    if falling is not None:
        return [
            f"The effective rank fell from {best[falling]:.1f} to {rank[falling]:.1f} by step {steps[falling]:,.0f}: "
            "the codes lose directions. Lower optimizer.lr or objective.distortion."
        ]
    return []


def _radius(record: Record) -> list[str]:
    """Only a Taylor series of the cross form has a radius to leave."""
    form, order = record.recipe.get("objective.form"), record.recipe.get("objective.order")
    steps, norm = _after_warmup(record.metrics, "spectral_norm")
    left = _since(norm > MAX_SPECTRAL_NORM)
    if form != "cross" or order is None or left is None:
        return []
    return [
        f"The Taylor series left its radius of convergence at step {steps[left]:,.0f} (norm {norm[left]:.1f}, expected "
        "below 1): its loss means nothing there. Take objective.form pooled, or raise objective.distortion about "
        f"{norm[left]:.0f} times."
    ]


def _waiting(metrics: Columns) -> list[str]:
    waited = metrics.get("data_wait_fraction", np.empty(0))
    waited = waited[np.isfinite(waited)]
    if not len(waited) or (share := float(np.mean(waited))) <= WAITS:
        return []
    return [
        f"{share:.0%} of the time went by waiting for data. Raise workers, keep the images on a faster disk or "
        "smaller, or give the loader more cores."
    ]


def _well(metrics: Columns) -> str:
    rank, loss = _after_warmup(metrics, "effective_rank")[1], _after_warmup(metrics, "loss")[1]
    if len(rank) < 2 or len(loss) < 2:
        return "No sign of trouble so far; the warm-up of the learning rate is not over."
    return (
        f"No sign of trouble: since the warm-up the effective rank went from {rank[0]:.1f} to {rank[-1]:.1f}, "
        f"the loss from {loss[0]:.3f} to {loss[-1]:.3f}."
    )


def _after_warmup(metrics: Columns, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) steps and values; the warm-up ends where the learning rate is highest."""
    if name not in metrics:
        return np.empty(0), np.empty(0)
    steps, values = metrics["step"], metrics[name]
    rate = metrics.get("lr", np.empty(0))
    over = np.ones(len(steps), dtype=bool)
    if np.isfinite(rate).any():
        over = np.arange(len(steps)) > int(np.nanargmax(rate))
    kept = over & np.isfinite(values)
    return steps[kept], values[kept]


def _since(trouble: NDArray[np.bool_]) -> int | None:
    """Where ``PATIENCE`` measurements in a row were in trouble for the first time; None where they never were."""
    run = 0
    for i, now in enumerate(trouble):
        run = run + 1 if now else 0
        if run == PATIENCE:
            return i
    return None
