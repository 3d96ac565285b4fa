"""Text with numbers and commas: a line for an object in a frame, as in MOTChallenge's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.sequences import SequenceError


@dataclass(frozen=True)
class Table:
    """The numbers of a file, one row a line; the first column is the frame, counted from 1.

    values: (n, columns).
    lines: of each row, counted from 1; empty ones are no rows.
    """

    file: Path
    values: NDArray[np.float64]
    lines: Sequence[int]

    @property
    def columns(self) -> int:
        return int(self.values.shape[1])

    def expect(self, right: Any, what: str) -> None:
        """``right``: (n,) truths; raises SequenceError with the first line that has none."""
        if not np.all(right):
            row = int(np.argmin(right))
            got = ",".join(f"{value:g}" for value in self.values[row])
            raise SequenceError(f"{self.file}: line {self.lines[row]}: expected {what}, got {got}")

    def expect_once(self, column: int) -> None:
        """Whole numbers, none twice in a frame; else raises SequenceError."""
        ids, frames = self.values[:, column], self.values[:, 0]
        self.expect((ids == np.rint(ids)) & (abs(ids) < 2**53), f"a whole number in column {column + 1}")
        order = np.lexsort((ids, frames))
        again = (np.diff(ids[order]) == 0) & (np.diff(frames[order]) == 0)
        once = np.ones(len(ids), bool)
        once[order[1:][again]] = False
        self.expect(once, f"the number in column {column + 1} once in a frame")

    def per_frame(self, count: int) -> list[NDArray[np.int64]]:
        """The rows of frames 1 to ``count``, each in the order of the file; those of later frames are left out."""
        frames = self.values[:, 0]
        order = np.argsort(frames, kind="stable")
        ends = np.searchsorted(frames[order], np.arange(1, count + 1), side="right")
        return np.split(order, ends)[:-1]


def read_table(file: Path, min_columns: int) -> Table:
    """A table, of 0 rows for an empty file.

    Raises:
        SequenceError: unreadable, a line without numbers or with fewer than the others, or with a frame below 1.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SequenceError(f"{file} cannot be read as text ({error})") from error
    rows: list[list[float]] = []
    lines: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append([float(word) for word in line.split(",")])
        except ValueError:
            got = f"expected numbers with commas between them, got {line.strip()[:60]!r}"
            raise SequenceError(f"{file}: line {number}: {got}") from None
        lines.append(number)
        if len(rows[-1]) != len(rows[0]) or len(rows[-1]) < min_columns:
            expected = len(rows[0]) if len(rows) > 1 else f"{min_columns} or more"
            raise SequenceError(f"{file}: line {number}: expected {expected} columns, got {len(rows[-1])}")
    table = Table(file, np.array(rows, np.float64).reshape(len(rows), len(rows[0]) if rows else min_columns), lines)
    table.expect(np.isfinite(table.values).all(axis=1), "finite numbers")
    frames = table.values[:, 0]
    table.expect((frames >= 1) & (frames == np.rint(frames)), "a frame, counted from 1, in column 1")
    return table
