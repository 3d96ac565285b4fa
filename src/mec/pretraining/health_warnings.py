"""Warnings that say what a figure means and what to change: collapse, and a series outside its radius."""

from __future__ import annotations

from typing import Any

import lightning
from rich.console import Console

from mec.pretraining.module import Pretraining

COLLAPSED_RANK = 2.0
FALL = 0.25
FAR_OUTSIDE = 2.0
PATIENCE = 3
"""Measurements in a row before a warning: one odd batch is not a trend."""


class HealthWarnings(lightning.Callback):
    """Looks at every measured step after the warm-up and speaks once about each kind of trouble."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.best_rank = 0.0
        self.seen: dict[str, int] = {}
        self.said: set[str] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, Pretraining)
        measured = pl_module.measured
        if "effective_rank" not in measured or not trainer.is_global_zero:
            return
        skipped = int(measured["skipped"])
        self._count(
            "skipped",
            skipped > 0,
            f"steps left out so far: {skipped}, their loss or gradient was not finite. Several in a row would end the "
            "run: lower optimizer.lr or lengthen optimizer.warmup_epochs",
            patience=1,
        )
        if trainer.global_step <= pl_module.warmup:
            return
        rank, norm = float(measured["effective_rank"]), float(measured["spectral_norm"])
        self.best_rank = max(self.best_rank, rank)
        objective = pl_module.recipe.objective
        self._count(
            "collapse",
            rank < COLLAPSED_RANK,
            f"the codes have collapsed: effective rank {rank:.1f}, all images look alike to the encoder. "
            "Lower optimizer.lr, weaken the augmentations, or raise batch_size",
        )
        self._count(
            "falling",
            rank >= COLLAPSED_RANK and rank < FALL * self.best_rank,
            f"the effective rank fell from {self.best_rank:.1f} to {rank:.1f}: the codes lose directions. "
            "Lower optimizer.lr or objective.distortion",
        )
        self._count(
            "radius",
            objective.form == "cross" and objective.order is not None and norm > FAR_OUTSIDE,
            f"the Taylor series is outside its radius of convergence (norm {norm:.1f}, expected below 1), where its "
            "loss means nothing. Take objective.form pooled, or raise objective.distortion about "
            f"{norm:.0f} times",
        )

    def _count(self, kind: str, now: bool, message: str, patience: int = PATIENCE) -> None:
        self.seen[kind] = self.seen.get(kind, 0) + 1 if now else 0
        if self.seen[kind] == patience and kind not in self.said:
            self.said.add(kind)
            self.console.print(f"[yellow]warning:[/] {message}.", highlight=False)
