"""Files that are whole or absent, what a resumed run finds in them, and which process writes them."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place, on disk, when the block ends well; else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
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
    """The rows of a .csv whose column ``step`` is below ``step``: a run that is resumed there writes the others again.

    Without the file there are none; a last row that a full disk has cut is not among them.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        whole = (row for row in csv.DictReader(file) if None not in row.values())
        return [row for row in whole if int(row["step"]) < step]
