"""Progress bars, and the callback that shows the progress of a training and logs its metrics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from mec.distributed import is_rank_zero
from mec.files import StepCsv

logger = logging.getLogger("mec")

METRICS_FILE = "metrics.csv"
TERMINAL_INTERVAL, LOG_INTERVAL = 0.5, 30
"""Seconds between two updates on a terminal, and between two lines elsewhere."""


class ProgressBar:
    """Progress and remaining time on rank 0: a live bar on a terminal, a line every half minute elsewhere.
    ``initial`` units were done before. An empty ``label`` disables the bar, an empty ``unit`` hides the counts."""

    def __init__(self, label: str, total: int, initial: int = 0, unit: str = "images") -> None:
        label = label if is_rank_zero() else ""
        self.label, self.total, self.initial, self.done, self.unit = label, total, initial, initial, unit
        self.start_time = self.last_update = time.monotonic()
        console = Console(stderr=True, soft_wrap=True)
        self.is_terminal = console.is_terminal
        self.interval = math.inf if not label else TERMINAL_INTERVAL if self.is_terminal else LOG_INTERVAL
        self.is_live = bool(label) and self.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(8), TextColumn("{task.fields[status]}"), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task(label, total=total, completed=initial, status="")

    def __enter__(self) -> ProgressBar:
        if self.is_live:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_live:  # before rich 14, stopping a bar that was not started prints an empty line
            self.bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the bar was created."""
        return time.monotonic() - self.start_time

    def advance(self, count: int, describe: Callable[[], str] | None = None) -> None:
        """Add ``count`` units. ``describe`` returns more text to display, such as the loss; it is called only when an
        update is due, because it may synchronize with the device."""
        self.done += count
        now = time.monotonic()
        if now - self.last_update < self.interval or self.done >= self.total:
            return
        self.last_update = now
        counts = f"{self.done:,} of {self.total:,} {self.unit}" if self.unit else ""
        status = "  ".join(filter(None, [counts, describe() if describe else ""]))
        self.bar.update(self.task, completed=self.done, status=status)
        if not self.is_terminal:
            seconds_left = (now - self.start_time) / max(1, self.done - self.initial) * (self.total - self.done)
            logger.info(f"{self.label}: {status}, {seconds_left / 60:.0f} min left")


class TrainingModule(lightning.LightningModule):
    """Module whose progress, metrics and checkpoints the callbacks of the engine handle."""

    metric_names: tuple[str, ...] = ("loss", "lr")  # columns of metrics.csv between epoch and images_per_second
    stays_finite = False  # whether the weights stay finite where the loss does not: a checkpoint is then worth saving
    batch_size: int  # images in a step, over all processes
    step_metrics: dict[str, Tensor | float]  # of the latest step; Tensors are on the device
    step_is_logged: bool = False  # whether step_metrics are read, which synchronizes with the device

    def progress_text(self, metrics: Mapping[str, float], short: bool) -> str:
        """Return text for the bar from the latest metrics ({} before the first), ``short``: about 35 characters."""
        return f"loss {metrics['loss']:.3f}" if metrics else ""

    def diverged(self) -> bool:
        """Return whether the training should end; called where reading the loss is cheap."""
        return not math.isfinite(self.step_metrics["loss"])

    def divergence_message(self) -> str:
        return f"lr: training diverged before step {self.global_step:,}; lower it"


class TrainingProgress(lightning.Callback):
    """Shows the progress of a training, and logs its metrics to ``folder``/metrics.csv and the trainer's loggers."""

    def __init__(self, label: str, folder: Path | None) -> None:
        self.label, self.folder = label, folder
        self.metrics: dict[str, float] = {}
        self.bar: ProgressBar | None = None
        self.csv: StepCsv | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.start_time = time.perf_counter()
        self._reset_throughput()
        if not trainer.is_global_zero:
            return
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        self.seconds_before = 0.0
        if self.folder is not None:
            speed = ("images_per_second", "data_wait_fraction", "seconds")
            self.csv = StepCsv(self.folder / METRICS_FILE, ("step", "epoch", *pl_module.metric_names, *speed), step)
            self.seconds_before = float(self.csv.earlier[-1].get("seconds") or 0) if self.csv.earlier else 0.0
        self.bar = ProgressBar(self.label, total, step, unit="").__enter__()

    def _reset_throughput(self) -> None:
        self.window_start = self.wait_start = time.perf_counter()
        self.wait_seconds, self.images = 0.0, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.wait_seconds += time.perf_counter() - self.wait_start

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.images += pl_module.batch_size
        if self.bar is not None:
            # the health of codes is not measured at a step whose loss is not finite
            if pl_module.step_is_logged and pl_module.step_metrics.keys() >= set(pl_module.metric_names):
                self._log(trainer, pl_module)
            short = self.bar.is_terminal
            self.bar.advance(1, lambda: pl_module.progress_text(self.metrics, short))
        self.wait_start = time.perf_counter()

    def _log(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        metrics = {name: float(value) for name, value in module.step_metrics.items()}  # waits for the device
        now = time.perf_counter()
        elapsed = max(now - self.window_start, 1e-9)
        speed = {"images_per_second": self.images / elapsed, "data_wait_fraction": self.wait_seconds / elapsed}
        self._reset_throughput()
        self.metrics = metrics | speed
        step = trainer.global_step - 1
        if self.csv is not None:
            seconds = now - self.start_time + self.seconds_before
            self.csv.append({"step": step, "epoch": trainer.current_epoch, "seconds": seconds} | self.metrics)
        for metrics_logger in trainer.loggers:
            metrics_logger.log_metrics(self.metrics, step=step)

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop()
