"""Reader and writer of MOTChallenge's format (Milan et al. 2016): MOT15, MOT16, MOT17 and MOT20.

Coordinates stay as they are in the files; MOTChallenge counts them from 1. ``motchallenge_frames`` reads the images,
``motchallenge_table`` the text files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.tracking.datasets.motchallenge_frames import read_frames
from mec.evaluate.tracking.datasets.motchallenge_table import read_table
from mec.evaluate.tracking.sequences import (
    Boxes,
    DetectionSequence,
    FrameObjects,
    SequenceError,
    SequenceLoaders,
    Tracks,
    select_sequences,
)
from mec.files import atomic_write

logger = logging.getLogger("mec")

CLASSES = np.arange(1, 14)
PEDESTRIAN = 1
DETECTORS = ("-DPM", "-FRCNN", "-SDP")
"""Suffixes of the sequence names in MOT17, which has every video three times."""
GROUND_TRUTH = "gt"
"""Value of ``detections`` that selects the boxes of the ground truth."""


@dataclass(frozen=True)
class BoxGroundTruth:
    """Annotated objects of each frame, including those that are not evaluated.

    benchmark: trackeval's name of the benchmark whose rules apply.
    classes: 1 where the file has none.
    flags: 0 for objects that are not evaluated.
    """

    benchmark: str
    ids: Sequence[NDArray[np.int64]]
    boxes: Sequence[Boxes]
    classes: Sequence[NDArray[np.int64]]
    flags: Sequence[NDArray[np.int64]]


def open_box_detections(
    data: Path, detections: str | None = None, min_score: float = 0.5, names: Sequence[str] | None = None
) -> SequenceLoaders[DetectionSequence]:
    """Return loaders of the sequences by name. Their ``ground_truth`` is a BoxGroundTruth.

    Args:
        data: one sequence, a folder of sequences, or a folder with sequences in train. A sequence has
            img1/000001.jpg and gt/gt.txt, and may have seqinfo.ini and det/det.txt.
        detections: None for det/det.txt of each sequence, "gt" for the evaluated boxes of the ground truth, or a folder
            with SEQUENCE.txt, SEQUENCE/det.txt or SEQUENCE/det/det.txt. A line is frame, -1, left, top, width, height
            and score, or, with six columns, the same without the -1.
        min_score: keep boxes with a higher score, on any scale. All boxes are kept where all scores are equal.
        names: names or patterns of the sequences to load, such as "MOT17-02-SDP" or "*-FRCNN".

    Raises:
        InputError: there are no usable files at all. Errors in one sequence are raised when it is loaded.
    """
    if detections is not None:
        detections = os.path.expanduser(detections)
    folders = _select_folders(_sequence_folders(data), names)
    if not any((folder / "gt" / "gt.txt").is_file() for folder in folders.values()):
        raise InputError(f"data: no gt/gt.txt in {data}; the ground truth of MOTChallenge's test set is not public")
    if detections is not None and detections != GROUND_TRUTH and not Path(detections).is_dir():
        raise InputError(f'detections: no folder {detections}; expected "gt" or a folder with SEQUENCE.txt files')
    if detections != GROUND_TRUTH and not any(_detection_file(folder, detections) for folder in folders.values()):
        if detections is None:
            raise InputError(f'detections: no sequence of {data} has det/det.txt; expected "gt" or a folder')
        example = f"{next(iter(folders))}.txt"
        raise InputError(f"detections: expected a file for each sequence in {detections}, such as {example}, got none")
    return {name: partial(_load, folder, detections, min_score) for name, folder in folders.items()}


def _sequence_folders(data: Path) -> list[Path]:
    if not data.is_dir():
        raise InputError(f"data: no folder {data}")
    if _is_sequence(data):
        return [Path(os.path.abspath(data))]  # abspath keeps the name of a symbolic link
    for folder in (data / "train", data / "images" / "train", data):
        sequences = sorted(f for f in folder.glob("*") if _is_sequence(f))
        if sequences and folder != data and (folder.parent / "test").is_dir():
            logger.info(f"{folder}: loaded; test is ignored, its ground truth is not public")
        if sequences:
            return sequences
    raise InputError(f"data: no sequence in {data}; expected MOTChallenge's train/SEQUENCE/img1/000001.jpg")


def _is_sequence(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("seqinfo.ini", "img1", "gt/gt.txt", "det/det.txt"))


def _select_folders(folders: list[Path], names: Sequence[str] | None) -> dict[str, Path]:
    selected = select_sequences({folder.name: folder for folder in folders}, names)
    videos = {name.removesuffix(next(filter(name.endswith, DETECTORS), "")) for name in selected}
    if not names and len(videos) < len(selected):
        repeated = len(selected) - len(videos)
        logger.info(
            f'{repeated} sequences repeat the video of another one; --sequences "*-FRCNN" loads each video once'
        )
    return selected


def _detection_file(folder: Path, detections: str | None) -> Path | None:
    if detections is None:
        files = [folder / "det" / "det.txt"]
    else:
        files = [Path(detections, folder.name + end) for end in (".txt", "/det.txt", "/det/det.txt")]
    return next((file for file in files if file.is_file()), None)


def _load(folder: Path, detections: str | None, min_score: float) -> DetectionSequence:
    name = folder.name
    ground_truth_file = folder / "gt" / "gt.txt"
    if not ground_truth_file.is_file():
        raise SequenceError(f"no {ground_truth_file}")
    frames, size = read_frames(folder)
    ground_truth = read_ground_truth(ground_truth_file, len(frames), name)
    _check_image_size(ground_truth_file, np.concatenate(ground_truth.boxes), size)
    if detections == GROUND_TRUTH:
        annotations = zip(ground_truth.boxes, ground_truth.flags, ground_truth.classes, strict=True)
        evaluated = [boxes[(flags != 0) & (classes == PEDESTRIAN)] for boxes, flags, classes in annotations]
        objects = [FrameObjects(boxes, np.ones(len(boxes))) for boxes in evaluated]
    else:
        file = _detection_file(folder, detections)
        if file is None:
            raise SequenceError(f"no detections of {name} in {detections or folder}")
        objects = read_detections(file, len(frames), min_score)
        _check_image_size(file, np.concatenate([frame.boxes for frame in objects]), size)
    visible = [frame.take(_has_area(frame.boxes) & ~_outside(frame.boxes, size)) for frame in objects]
    total, kept = sum(map(len, objects)), sum(map(len, visible))
    if kept < total:
        logger.info(
            f"{name}: {total - kept:,} of {total:,} boxes are ignored, they have no area or are outside of the image"
        )
    if kept == 0:
        logger.info(f"{name}: no box in any of the {len(frames)} frames, so there will be no tracks")
    return DetectionSequence(name, frames, tuple(visible), ground_truth)


def _check_image_size(file: Path, boxes: Boxes, size: tuple[int, int]) -> None:
    """Raise SequenceError if most boxes lie outside: they belong to other images. Real annotations have a few."""
    outside = int(_outside(boxes, size).sum())
    if 2 * outside > len(boxes):
        height, width = size
        raise SequenceError(f"{file}: {outside:,} of {len(boxes):,} boxes are outside of images of {width}x{height}")


def _outside(boxes: Boxes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return flags (k,) of boxes that lie entirely outside of an image of this height and width."""
    ends = boxes[:, :2] + boxes[:, 2:]
    return np.asarray(((ends <= 0) | (boxes[:, :2] >= size[::-1])).any(axis=1))


