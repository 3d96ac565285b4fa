"""What a user sees while it trains: a live line on a terminal, plain lines elsewhere, and metrics.csv in the run."""

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

PLAIN_LINE_SECONDS = 30


class Pace:
    """Images per second and the share of time spent waiting for data, over the steps since it was last read."""

    def __init__(self) -> None:
        self.read_at = self.asked_at = time.perf_counter()
        self.waited = 0.0
        self.images = 0

    def data_asked(self) -> None:
        self.asked_at = time.perf_counter()

    def data_came(self) -> None:
        self.waited += time.perf_counter() - self.asked_at

    def step_done(self, images: int) -> None:
        self.images += images

    def read(self) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = max(now - self.read_at, 1e-9)
        figures = {"images_per_second": self.images / elapsed, "data_wait": self.waited / elapsed}
        self.read_at, self.waited, self.images = now, 0.0, 0
        return figures


class MetricsFile:
    """metrics.csv: one row every few steps, whole at any moment; a resumed run cuts what it will write again."""

    FIELDS = (
        "step", "epoch", "loss", "coding_length", "spectral_norm", "effective_rank", "rankme", "alpha_req",
        "distortion", "lr", "skipped", "images_per_second", "data_wait", "seconds",
    )  # fmt: skip

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        kept = rows_before_step(path, first_step)
        self.seconds_before = float(kept[-1]["seconds"]) if kept else 0.0
        with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            writer.writeheader()
            writer.writerows(kept)

    def append(self, row: dict[str, Any]) -> None:
        rounded = {k: f"{row[k]:.6g}" if isinstance(row.get(k), float) else row.get(k, "") for k in self.FIELDS}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.FIELDS).writerow(rounded)


class RunProgress(lightning.Callback):
    """Measures the pace, writes metrics.csv and TensorBoard, and shows the run."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self.pace = Pace()
        self.latest: dict[str, float] = {}
        self.bar: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.started, self.first_step = time.perf_counter(), trainer.global_step
        self.pace = Pace()
        if not trainer.is_global_zero:
            return
        self.metrics = MetricsFile(self.folder / "metrics.csv", trainer.global_step)
        self.said_at = time.perf_counter()
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"), BarColumn(8), TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                console=self.console, refresh_per_second=4,
            )  # fmt: skip
            total = int(trainer.estimated_stepping_batches)
            self.task = self.bar.add_task("", total=total, completed=trainer.global_step, epoch="", figures="")
            self.bar.start()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.pace.data_came()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        self.pace.step_done(pl_module.batch)
        # only the steps whose health was measured are read: reading a figure waits for the device
        if "effective_rank" in pl_module.measured and trainer.is_global_zero:
            self._record(trainer, pl_module)
        if self.bar is not None:
            epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar.update(self.task, completed=trainer.global_step, epoch=epoch, figures=self._brief())
        self.pace.data_asked()

    def _record(self, trainer: lightning.Trainer, module: Pretraining) -> None:
        self.latest = {k: float(v) for k, v in module.measured.items()} | self.pace.read()
        step = trainer.global_step - 1
        seconds = time.perf_counter() - self.started + self.metrics.seconds_before
        row = {"step": step, "epoch": trainer.current_epoch, "seconds": seconds}
        self.metrics.append(row | self.latest)
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=step)
        if self.bar is None and time.perf_counter() - self.said_at > PLAIN_LINE_SECONDS:
            self.said_at = time.perf_counter()
            total = int(trainer.estimated_stepping_batches)
            per_step = (time.perf_counter() - self.started) / (trainer.global_step - self.first_step)
            left = per_step * (total - trainer.global_step)
            self.console.print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}/{total}  "
                f"{self._figures()}  {left / 60:.0f} min left",
                highlight=False,
                soft_wrap=True,
            )

    def _figures(self) -> str:
        if not self.latest:
            return ""
        f = self.latest
        return (
            f"loss {f['loss']:.3f}  length {f['coding_length']:.0f} nats  rank {f['effective_rank']:.1f}  "
            f"{f['images_per_second']:.0f} images/s  data wait {f['data_wait']:.0%}"
        )

    def _brief(self) -> str:
        """What fits a line of 80 characters, beside the times."""
        if not self.latest:
            return ""
        f = self.latest
        rate, wait = f["images_per_second"], f["data_wait"]
        return f"loss {f['loss']:.2f} rank {f['effective_rank']:.0f} {rate:.0f}/s wait {wait:.0%}"

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop()
