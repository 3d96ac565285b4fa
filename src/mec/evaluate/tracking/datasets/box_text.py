"""Boxes in text, one a frame: left, top, width, height, as OTB, GOT-10k and LaSOT write them, pixels counted from 1."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.sequences import Boxes, SequenceError
from mec.files import atomic_write

FIRST = np.array([1, 1, 0, 0], np.float64)
"""The upper left corner in the files; it is (0, 0) in ours."""
DECIMALS = 4
SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")


def read_rows(file: Path) -> Boxes:
    """What the file says, (lines, 4), whatever separates the numbers; row i is line i + 1.

    Raises:
        SequenceError: the file is missing, empty or no text, or a line is not four numbers.
    """
    text = read_text(file)
    rows = []
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        try:
            row = [float(word) for word in SEPARATOR.split(line.strip())]
        except ValueError:
            row = []
        if len(row) != 4:
            raise SequenceError(
                f"{file}, line {number}: expected 4 numbers (left, top, width, height), got {line[:60]!r}"
            )
        rows.append(row)
    if not rows:
        raise SequenceError(f"{file} is empty, expected a box for every frame")
    return np.array(rows, np.float64)


def read_text(file: Path) -> str:
    """Raises SequenceError when it is missing or no text."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SequenceError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SequenceError(f"{file} is no text ({error.reason} at byte {error.start})") from error


def without_area(rows: Boxes) -> NDArray[np.bool_]:
    """(lines,) flags of rows that are no box: not finite, or without width or height."""
    return np.asarray(~np.isfinite(rows).all(axis=1) | ~(rows[:, 2:] > 0).all(axis=1))


def said(row: Boxes) -> str:
    return ", ".join(f"{value:g}" for value in row)


def write_boxes(folder: Path, name: str, boxes: Boxes) -> Path:
    """Write ``NAME.txt`` as OTB's toolkits read results: x,y,w,h a line, pixels counted from 1, four decimals.

    ``boxes`` is (frames, 4), the upper left corner of the image is (0, 0). What is scored should be read back with
    ``read_boxes``, so that figures are the same whether or not a run was interrupted.

    Raises:
        ValueError: something else than finite boxes with an area.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) or without_area(boxes.round(DECIMALS)).any():
        raise ValueError(f"boxes: expected finite ones with an area, (frames, 4), for {name}, got {boxes.shape}")
    file = folder / f"{name}.txt"
    with atomic_write(file) as temporary:
        np.savetxt(temporary, boxes + FIRST, fmt=f"%.{DECIMALS}f", delimiter=",")
    return file


def read_boxes(folder: Path, name: str) -> Boxes:
    """(frames, 4) of what ``write_boxes`` or another toolkit wrote; how many there should be is the caller's to check.

    Raises:
        SequenceError: missing or damaged, with the line.
    """
    file = folder / f"{name}.txt"
    rows = read_rows(file)
    if (wrong := without_area(rows)).any():
        line = int(wrong.argmax())
        raise SequenceError(f"{file}, line {line + 1}: expected a box with an area, got {said(rows[line])}")
    return np.asarray((rows - FIRST).round(DECIMALS))
