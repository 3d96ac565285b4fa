"""What is said on standard error while something long runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mec.distributed import get_rank

LIVE_SECONDS, PLAIN_SECONDS = 0.5, 30
"""Between two lines on a terminal, and elsewhere."""


def log(line: str) -> None:
    """Of processes that are together, the first says it."""
    if get_rank() == 0:
        Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)


class ProgressBar:
    """How far it is and how long it will take: a live line on a terminal, a plain one every half minute elsewhere.

    Args:
        label: what is done; "" shows nothing, and of processes that are together only the first shows it.
        total: how many of ``unit`` there are.
        done: how many of them were there before.
        unit: for people; "" shows no numbers.
    """

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "images") -> None:
        label = label if get_rank() == 0 else ""
        self.label, self.total, self.first, self.done, self.unit = label, total, done, done, unit
        self.started = self.said = time.monotonic()
        console = Console(stderr=True, soft_wrap=True)
        self.live = console.is_terminal
        self.every = math.inf if not label else LIVE_SECONDS if self.live else PLAIN_SECONDS
        self.drawn = bool(label) and self.live
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(8), TextColumn("{task.fields[figures]}"), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self.row = self.bar.add_task(label, total=total, completed=done, figures="")

    def __enter__(self) -> ProgressBar:
        if self.drawn:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.drawn:  # rich before 14 would print an empty line
            self.bar.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def advance(self, count: int, figures: Callable[[], str] | None = None) -> None:
        """``figures`` says more; it is called only when a line is due, for it may have to wait for a device."""
        self.done += count
        now = time.monotonic()
        if now - self.said < self.every or self.done >= self.total:
            return
        self.said = now
        numbers = f"{self.done:,} of {self.total:,} {self.unit}" if self.unit else ""
        words = "  ".join(filter(None, [numbers, figures() if figures else ""]))
        self.bar.update(self.row, completed=self.done, figures=words)
        if not self.live:
            left = (now - self.started) / max(1, self.done - self.first) * (self.total - self.done)
            log(f"{self.label}: {words}, {left / 60:.0f} min left")
