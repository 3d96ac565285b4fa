"""Progress bars, and the callback that shows the progress of a training and logs its metrics."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning
from lightning.pytorch.profilers import PassThroughProfiler
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from mec.distributed import is_rank_zero
from mec.files import StepCsv

logger = logging.getLogger("mec")

METRICS_FILE = "metrics.csv"
TERMINAL_INTERVAL, LOG_INTERVAL = 0.5, 30
"""Seconds between two updates on a terminal, and between two lines elsewhere."""
ESTIMATE_AFTER, MIN_ESTIMATE = 10.0, 60.0
"""Seconds of training after which its duration is estimated, and shortest duration worth a line."""


def format_duration(seconds: float) -> str:
    """Return a duration with two significant digits, such as "45 s", "3.4 h" or "2.1 days"."""
    unit, size = "s", 1
    for larger, larger_size, start in (("min", 60, 60), ("h", 3600, 3600), ("days", 86400, 2 * 86400)):
        if seconds >= 0.995 * start:
            unit, size = larger, larger_size
    number = f"{seconds / size + 1e-9:.2g}" if seconds >= 0.01 else "0"
    return f"{float(number):g} {unit}"


class ProgressBar:
    """Progress and remaining time on rank 0: a live bar on a terminal; elsewhere a line every half minute, also while
    nothing advances. Of nested bars, the innermost logs, and the outermost is drawn with the text of the innermost.

    ``initial`` of ``total`` units were done before; the total of work of unknown length is None. An empty ``label``
    disables the bar, an empty ``unit`` hides the counts.
    """

    _open: ClassVar[list[ProgressBar]] = []  # the innermost last
    _last_line: ClassVar[float] = 0.0  # time of the last line of any bar
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, label: str, total: int | None = None, initial: int = 0, unit: str = "images") -> None:
        self.label, self.total, self.initial, self.done, self.unit = label, total, initial, initial, unit
        self.start_time = self.last_update = self.last_advance = time.monotonic()
        self.first_time, self.first_done = self.start_time, initial  # the end of the first units, which take longer
        self.describe: Callable[[], str] | None = None
        self.console = Console(stderr=True, soft_wrap=True)
        self.is_terminal = self.console.is_terminal
        self.enabled = bool(label) and is_rank_zero()
        self._closed = threading.Event()

    def __enter__(self) -> ProgressBar:
        if not self.enabled:
            return self
        outermost = not ProgressBar._open
        ProgressBar._open.append(self)
        if not self.is_terminal:
            if outermost:
                ProgressBar._last_line = time.monotonic()
            threading.Thread(target=self._log_while_open, daemon=True).start()
        elif outermost:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(8), TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=self.console, transient=True,
            )  # fmt: skip
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.initial, status="", left="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self in ProgressBar._open:
            self._closed.set()
            ProgressBar._open.remove(self)
            if hasattr(self, "bar"):
                self.bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the bar was created."""
        return time.monotonic() - self.start_time

    @property
    def seconds_left(self) -> float:
        """Estimated seconds until all units are done; NaN before the first units or without a total."""
        if self.total is None or self.done == self.initial:
            return math.nan
        # the first units include the start of loader processes and compilation
        is_first = self.done == self.first_done
        start, units = (self.start_time, self.initial) if is_first else (self.first_time, self.first_done)
        per_unit = (self.last_advance - start) / (self.done - units)
        return max(0.0, per_unit * (self.total - self.done) - (time.monotonic() - self.last_advance))

    def advance(self, count: int, describe: Callable[[], str] | None = None) -> None:
        """Add ``count`` units. ``describe`` returns more text to display, such as the loss; it is called only when an
        update is due, because it may synchronize with the device."""
        self.last_advance = now = time.monotonic()
        if self.done == self.initial:
            self.first_time, self.first_done = now, self.initial + count
        self.done += count
        self.describe = describe
        if not self.enabled or self.done == self.total:
            return
        if not self.is_terminal:
            self._log_if_due()
        elif now - self.last_update >= TERMINAL_INTERVAL:
            self.last_update = now
            self._draw()

    def _status(self) -> str:
        counts = ""
        if self.unit and self.total is not None and self.done > self.initial:
            counts = f"{self.done:,} of {self.total:,} {self.unit}"
        return "  ".join(filter(None, [counts, self.describe() if self.describe else ""]))

    def _draw(self) -> None:
        outermost = ProgressBar._open[0] if ProgressBar._open else self
        if not hasattr(outermost, "bar"):
            return
        if self is outermost:
            left = "" if math.isnan(self.seconds_left) else f"{format_duration(self.seconds_left)} left"
            outermost.bar.update(
                outermost.task, total=self.total, completed=self.done, status=self._status(), left=left
            )
        else:
            outermost.bar.update(outermost.task, status=f"{self.label}: {self._status()}")

    def _log_if_due(self) -> None:
        with ProgressBar._lock:
            now = time.monotonic()
            if now - ProgressBar._last_line < LOG_INTERVAL:
                return
            ProgressBar._last_line = now
        left = "" if math.isnan(self.seconds_left) else f", {format_duration(self.seconds_left)} left"
        logger.info(f"{self.label}: {self._status() or f'working for {format_duration(self.seconds)}'}{left}")

    def _log_while_open(self) -> None:
        while not self._closed.wait(min(1.0, LOG_INTERVAL)):
            if ProgressBar._open[-1:] == [self]:
                self._log_if_due()


