"""Atomic writes, and the rows of a .csv file that a resumed run keeps."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is flushed to disk and renamed to ``path`` when the block succeeds.

    If the block raises, the temporary file is deleted and ``path`` is unchanged. Missing parent folders are created.
    """
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


def rows_before_step(path: Path, step: int) -> list[dict[str, str]]:
    """Return the rows of a .csv file whose column ``step`` is below ``step``: a resumed run writes the others again.

    Returns no rows if the file does not exist. A last row that a full disk cut short is dropped.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        complete_rows = (row for row in csv.DictReader(file) if None not in row.values())
        return [row for row in complete_rows if int(row["step"]) < step]
