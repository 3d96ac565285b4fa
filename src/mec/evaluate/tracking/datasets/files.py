"""Lists, numbered images, and checks of annotations and detections, which the readers of several datasets share."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.data.decode import EXTENSIONS
from mec.errors import InputError
from mec.evaluate.tracking.sequences import Boxes, FrameObjects, SequenceError
from mec.text_files import TextError, read_lines

logger = logging.getLogger("mec")

MIN_IOU = 0.5  # of a detection and an annotated object that count as the same


def read_list(file: Path) -> list[str]:
    """Return the lines of a list of sequences. Raises InputError for an empty or unreadable file."""
    try:
        lines = [line for _, line in read_lines(file)]
    except TextError as error:
        raise InputError(f"data: {error}") from error
    if not lines:
        raise InputError(f"data: {file} is empty, expected names of sequences")
    return lines


def read_optional_lines(file: Path) -> list[str]:
    """Return the lines of a file that has no effect on the metrics; none if it is missing or, which is logged, not
    text."""
    if not file.is_file():
        return []
    try:
        return [line for _, line in read_lines(file)]
    except TextError as error:
        logger.warning(f"ignored: {error}")
        return []


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
    files = image_files(folder)
    matching = [file for file in files if file.suffix.lower() in suffixes]
    numbered: dict[int, Path] = {}
    for file in [file for file in matching if file.stem.isdecimal()] or matching:
        if match := re.search(r"\d+$", file.stem):
            other = numbered.setdefault(int(match[0]), file)
            if other is not file:
                raise SequenceError(f"{folder} has frame {int(match[0])} twice, {other.name} and {file.name}")
    if not numbered:
        raise SequenceError(f"{folder} has no numbered images ({', '.join(sorted(suffixes))})")
    log_ignored_names("image", folder, [file.name for file in files if file not in set(numbered.values())])
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


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def log_ignored(name: str, total: int, objects: str, reasons: Mapping[str, int], expected: bool = False) -> None:
    """Log how many of ``total`` objects of a sequence are ignored for each reason, a warning unless it is ``expected``,
    as for boxes with a low score."""
    if ignored := sum(reasons.values()):
        details = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items() if number)
        level = logging.INFO if expected else logging.WARNING
        logger.log(level, f"{name}: {ignored:,} of {total:,} {objects} are ignored: {details}")


def log_ignored_names(noun: str, place: str | Path, names: Sequence[str]) -> None:
    if names:
        logger.info(f"{count(len(names), noun)} of {place} ignored, such as {names[0]}")


def check_boxes(name: str, file: Path, boxes: Boxes, size: tuple[int, int]) -> None:
    """Check boxes (k, 4) as ``check_box_format`` does. Raises SequenceError also if most lie outside of images of this
    height and width: they belong to other images. Real annotations have a few."""
    check_box_format(name, file, boxes, size)
    outer = int(outside(boxes, size).sum())
    if 2 * outer > len(boxes):
        height, width = size
        raise SequenceError(f"{file}: {outer:,} of {len(boxes):,} boxes are outside of images of {width}x{height}")


def check_box_format(name: str, file: Path, boxes: Boxes, size: tuple[int, int]) -> None:
    """Warn if boxes (k, 4) in images of this height and width appear to be two corners. Raises SequenceError if they
    appear to be fractions of the image."""
    height, width = size
    if len(boxes) and np.abs(boxes).max() <= 1:
        raise SequenceError(f"{file}: expected pixels, got no number above 1; multiply by {width} and {height}")
    beyond = (boxes[:, :2] + boxes[:, 2:] > (width, height)).any(axis=1)
    if (boxes[:, 2:] > boxes[:, :2]).all() and 2 * beyond.sum() > len(boxes):
        logger.warning(
            f"{name}: {file.name} appears to have left, top, right, bottom; it is read as left, top, width, height"
        )


def log_unannotated(name: str, true_boxes: Sequence[Boxes], expected: bool = False) -> None:
    """Log that most frames have no object that is evaluated, a warning unless it is ``expected``."""
    empty = sum(not len(boxes) for boxes in true_boxes)
    if 2 * empty > len(true_boxes):
        level = logging.INFO if expected else logging.WARNING
        frames = f"{empty:,} of {count(len(true_boxes), 'frame')}"
        logger.log(level, f"{name}: no object is evaluated in {frames}, every track there is a false positive")


def check_detections(name: str, detections: Sequence[FrameObjects], true_boxes: Sequence[Boxes]) -> None:
    """Warn if there are no detections, or none overlaps an annotated box of its frame."""
    total, frames = sum(map(len, detections)), count(len(detections), "frame")
    pairs = [(f.boxes, boxes) for f, boxes in zip(detections, true_boxes, strict=True) if len(f) and len(boxes)]
    if not total:
        logger.warning(f"{name}: no detection in any of the {frames}, so there will be no tracks")
    elif not any((coco_mask.iou(*pair, [False] * len(pair[1])) >= MIN_IOU).any() for pair in pairs):
        logger.warning(
            f"{name}: none of {count(total, 'detection')} has an IoU of {MIN_IOU} or more with an annotated object in "
            "its frame; check that numbers of frames, columns and image size are those of the annotation"
        )