class TrainingModule(lightning.LightningModule):
    """Module whose progress, metrics and checkpoints the callbacks of the engine handle."""

    metric_names: tuple[str, ...] = ("loss", "lr")  # columns of metrics.csv between epoch and images_per_second
    stays_finite = False  # whether the weights stay finite where the loss does not: a checkpoint is then worth saving
    total_steps: int = 0  # may change during the training; 0: all steps of all epochs
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


class TrainingClock(PassThroughProfiler):
    """Measures what a training spends on waiting for data, and on what is not training: callbacks between epochs, such
    as probes, and checkpoints. Both in seconds."""

    FETCH = re.compile(r"\[_TrainingEpochLoop\]\.train_dataloader_next")
    # not the hooks of batches of other callbacks: what they wait for is the work of the device
    PAUSE = re.compile(r"\[Callback\](PreemptionCheckpoint\.|(?!.*batch))")

    def __init__(self) -> None:
        super().__init__()
        self.wait = self.pause = 0.0
        self._starts: dict[str, float] = {}

    def start(self, action_name: str) -> None:
        # hooks within hooks, such as those of a checkpoint, are part of the outer one
        if not self._starts and (self.FETCH.match(action_name) or self.PAUSE.match(action_name)):
            self._starts[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        start = self._starts.pop(action_name, None)
        if start is not None:
            seconds = time.perf_counter() - start
            if self.FETCH.match(action_name):
                self.wait += seconds
            else:
                self.pause += seconds


class TrainingProgress(lightning.Callback):
    """Shows the progress of a training, and logs its metrics to ``folder``/metrics.csv and the trainer's loggers.

    ``images_per_second`` and ``data_wait_fraction`` are measured without the time of probes and checkpoints.
    ``estimate`` logs the expected duration, once."""

    def __init__(self, label: str, folder: Path | None, estimate: bool = True) -> None:
        self.label, self.folder = label, folder
        self.metrics: dict[str, float] = {}
        self.bar: ProgressBar | None = None
        self.csv: StepCsv | None = None
        self.clock = TrainingClock()
        self.estimated = not estimate

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            trainer.profiler = self.clock  # type: ignore[attr-defined]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.start_time = time.perf_counter()
        self._reset_throughput()
        if not trainer.is_global_zero:
            return
        step, total = trainer.global_step, pl_module.total_steps or int(trainer.estimated_stepping_batches)
        self.seconds_before = 0.0
        if self.folder is not None:
            speed = ("images_per_second", "data_wait_fraction", "seconds")
            self.csv = StepCsv(self.folder / METRICS_FILE, ("step", "epoch", *pl_module.metric_names, *speed), step + 1)
            self.seconds_before = float(self.csv.earlier[-1].get("seconds") or 0) if self.csv.earlier else 0.0
        self.bar = ProgressBar(self.label, total, step, unit="").__enter__()

    def _reset_throughput(self) -> None:
        self.window_start = time.perf_counter()
        self.clock.wait = self.clock.pause = 0.0
        self.images = 0

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
            self.bar.total = pl_module.total_steps or self.bar.total
            self.bar.advance(1, lambda: pl_module.progress_text(self.metrics, short))
            if not self.estimated:
                self._estimate(self.bar, trainer, batch_idx + 1 == trainer.num_training_batches)

    def _estimate(self, bar: ProgressBar, trainer: lightning.Trainer, ends_epoch: bool) -> None:
        """Log how long the training will take, once, at the end of the first epoch at the latest."""
        seconds = time.monotonic() - bar.first_time
        if bar.done - bar.initial >= 2 and (ends_epoch or seconds >= ESTIMATE_AFTER):
            self.estimated = True
            total = bar.seconds + bar.seconds_left
            if total >= MIN_ESTIMATE:
                epochs = trainer.max_epochs or 0
                amount = f"{epochs:,} epochs" if epochs > 1 else f"{bar.total:,} steps"
                if bar.initial:
                    amount = f"the remaining {(bar.total or 0) - bar.initial:,} of {bar.total:,} steps"
                logger.info(f"{self.label}: about {format_duration(total)} for {amount}")

    def _log(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        metrics = {name: float(value) for name, value in module.step_metrics.items()}  # waits for the device
        now = time.perf_counter()
        elapsed = max(now - self.window_start - self.clock.pause, 1e-9)
        speed = {"images_per_second": self.images / elapsed, "data_wait_fraction": self.clock.wait / elapsed}
        self._reset_throughput()
        self.metrics = metrics | speed
        step = trainer.global_step
        if self.csv is not None:
            seconds = now - self.start_time + self.seconds_before
            self.csv.append({"step": step, "epoch": trainer.current_epoch + 1, "seconds": seconds} | self.metrics)
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
