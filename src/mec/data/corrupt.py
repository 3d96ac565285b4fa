"""Images that could not be read: counted, listed once, and the end of the run when they are too many."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mec.errors import InputError

COLUMNS = ["image", "reason"]


class CorruptImage(NamedTuple):
    """An image that could not be read: where it comes from and why."""

    title: str
    reason: str


class CorruptLog:
    """The images of a source that could not be read.

    Args:
        most: the share of images that may be unreadable.
        images: how many the source has.
        setting: what the error begins with: the name of ``most`` where it can be chosen, else data.
    """

    def __init__(self, most: float, images: int, setting: str = "data") -> None:
        self.most, self.images, self.setting = most, images, setting
        self.seen = 0
        self.known = 0  # to a run before this one, not among those seen since
        self.listing: Path | None = None
        self.reasons: dict[str, str] = {}

    def list_in(self, path: Path) -> None:
        """From now on write each image and its reason, once, to a .csv; what it holds already is known."""
        before: dict[str, str] = {}
        if path.exists():
            with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                before = {row[0]: row[1] for row in csv.reader(file) if len(row) == 2 and row != COLUMNS}
        self.listing = path
        self._list({title: reason for title, reason in self.reasons.items() if title not in before})
        self.known = len(before.keys() - self.reasons.keys())
        self.reasons = before | self.reasons

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, lost: Iterable[CorruptImage], seen: int) -> None:
        """Take note of what was lost among the ``seen`` images that were read since the last call.

        Raises:
            InputError: more than the share allowed, beyond what chance would make of fewer.
        """
        self.seen = min(self.seen + seen, self.images)
        new = {title: reason for title, reason in lost if title not in self.reasons}
        if not new:
            return
        self.reasons |= new
        self._list(new)
        expected = self.most * self.seen
        # of the first few more may be broken by chance: four standard deviations are let pass
        if self.seen < self.images and len(self) - self.known > expected + 4 * math.sqrt(expected) + 1:
            share = f"{len(self) - self.known:,} of the first {self.seen:,}"
        elif len(self) > self.most * self.images + 1e-6:  # 0.29 * 100 is a little less than 29
            share = f"{len(self):,} of {self.images:,}"
        else:
            return
        title, reason = next(iter(self.reasons.items()))
        where = f"; all are in {self.listing}" if self.listing is not None else ""
        raise InputError(
            f"{self.setting}: {share} images cannot be read, at most {self.most:.3g} of all are let pass; "
            f"the first: {title}: {reason}{where}"
        )

    def _list(self, new: dict[str, str]) -> None:
        if self.listing is None or not new:
            return
        self.listing.parent.mkdir(parents=True, exist_ok=True)
        begins = not self.listing.exists() or not self.listing.stat().st_size
        with self.listing.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            if begins:
                writer.writerow(COLUMNS)
            writer.writerows(new.items())
