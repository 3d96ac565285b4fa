"""Text files with one box per frame, as OTB, GOT-10k and LaSOT write them: left, top, width, height, 1-based pixels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.sequences import Boxes, SequenceError
from mec.files import atomic_write

ORIGIN = np.array([1, 1, 0, 0], np.float64)
"""The upper left corner of the image is (1, 1) in the files and (0, 0) in this package."""
DECIMALS = 4
SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")


def read_rows(file: Path) -> Boxes:
    """Return the numbers of a file as they are written, (lines, 4), with any separator; row i is line i + 1.

    Raises:
        SequenceError: the file is missing, empty or not text, or a line does not have four numbers.
    """
    text = read_text(file)
    rows = []
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        try:
            row = [float(field) for field in SEPARATOR.split(line.strip())]
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
    """Return the text of a file. Raises SequenceError when it is missing or not text."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SequenceError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SequenceError(f"{file} is not text ({error.reason} at byte {error.start})") from error


def invalid_boxes(boxes: Boxes) -> NDArray[np.bool_]:
    """Return flags (k,) of boxes that are not finite or have no area."""
    return np.asarray(~np.isfinite(boxes).all(axis=1) | ~(boxes[:, 2:] > 0).all(axis=1))


def format_box(box: Boxes) -> str:
    """Return the numbers of one row, separated by commas, for an error message."""
    return ", ".join(f"{value:g}" for value in box)


def write_boxes(folder: Path, name: str, boxes: Boxes) -> Path:
    """Write ``NAME.txt`` as OTB's toolkits read results: x,y,w,h per line, 1-based pixels, four decimals.

    Compute metrics from the boxes that ``read_boxes`` returns, so that rounding is the same in a resumed run.

    Args:
        folder: created if it does not exist.
        name: name of the sequence.
        boxes: (frames, 4); the upper left corner of the image is (0, 0).

    Returns:
        The file.

    Raises:
        ValueError: the boxes are not finite or have no area.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) or invalid_boxes(boxes.round(DECIMALS)).any():
        raise ValueError(f"boxes: expected finite boxes with an area, (frames, 4), for {name}, got {boxes.shape}")
    file = folder / f"{name}.txt"
    with atomic_write(file) as temporary:
        np.savetxt(temporary, boxes + ORIGIN, fmt=f"%.{DECIMALS}f", delimiter=",")
    return file


def read_boxes(folder: Path, name: str) -> Boxes:
    """Read ``NAME.txt`` of ``write_boxes`` or of another toolkit, (frames, 4). The caller checks the number of boxes.

    Raises:
        SequenceError: the file is missing or a line is damaged.
    """
    file = folder / f"{name}.txt"
    rows = read_rows(file)
    if (invalid := invalid_boxes(rows)).any():
        line = int(invalid.argmax())
        raise SequenceError(f"{file}, line {line + 1}: expected a box with an area, got {format_box(rows[line])}")
    return np.asarray((rows - ORIGIN).round(DECIMALS))
