"""Progress of a run: a progress bar on a terminal, plain lines elsewhere, and metrics.csv in the run folder."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import lightning
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mec.files import atomic_write, rows_before_step
from mec.pretraining.module import Pretraining

METRICS_FILE = "metrics.csv"
PLAIN_LINE_SECONDS = 30
"""Time between two lines where there is no terminal."""


class Throughput:
    """Images per second, and the fraction of time spent waiting for data, since the last ``compute_and_reset``."""

    def __init__(self) -> None:
        self.reset_time = self.wait_started = time.perf_counter()
        self.wait_seconds = 0.0
        self.images = 0

    def start_waiting(self) -> None:
        self.wait_started = time.perf_counter()

    def stop_waiting(self) -> None:
        self.wait_seconds += time.perf_counter() - self.wait_started

    def add(self, images: int) -> None:
        self.images += images

    def compute_and_reset(self) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = max(now - self.reset_time, 1e-9)
        metrics = {"images_per_second": self.images / elapsed, "data_wait_fraction": self.wait_seconds / elapsed}
        self.reset_time, self.wait_seconds, self.images = now, 0.0, 0
        return metrics


class MetricsFile:
    """metrics.csv: one row every few steps. A resumed run first removes the rows of the steps that it will repeat."""

    FIELDS = (
        "step", "epoch", "loss", "coding_length", "spectral_norm", "effective_rank", "rankme", "alpha_req",
        "distortion", "lr", "skipped_steps", "images_per_second", "data_wait_fraction", "seconds",
    )  # fmt: skip

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        rows = rows_before_step(path, first_step)
        self.seconds_before = float(rows[-1]["seconds"]) if rows else 0.0
        with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    def append(self, row: dict[str, Any]) -> None:
        rounded = {k: f"{row[k]:.6g}" if isinstance(row.get(k), float) else row.get(k, "") for k in self.FIELDS}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.FIELDS).writerow(rounded)


class ProgressCallback(lightning.Callback):
    """Measures throughput, logs metrics to metrics.csv and the trainer's loggers, and shows progress."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self.throughput = Throughput()
        self.metrics: dict[str, float] = {}
        self.bar: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.start_time, self.first_step = time.perf_counter(), trainer.global_step
        self.throughput = Throughput()
        if not trainer.is_global_zero:
            return
        self.metrics_file = MetricsFile(self.folder / METRICS_FILE, trainer.global_step)
        self.printed_time = time.perf_counter()
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"), BarColumn(8), TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[metrics]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                console=self.console, refresh_per_second=4,
            )  # fmt: skip
            total = int(trainer.estimated_stepping_batches)
            self.task = self.bar.add_task("", total=total, completed=trainer.global_step, epoch="", metrics="")
            self.bar.start()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.throughput.stop_waiting()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        self.throughput.add(pl_module.batch_size)
        # metrics are read only at steps with health: reading them synchronizes with the device
        if "effective_rank" in pl_module.step_metrics and trainer.is_global_zero:
            self._log(trainer, pl_module)
        if self.bar is not None:
            epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar.update(self.task, completed=trainer.global_step, epoch=epoch, metrics=self._short_description())
        self.throughput.start_waiting()

    def _log(self, trainer: lightning.Trainer, module: Pretraining) -> None:
        self.metrics = {k: float(v) for k, v in module.step_metrics.items()} | self.throughput.compute_and_reset()
        step = trainer.global_step - 1
        seconds = time.perf_counter() - self.start_time + self.metrics_file.seconds_before
        row = {"step": step, "epoch": trainer.current_epoch, "seconds": seconds}
        self.metrics_file.append(row | self.metrics)
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics, step=step)
        if self.bar is None and time.perf_counter() - self.printed_time > PLAIN_LINE_SECONDS:
            self.printed_time = time.perf_counter()
            self._print_line(trainer)

    def _print_line(self, trainer: lightning.Trainer) -> None:
        total = int(trainer.estimated_stepping_batches)
        seconds_per_step = (time.perf_counter() - self.start_time) / (trainer.global_step - self.first_step)
        seconds_left = seconds_per_step * (total - trainer.global_step)
        self.console.print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}/{total}  "
            f"{self._description()}  {seconds_left / 60:.0f} min left",
            highlight=False,
            soft_wrap=True,
        )

    def _description(self) -> str:
        m = self.metrics
        if not m:
            return ""
        return (
            f"loss {m['loss']:.3f}  length {m['coding_length']:.0f} nats  rank {m['effective_rank']:.1f}  "
            f"{m['images_per_second']:.0f} images/s  data wait {m['data_wait_fraction']:.0%}"
        )

    def _short_description(self) -> str:
        """Return what fits a line of 80 characters together with bar and times."""
        m = self.metrics
        if not m:
            return ""
        speed = f"{m['images_per_second']:.0f}/s wait {m['data_wait_fraction']:.0%}"
        return f"loss {m['loss']:.2f} rank {m['effective_rank']:.0f} {speed}"

    def _stop_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop_bar()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop_bar()
