"""Corrupt images: counted, logged to a file once each, and an error where there are too many."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mec.distributed import ProcessGroup
from mec.errors import InputError
from mec.files import atomic_write

COLUMNS = ["image", "reason"]


class CorruptImage(NamedTuple):
    """An image that cannot be read: its title (a path or another origin) and the reason."""

    title: str
    reason: str


class CorruptLog:
    """The corrupt images of a dataset of ``num_images``, at most ``max_fraction`` of them; errors name ``setting``."""

    def __init__(self, max_fraction: float, num_images: int, setting: str = "data") -> None:
        self.max_fraction, self.num_images, self.setting = max_fraction, num_images, setting
        self.num_seen = 0
        self.num_earlier = 0  # logged by an interrupted run and not seen again since
        self.path: Path | None = None
        self.reasons: dict[str, str] = {}

    def write_to(self, path: Path) -> None:
        """Append each corrupt image once to a .csv file from now on. Images that the file lists already are loaded."""
        earlier: dict[str, str] = {}
        if path.exists():
            with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                earlier = {row[0]: row[1] for row in csv.reader(file) if len(row) == 2 and row != COLUMNS}
        rows = earlier | {title: reason for title, reason in self.reasons.items() if title not in earlier}
        if rows:  # written as a whole, because a killed run or a full disk may have cut the last row
            with atomic_write(path) as temporary:
                _append(temporary, rows)
        self.path = path
        self.num_earlier = len(earlier.keys() - self.reasons.keys())
        self.reasons = earlier | self.reasons

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, corrupt: Iterable[CorruptImage], num_seen: int) -> None:
        """Log the corrupt images among the ``num_seen`` images that were read since the last call.

        Raises an InputError where the corrupt fraction is above ``max_fraction``, by more than chance explains so far.
        """
        self.num_seen = min(self.num_seen + num_seen, self.num_images)
        new = {title: reason for title, reason in corrupt if title not in self.reasons}
        if not new:
            return
        self.reasons |= new
        if self.path is not None:
            _append(self.path, new)
        expected = self.max_fraction * self.num_seen
        # the first images may hold more corrupt ones by chance: allow four standard deviations
        if self.num_seen < self.num_images and len(self) - self.num_earlier > expected + 4 * math.sqrt(expected) + 1:
            count = f"{len(self) - self.num_earlier:,} of the first {self.num_seen:,}"
        elif len(self) > self.max_fraction * self.num_images + 1e-6:  # 0.29 * 100 is slightly less than 29
            count = f"{len(self):,} of {self.num_images:,}"
        else:
            return
        title, reason = next(iter(self.reasons.items()))
        listed = "; remove or repair them" if self.setting == "data" else ""
        listed = f"; all are listed in {self.path}" if self.path is not None else listed
        raise InputError(
            f"{self.setting}: {count} images cannot be read, expected at most {self.max_fraction:.3g} of all; "
            f"the first: {title}: {reason}{listed}"
        )


def _append(path: Path, rows: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        writer.writerows(rows.items())


def merge_corrupt_logs(corrupt_log: CorruptLog, group: ProcessGroup) -> None:
    """Add the corrupt images of all processes to the log of each. Raises InputError if there are too many in total."""
    if group.world_size > 1:
        for reasons in group.all_gather(corrupt_log.reasons):
            corrupt_log.add([CorruptImage(*item) for item in reasons.items()], corrupt_log.num_images)
