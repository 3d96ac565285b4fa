"""Lightning trainer of a detector, with checkpoints, metrics.csv and a progress bar."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from mec.engine.checkpoints import PeriodicCheckpoint
from mec.engine.progress import ProgressBar
from mec.engine.trainer import make_trainer
from mec.errors import InputError
from mec.evaluate.detection.schedules import Schedule
from mec.files import atomic_write, rows_before_step

METRICS_CSV = "metrics.csv"
NUM_CHECKPOINTS = 10
"""Checkpoints in a training, at most MAX_CHECKPOINT_INTERVAL steps apart."""
MAX_CHECKPOINT_INTERVAL = 1000
LOG_EVERY_N_STEPS = 20
"""Steps between two rows of metrics.csv: reading a loss waits for the device."""
LOSSES = {
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
}
"""torchvision's name of each loss -> its name in the progress bar."""
COLUMNS = ["step", "lr", "loss", *LOSSES]


def checkpoint_interval(schedule: Schedule) -> int:
    """Return the number of steps between two checkpoints."""
    return max(1, min(math.ceil(schedule.max_steps / NUM_CHECKPOINTS), MAX_CHECKPOINT_INTERVAL))


def detection_trainer(
    schedule: Schedule, folder: Path, label: str, devices: int | str, nodes: int | str, precision: str
) -> lightning.Trainer:
    """Create a trainer for a schedule that writes checkpoints and metrics.csv to ``folder``."""
    interval = checkpoint_interval(schedule)
    return make_trainer(
        folder,
        devices,
        nodes,
        precision,
        # not max_steps: resumed from a checkpoint at the end of an epoch, Lightning would skip most of the next one
        max_epochs=math.ceil(schedule.max_steps / interval),
        logger=False,
        callbacks=[DetectionProgress(folder, label), PeriodicCheckpoint(folder / "checkpoints", interval)],
    )


class DetectionProgress(lightning.Callback):
    """Show a progress bar with the losses, write metrics.csv, and stop a training that diverges."""

    def __init__(self, folder: Path, label: str) -> None:
        self.folder, self.label = folder, label
        self.progress: ProgressBar | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._truncate_csv(trainer.global_step)
            self.progress = ProgressBar(self.label, pl_module.schedule.max_steps, trainer.global_step, "").__enter__()

    def _truncate_csv(self, last_step: int) -> None:
        """Remove the rows after ``last_step``, which a resumed training writes again."""
        path = self.folder / METRICS_CSV
        rows = rows_before_step(path, last_step + 1)
        with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(rows)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, max_steps = trainer.global_step, pl_module.schedule.max_steps
        if step % LOG_EVERY_N_STEPS == 0 or step == max_steps:
            losses = {name: float(value) for name, value in pl_module.losses.items()}
            if not math.isfinite(losses["loss"]):
                raise InputError(f"lr: training diverged before step {step}; lower it")
            if trainer.is_global_zero:
                # the optimizer already has the learning rate of the next step
                lr = pl_module.schedule.lr * pl_module.schedule.lr_factor(step - 1)
                row = {name: f"{value:.5g}" for name, value in {"lr": lr, **losses}.items()}
                with (self.folder / METRICS_CSV).open("a", newline="") as file:
                    csv.DictWriter(file, COLUMNS, restval="").writerow({"step": step, **row})
        if self.progress is not None:
            self.progress.advance(1, lambda: self._describe(step, max_steps, pl_module.losses))

    def _describe(self, step: int, max_steps: int, losses: dict[str, Tensor]) -> str:
        assert self.progress is not None
        values = {short_name: float(losses[name]) for name, short_name in LOSSES.items() if name in losses}
        if self.progress.is_terminal:  # fits a terminal of 80 characters
            values["rpn"] = values.pop("objectness") + values.pop("proposals")
            return " ".join(f"{name} {f'{value:.2f}'.lstrip('0')[:3]}" for name, value in values.items())
        total = f"{step:,}/{max_steps:,}  loss {float(losses['loss']):.2f}"
        return f"{total} ({'  '.join(f'{name} {value:.2f}' for name, value in values.items())})"

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            num_images = len(trainer.test_dataloaders) * trainer.world_size
            self.progress = ProgressBar(f"{self.label}, detecting", num_images).__enter__()

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.progress is not None:
            self.progress.advance(trainer.world_size)

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.__exit__()
            self.progress = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop()

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop()
