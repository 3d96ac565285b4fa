"""Atomic writes, and .csv files of a training that a resumed run continues."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is flushed to disk and renamed to ``path`` if the block succeeds, else deleted.
    Missing parent folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class StepCsv:
    """A .csv file with a column ``step``, to which a training appends rows. A resumed training first removes
    the rows from ``first_step`` on, which it will write again, and a last row that a full disk cut short; ``earlier``
    are the rows that were kept."""

    def __init__(self, path: Path, columns: Sequence[str], first_step: int) -> None:
        self.path, self.columns = path, columns
        self.earlier: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                complete_rows = (row for row in csv.DictReader(file) if None not in row.values())
                self.earlier = [row for row in complete_rows if int(row["step"]) < first_step]
        with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.earlier)

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row: numbers with six significant digits, missing columns empty."""
        values = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore").writerow(values)
