"""Progress bars on standard error."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mec.distributed import is_rank_zero

logger = logging.getLogger("mec")

TERMINAL_INTERVAL, LOG_INTERVAL = 0.5, 30
"""Seconds between two updates on a terminal, and between two lines elsewhere."""


class ProgressBar:
    """Progress and remaining time: a live bar on a terminal, a line every half minute elsewhere.

    Args:
        label: name of the task; "" disables the bar. Only the process of rank 0 shows it.
        total: number of units.
        initial: number of units that were done before.
        unit: name of the units, in the plural; "" hides the counts.
    """

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
        """Add ``count`` units.

        Args:
            count: number of units.
            describe: returns more text to display, such as the loss. It is called only when an update is due,
                because it may synchronize with the device.
        """
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
