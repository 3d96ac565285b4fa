"""Tables of numbers, numbered images, and checks, which the readers of several datasets share."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.data.decode import EXTENSIONS
from mec.errors import InputError
from mec.evaluate.tracking.sequences import Boxes, SequenceError

logger = logging.getLogger("mec")

SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")


@dataclass(frozen=True)
class Table:
    """The numbers of a file, (rows, columns), and the number of the line of each row, counted from 1."""

    file: Path
    values: NDArray[np.float64]
    lines: Sequence[int]

    def check(self, valid: Any, expected: str) -> None:
        """Raise SequenceError with the first row that is not ``valid``, flags (rows,)."""
        if not np.all(valid):
            row = int(np.argmin(valid))
            got = ", ".join(f"{value:g}" for value in self.values[row])
            raise SequenceError(f"{self.file}: line {self.lines[row]}: expected {expected}, got {got}")


def read_text(file: Path) -> str:
    """Return the text of a file. Raises SequenceError when it is missing or not text."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SequenceError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SequenceError(f"{file} is not text ({error.reason} at byte {error.start})") from error


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, counted from 1, and the text of each line that is not empty. Raises as ``read_text``."""
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if stripped := line.strip():
            yield number, stripped


def read_table(file: Path, columns: int, more: bool = False) -> Table:
    """Read lines of numbers with any separator; with ``more``, of at least ``columns``, all of one length."""
    rows: list[list[float]] = []
    lines = []
    for number, line in read_lines(file):
        try:
            row = [float(field) for field in SEPARATOR.split(line)]
        except ValueError:
            raise SequenceError(f"{file}: line {number}: expected numbers, got {line[:60]!r}") from None
        if not rows and more:
            columns = max(columns, len(row))
        if len(row) != columns:
            raise SequenceError(f"{file}: line {number}: expected {columns} numbers, got {line[:60]!r}")
        rows.append(row)
        lines.append(number)
    return Table(file, np.array(rows, np.float64).reshape(-1, columns), lines)


def image_files(folder: Path, suffixes: Collection[str] = EXTENSIONS) -> list[Path]:
    """Return the images in a folder in the order of the numbers in their names. Raises SequenceError without folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    except OSError as error:
        raise SequenceError(f"{folder}: {error.strerror or error}") from error
    names = [name for name in names if os.path.splitext(name)[1].lower() in suffixes]
    return [folder / name for name in sorted(names, key=_natural_sort_key)]


def _natural_sort_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort 9 before 10, and 09 next to 9."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)], name


def numbered_files(folder: Path, suffixes: Collection[str] = EXTENSIONS) -> dict[int, Path]:
    """Return the images by the number at the end of their names. If names are only a number, others are ignored."""
    files = image_files(folder, suffixes)
    numbered: dict[int, Path] = {}
    for file in [file for file in files if file.stem.isdecimal()] or files:
        if match := re.search(r"\d+$", file.stem):
            other = numbered.setdefault(int(match[0]), file)
            if other is not file:
                raise SequenceError(f"{folder} has frame {int(match[0])} twice, {other.name} and {file.name}")
    if not numbered:
        raise SequenceError(f"{folder} has no numbered images ({', '.join(sorted(suffixes))})")
    return numbered


def frame_range(folder: Path, files: dict[int, Path], first: int, last: int) -> tuple[Path, ...]:
    """Return the files ``first`` to ``last``. Raises SequenceError where one is missing."""
    absent = last - first + 1 - sum(first <= number <= last for number in files)
    if absent > 0:
        missing = next(number for number in range(first, last + 1) if number not in files)
        raise SequenceError(f"{folder} lacks {absent:,} of the frames {first} to {last}, the first is number {missing}")
    return tuple(files[number] for number in range(first, last + 1))


def outside(boxes: Boxes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return flags (k,) of boxes that lie entirely outside of an image of this height and width."""
    ends = boxes[:, :2] + boxes[:, 2:]
    return np.asarray(((ends <= 0) | (boxes[:, :2] >= size[::-1])).any(axis=1))


def check_folder(data: Path) -> None:
    if not data.is_dir():
        raise InputError(f"data: no folder {data}")


def detection_files(detections: str | None, names: Sequence[str], suffix: str) -> dict[str, Path | None]:
    """Return the file of each sequence in a folder; None without folder. Raises InputError if no file exists."""
    if detections is None:
        return dict.fromkeys(names)
    files = {name: Path(detections, name + suffix).expanduser() for name in names}
    if not any(file.is_file() for file in files.values()):
        raise InputError(f"detections: expected a file for each sequence, such as {files[names[0]]}, got none")
    return {**files}


def log_ignored(name: str, ignored: int, total: int, objects: str, reason: str) -> None:
    if ignored:
        logger.warning(f"{name}: {ignored:,} of {total:,} {objects} are ignored, {reason}")
