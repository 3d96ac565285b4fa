"""Health of a run: one table of checks, for the warnings during training and for the verdicts of the report."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning

from mec.pretraining.advice import (
    Setting,
    has_series,
    lower_lr,
    raise_batch_size,
    raise_distortion,
    raise_workers,
    sentence,
    spread_codes,
    stabilize,
    stable_form,
    sweeps_distortion,
)
from mec.pretraining.module import Pretraining
from mec.pretraining.run_folder import Run

logger = logging.getLogger("mec")

PATIENCE = 3
"""Consecutive measurements before a verdict: a single batch is no trend."""
COLLAPSED_RANK = 2.0
FALLEN_RANK_FRACTION = 0.25
"""Fraction of the best effective rank below which the rank has fallen."""
MAX_SPECTRAL_NORM = 2.0
"""Spectral norm above which the Taylor series is far outside its radius of convergence, 1."""
MAX_DATA_WAIT = 0.2
"""Fraction of the time spent waiting for data above which more workers or smaller files pay off."""

Row = Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """A check of rows of metrics.csv with two more columns: ``best_rank`` since the warm-up, and ``mean_wait`` of the
    run so far. Columns that are not measured are NaN.

    If ``is_total``, the column covers the whole run and its last value counts. Other checks start after the warm-up and
    need PATIENCE failures in a row.
    """

    failed: Callable[[Row], bool]
    finding: str  # a sentence, with the columns of the row as fields
    advice: Callable[[Row, Setting], str]  # a sentence, from the row and the settings of the run
    is_total: bool = False
    applies: Callable[[Setting], bool] | None = None  # whether, from the settings of the run; None: to all


CHECKS = {
    "skipped steps": Check(
        lambda row: row["skipped_steps"] > 0,
        "Skipped steps so far: {skipped_steps:,.0f}, because loss or gradient was not finite. Several in a row end the "
        "run.",
        lambda row, setting: sentence(*stabilize(setting)),
        is_total=True,
    ),
    "collapse": Check(
        lambda row: row["effective_rank"] < COLLAPSED_RANK,
        "The codes have collapsed: effective rank {effective_rank:.1f} at step {step:,.0f}, all images have nearly the "
        "same code.",
        lambda row, setting: sentence(
            *spread_codes(setting), lower_lr(setting), "weaken the augmentations", *raise_batch_size(setting)
        ),
    ),
    "falling rank": Check(
        lambda row: COLLAPSED_RANK <= row["effective_rank"] < FALLEN_RANK_FRACTION * row["best_rank"],
        "The effective rank of the codes fell from {best_rank:.1f} to {effective_rank:.1f} by step {step:,.0f}: the "
        "codes use fewer dimensions.",
        lambda row, setting: sentence(*spread_codes(setting), lower_lr(setting)),
        applies=lambda setting: not sweeps_distortion(setting),
    ),
    "radius": Check(
        lambda row: row["spectral_norm"] > MAX_SPECTRAL_NORM,
        "The Taylor series is outside its radius of convergence at step {step:,.0f} (spectral norm "
        "{spectral_norm:.1f}, expected below 1), so that its loss is meaningless.",
        lambda row, setting: sentence(stable_form(setting), raise_distortion(setting, row["spectral_norm"])),
        applies=has_series,
    ),
    "data wait": Check(
        lambda row: row["mean_wait"] > MAX_DATA_WAIT,
        "{mean_wait:.0%} of the time was spent waiting for data.",
        lambda row, setting: sentence(
            *raise_workers(setting), "use more CPU cores", "store the images on a faster disk", "store smaller images"
        ),
        is_total=True,
    ),
}


class HealthMonitor:
    """Applies the checks to measurements in order. The warm-up ends at the row with the highest learning rate.
    ``verdicts`` are the advice of each check that has failed so far."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.checks = {kind: check for kind, check in CHECKS.items() if not check.applies or check.applies(setting)}
        self.verdicts: dict[str, str] = {}
        self._consecutive = dict.fromkeys(self.checks, 0)
        self._highest_lr, self._best_rank = -math.inf, 0.0
        self._waits, self._total_wait = 0, 0.0

    def add(self, row: Row) -> None:
        """Judge the next row of metrics.csv."""
        values = defaultdict(lambda: math.nan, row)
        if values["lr"] > self._highest_lr:  # still warming up
            self._highest_lr, self._best_rank = values["lr"], 0.0
            self._consecutive = dict.fromkeys(self.checks, 0)
        self._best_rank = max(self._best_rank, values["effective_rank"])
        if math.isfinite(values["data_wait_fraction"]):
            self._waits += 1
            self._total_wait += values["data_wait_fraction"]
        values["best_rank"] = self._best_rank
        values["mean_wait"] = self._total_wait / self._waits if self._waits >= PATIENCE else math.nan
        for kind, check in self.checks.items():
            failed = check.failed(values)
            self._consecutive[kind] = self._consecutive[kind] + 1 if failed else 0
            if check.is_total and not failed:
                self.verdicts.pop(kind, None)
            elif check.is_total or (kind not in self.verdicts and self._consecutive[kind] == PATIENCE):
                self.verdicts[kind] = f"{check.finding.format_map(values)} {check.advice(values, self.setting)}"


class HealthWarnings(lightning.Callback):
    """Checks the health of the codes wherever it is measured, and logs a warning at the first failure of each check. A
    resumed run continues with the measurements in its metrics.csv."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert isinstance(pl_module, Pretraining)
        self.monitor = HealthMonitor(pl_module.recipe.setting)
        if trainer.global_step and trainer.is_global_zero:
            for row in Run(self.folder).metrics():
                if row["step"] <= trainer.global_step:
                    self.monitor.add(row)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, Pretraining)
        if "effective_rank" not in pl_module.step_metrics or not trainer.is_global_zero:
            return
        warned = set(self.monitor.verdicts)
        metrics = {name: float(value) for name, value in pl_module.step_metrics.items()}
        self.monitor.add({"step": trainer.global_step, **metrics})
        for kind, advice in self.monitor.verdicts.items():
            if kind not in warned:
                logger.warning(advice)
