"""What is kept and seen of a detector while it trains: checkpoints, metrics.csv, a line on the terminal."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from mec.engine.checkpoints import LatestCheckpoints
from mec.engine.progress import ProgressBar
from mec.engine.trainer import make_trainer
from mec.errors import InputError
from mec.evaluate.detection.schedules import Schedule
from mec.files import atomic_write, rows_before_step

METRICS = "metrics.csv"
CHECKPOINTS = 10
"""Checkpoints in a training, at most every MOST_STEPS of it apart."""
MOST_STEPS = 1000
RECORD_EVERY = 20
"""Steps between two rows of metrics.csv: reading a loss waits for the device."""
LOSSES = {
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
}


def period(schedule: Schedule) -> int:
    """Steps between two checkpoints."""
    return max(1, min(math.ceil(schedule.max_steps / CHECKPOINTS), MOST_STEPS))


def detection_trainer(
    schedule: Schedule, folder: Path, label: str, devices: int | str, nodes: int | str, precision: str
) -> lightning.Trainer:
    """A trainer for a schedule, that writes checkpoints and metrics.csv to ``folder``."""
    return make_trainer(
        folder,
        devices,
        nodes,
        precision,
        # counted in steps, lightning would not go on where a checkpoint ends: it skips most of an epoch
        max_epochs=math.ceil(schedule.max_steps / period(schedule)),
        logger=False,
        callbacks=[DetectionProgress(folder, label), LatestCheckpoints(folder / "checkpoints", period(schedule))],
    )


class DetectionProgress(lightning.Callback):
    """A line with the parts of the loss and the time left, metrics.csv, and the end of a training that diverges."""

    def __init__(self, folder: Path, label: str) -> None:
        self.folder, self.label = folder, label
        self.line: ProgressBar | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._keep_rows(trainer.global_step)
            self.line = ProgressBar(self.label, pl_module.schedule.max_steps, trainer.global_step, "").__enter__()

    def _keep_rows(self, first: int) -> None:
        """What a resumed training will write again is cut off."""
        path = self.folder / METRICS
        kept = rows_before_step(path, first + 1)
        with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", "rate", "loss", *LOSSES], restval="")
            writer.writeheader()
            writer.writerows(kept)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, steps = trainer.global_step, pl_module.schedule.max_steps
        if step % RECORD_EVERY == 0 or step == steps:
            measured = {name: float(value) for name, value in pl_module.measured.items()}
            if not math.isfinite(measured["loss"]):
                raise InputError(f"rate: training diverged before step {step}; lower it")
            if trainer.is_global_zero:
                rounded = {name: f"{value:.5g}" for name, value in measured.items()}
                with (self.folder / METRICS).open("a", newline="") as file:
                    writer = csv.DictWriter(file, ["step", "rate", "loss", *LOSSES], restval="")
                    rate = pl_module.schedule.lr * pl_module.schedule.factor(step - 1)  # lightning's is the next
                    writer.writerow({"step": step, "rate": f"{rate:.5g}", **rounded})
        if self.line is not None:
            self.line.advance(1, lambda: self._words(step, steps, pl_module.measured))

    def _words(self, step: int, steps: int, measured: dict[str, Tensor]) -> str:
        assert self.line is not None
        parts = {word: float(measured[name]) for name, word in LOSSES.items() if name in measured}
        if self.line.live:  # a line of 80 characters
            parts["rpn"] = parts.pop("objectness") + parts.pop("proposals")
            return " ".join(f"{word} {f'{value:.2f}'.lstrip('0')[:3]}" for word, value in parts.items())
        loss = f"{step:,}/{steps:,}  loss {float(measured['loss']):.2f}"
        return f"{loss} ({'  '.join(f'{word} {value:.2f}' for word, value in parts.items())})"

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            images = len(trainer.test_dataloaders) * trainer.world_size
            self.line = ProgressBar(f"{self.label}, looking", images).__enter__()

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.line is not None:
            self.line.advance(trainer.world_size)

    def _stop(self) -> None:
        if self.line is not None:
            self.line.__exit__()
            self.line = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop()

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop()
