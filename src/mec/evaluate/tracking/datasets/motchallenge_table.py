"""Text files of MOTChallenge: comma-separated numbers, one object in one frame per line."""

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
    """The numbers of a file, one row per line. The first column is the frame, counted from 1.

    values: (n, columns).
    lines: line number of each row, counted from 1. Empty lines have no row.
    """

    file: Path
    values: NDArray[np.float64]
    lines: Sequence[int]

    @property
    def columns(self) -> int:
        return int(self.values.shape[1])

    def check(self, valid: Any, expected: str) -> None:
        """Raise SequenceError with the first row that is not ``valid``, flags (n,)."""
        if not np.all(valid):
            row = int(np.argmin(valid))
            got = ",".join(f"{value:g}" for value in self.values[row])
            raise SequenceError(f"{self.file}: line {self.lines[row]}: expected {expected}, got {got}")

    def check_unique_ids(self, column: int) -> None:
        """Raise SequenceError unless the column has integers and none occurs twice in a frame."""
        ids, frames = self.values[:, column], self.values[:, 0]
        self.check((ids == np.rint(ids)) & (abs(ids) < 2**53), f"an integer in column {column + 1}")
        order = np.lexsort((ids, frames))
        repeated = (np.diff(ids[order]) == 0) & (np.diff(frames[order]) == 0)
        unique = np.ones(len(ids), bool)
        unique[order[1:][repeated]] = False
        self.check(unique, f"the id in column {column + 1} once per frame")

    def rows_per_frame(self, count: int) -> list[NDArray[np.int64]]:
        """Return the row numbers of frames 1 to ``count``, in the order of the file. Later frames are ignored."""
        frames = self.values[:, 0]
        order = np.argsort(frames, kind="stable")
        ends = np.searchsorted(frames[order], np.arange(1, count + 1), side="right")
        return np.split(order, ends)[:-1]


def read_table(file: Path, min_columns: int) -> Table:
    """Read a table; an empty file has 0 rows.

    Raises:
        SequenceError: the file is unreadable, or a line has something else than finite numbers, another number of
            columns than the first one, or a frame below 1.
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
            rows.append([float(field) for field in line.split(",")])
        except ValueError:
            raise SequenceError(
                f"{file}: line {number}: expected comma-separated numbers, got {line.strip()[:60]!r}"
            ) from None
        lines.append(number)
        if len(rows[-1]) != len(rows[0]) or len(rows[-1]) < min_columns:
            expected = len(rows[0]) if len(rows) > 1 else f"{min_columns} or more"
            raise SequenceError(f"{file}: line {number}: expected {expected} columns, got {len(rows[-1])}")
    table = Table(file, np.array(rows, np.float64).reshape(len(rows), len(rows[0]) if rows else min_columns), lines)
    table.check(np.isfinite(table.values).all(axis=1), "finite numbers")
    frames = table.values[:, 0]
    table.check((frames >= 1) & (frames == np.rint(frames)), "a frame, counted from 1, in column 1")
    return table