def _has_area(boxes: Boxes) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, 2:] > 0).all(axis=1))


def read_ground_truth(file: Path, frames: int, name: str) -> BoxGroundTruth:
    """Read lines of frame, id, left, top, width, height, flag, class and more. Lines of later frames are logged.

    Eight or nine columns with a class are the format of MOT16, MOT17 and MOT20. MOT20, recognized by ``name``, has one
    more class of distractors. Ten columns, or -1 as class, are the format of MOT15, which has no classes. A flag of 0
    excludes a box from the evaluation; without that column all boxes are evaluated.

    Raises:
        SequenceError: the file is damaged or empty, a box has no area, a class is unknown, or an id occurs twice in a
            frame.
    """
    table = read_table(file, 6)
    values = table.values
    if len(values) == 0:
        raise SequenceError(f"{file} is empty")
    table.check_unique_ids(1)
    flags = values[:, 6] if table.columns > 6 else np.ones(len(values))
    table.check(_has_area(values[:, 2:6]) | (flags == 0), "a box with a width and a height")
    classes, benchmark = np.full(len(values), PEDESTRIAN), "MOT15"
    if table.columns in (8, 9) and (values[:, 7] != -1).any():
        table.check(np.isin(values[:, 7], CLASSES), f"a class of {CLASSES[0]} to {CLASSES[-1]} in column 8")
        classes, benchmark = values[:, 7].astype(np.int64), "MOT20" if name.startswith("MOT20") else "MOT17"
    if later := int((values[:, 0] > frames).sum()):
        logger.info(
            f"{name}: {later:,} of {len(values):,} lines of {file.name} are ignored, their frames are after {frames}"
        )
    frame_rows = table.rows_per_frame(frames)
    return BoxGroundTruth(
        benchmark,
        [values[rows, 1].astype(np.int64) for rows in frame_rows],
        [values[rows, 2:6] for rows in frame_rows],
        [classes[rows] for rows in frame_rows],
        [flags[rows].astype(np.int64) for rows in frame_rows],
    )


