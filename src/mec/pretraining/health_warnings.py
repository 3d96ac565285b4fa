"""Warnings of collapse and of divergence of the Taylor series, each with the settings to change."""

from __future__ import annotations

import logging
from typing import Any

import lightning

from mec.pretraining.module import Pretraining

logger = logging.getLogger("mec")

COLLAPSED_RANK = 2.0
"""Effective rank below which the codes have collapsed."""
FALLEN_RANK_FRACTION = 0.25
"""Fraction of the best effective rank below which the rank has fallen."""
MAX_SPECTRAL_NORM = 2.0
"""Spectral norm above which the Taylor series is far outside its radius of convergence, 1."""
PATIENCE = 3
"""Consecutive measurements before a warning: a single batch is no trend."""


class HealthWarnings(lightning.Callback):
    """Checks the health of the codes wherever it is measured, and warns once of each kind of trouble.

    Checks of rank and spectral norm start after the warm-up.
    """

    def __init__(self) -> None:
        self.best_rank = 0.0
        self.consecutive: dict[str, int] = {}
        self.warned: set[str] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, Pretraining)
        metrics = pl_module.step_metrics
        if "effective_rank" not in metrics or not trainer.is_global_zero:
            return
        skipped_steps = int(metrics["skipped_steps"])
        self._check(
            "skipped steps",
            skipped_steps > 0,
            f"skipped steps so far: {skipped_steps}, because loss or gradient was not finite. Several in a row end the "
            "run: lower optimizer.lr or lengthen optimizer.warmup_epochs",
            patience=1,
        )
        if trainer.global_step <= pl_module.warmup_steps:
            return
        rank, norm = float(metrics["effective_rank"]), float(metrics["spectral_norm"])
        self.best_rank = max(self.best_rank, rank)
        objective = pl_module.recipe.objective
        self._check(
            "collapse",
            rank < COLLAPSED_RANK,
            f"the codes have collapsed: effective rank {rank:.1f}, all images have nearly the same code. "
            "Lower optimizer.lr, weaken the augmentations, or raise batch_size",
        )
        self._check(
            "falling rank",
            rank >= COLLAPSED_RANK and rank < FALLEN_RANK_FRACTION * self.best_rank,
            f"the effective rank fell from {self.best_rank:.1f} to {rank:.1f}: the codes use fewer dimensions. "
            "Lower optimizer.lr or objective.distortion",
        )
        self._check(
            "radius",
            objective.form == "cross" and objective.order is not None and norm > MAX_SPECTRAL_NORM,
            f"the Taylor series is outside its radius of convergence (spectral norm {norm:.1f}, expected below 1), so "
            "that its loss is meaningless. Set objective.form to pooled, or raise objective.distortion by a factor of "
            f"about {norm:.0f}",
        )

    def _check(self, kind: str, failed: bool, message: str, patience: int = PATIENCE) -> None:
        """Print ``message``, once in a run, when ``patience`` measurements in a row have failed."""
        self.consecutive[kind] = self.consecutive.get(kind, 0) + 1 if failed else 0
        if self.consecutive[kind] == patience and kind not in self.warned:
            self.warned.add(kind)
            logger.warning(f"{message}.")