def read_detections(file: Path, frames: int, min_score: float) -> list[FrameObjects]:
    """Read a file of detections, see ``open_box_detections``. Boxes without area are included.

    Raises:
        SequenceError: the file is damaged.
    """
    table = read_table(file, 6)
    values, columns = table.values, table.columns
    without_id = columns == 6 and bool((values[:, 1] != -1).any())
    boxes = values[:, 1:5] if without_id else values[:, 2:6]
    scores = values[:, 5] if without_id else values[:, 6] if columns > 6 else np.ones(len(values))
    has_scores = len(np.unique(scores)) > 1
    objects = FrameObjects(boxes, scores if has_scores else np.ones(len(scores)))
    kept = scores > min_score if has_scores else np.ones(len(scores), bool)
    return [objects.take(rows[kept[rows]]) for rows in table.rows_per_frame(frames)]


def write_tracks(folder: Path, name: str, tracks: Tracks) -> None:
    """Write ``NAME.txt`` in MOTChallenge's format: frame, id, left, top, width, height, score, -1, -1, -1 per line."""
    with atomic_write(folder / f"{name}.txt") as path, path.open("w", encoding="utf-8", newline="\n") as file:
        for number, frame in enumerate(tracks, 1):
            if frame.ids is None:
                raise ValueError("expected tracks with ids")
            for track_id, box, score in zip(
                frame.ids.tolist(), frame.boxes.tolist(), frame.scores.tolist(), strict=True
            ):
                file.write(f"{number},{track_id},{','.join(map(repr, box))},{score!r},-1,-1,-1\n")


def read_tracks(folder: Path, name: str, frames: int) -> list[FrameObjects]:
    """Read ``NAME.txt`` in MOTChallenge's format, with one entry for each of ``frames``.

    Raises:
        SequenceError: the file is damaged, a frame is after the last one, or an id occurs twice in a frame.
    """
    table = read_table(folder / f"{name}.txt", 7)
    values = table.values
    table.check(values[:, 0] <= frames, f"a frame of 1 to {frames}")
    table.check_unique_ids(1)
    objects = FrameObjects(values[:, 2:6], values[:, 6], values[:, 1].astype(np.int64))
    return [objects.take(rows) for rows in table.rows_per_frame(frames)]
