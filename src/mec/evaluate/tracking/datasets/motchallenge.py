"""Reader and writer of MOTChallenge's format (Milan et al. 2016): MOT15, MOT16, MOT17 and MOT20. Coordinates stay as
they are in the files; MOTChallenge counts them from 1."""

from __future__ import annotations

import configparser
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.data.decode import EXTENSIONS
from mec.errors import InputError
from mec.evaluate.tracking.datasets.files import (
    check_boxes,
    check_detections,
    check_folder,
    count,
    frame_range,
    log_ignored,
    log_unannotated,
    numbered_files,
    outside,
)
from mec.evaluate.tracking.sequences import (
    Boxes,
    DetectionSequence,
    FrameObjects,
    ImageFrames,
    SequenceError,
    SequenceLoaders,
    Tracks,
    image_size,
    select_sequences,
)
from mec.files import atomic_write
from mec.text_files import NumberTable, read_numbers, read_text

logger = logging.getLogger("mec")

CLASSES = np.arange(1, 14)
PEDESTRIAN = 1
DETECTORS = ("-DPM", "-FRCNN", "-SDP")  # suffixes of the sequence names in MOT17, which has every video three times
GROUND_TRUTH = "gt"  # value of ``detections`` that selects the boxes of the ground truth


@dataclass(frozen=True)
class BoxGroundTruth:
    """Annotated objects of each frame, including those that are not evaluated, whose flag is 0."""

    benchmark: str  # trackeval's name of the benchmark whose rules apply
    ids: Sequence[NDArray[np.int64]]
    boxes: Sequence[Boxes]
    classes: Sequence[NDArray[np.int64]]
    flags: Sequence[NDArray[np.int64]]

    def evaluated(self) -> list[NDArray[np.bool_]]:
        """Return flags (k,) of the boxes of each frame that the metrics count."""
        return [(flags != 0) & (classes == PEDESTRIAN) for flags, classes in zip(self.flags, self.classes, strict=True)]


def open_box_detections(
    data: Path, detections: str | None = None, min_score: float = 0.5, names: Sequence[str] | None = None
) -> SequenceLoaders[DetectionSequence]:
    """Return loaders of the sequences by name. Their ``ground_truth`` is a BoxGroundTruth.

    A sequence has img1/000001.jpg and gt/gt.txt, and may have seqinfo.ini and det/det.txt. ``detections`` is None for
    det/det.txt, "gt" for the evaluated boxes of the ground truth, or a folder with SEQUENCE.txt, SEQUENCE/det.txt or
    SEQUENCE/det/det.txt. A line is frame, -1, left, top, width, height and score, or, with six columns, the same
    without the -1. Boxes with a score above ``min_score`` are kept, or all where all scores are equal.
    """
    all_folders, description = sequence_folders(data, "MOTChallenge's train/SEQUENCE/img1/000001.jpg")
    folders = select_sequences({folder.name: folder for folder in all_folders}, names)
    videos = {name.removesuffix(next(filter(name.endswith, DETECTORS), "")) for name in folders}
    if not names and len(videos) < len(folders):
        repeated = count(len(folders) - len(videos), "sequence")
        description += f'; {repeated} repeat the video of another one, --sequences "*-FRCNN" loads each video once'
    if not any((folder / "gt" / "gt.txt").is_file() for folder in folders.values()):
        raise InputError(f"data: no gt/gt.txt in {data}; the ground truth of MOTChallenge's test set is not public")
    files = {name: _detection_file(folder, detections) for name, folder in folders.items()}
    if not any(file.is_file() for file in files.values()):
        example = next(iter(files.values()))
        raise InputError(f'detections: expected "gt" or a file for each sequence, such as {example}, got none')
    source = {None: "det/det.txt", GROUND_TRUTH: "the ground truth"}.get(detections, f"{detections}/SEQUENCE.txt")
    loaders = {name: partial(_load, folder, files[name], min_score) for name, folder in folders.items()}
    return SequenceLoaders(loaders, f"MOTChallenge's layout in {description}; detections of {source}")


def sequence_folders(data: Path, layout: str) -> tuple[list[Path], str]:
    """Return the folders of sequences in ``data``, which may be one, and a description of what was selected. Raises
    InputError with the layout if there is none."""
    check_folder(data)
    if _is_sequence(data):
        return [Path(os.path.abspath(data))], str(data)  # abspath keeps the name of a symbolic link
    for folder in (data / "train", data / "images" / "train", data):
        subfolders = sorted(f for f in folder.glob("[!.]*") if f.is_dir())
        sequences = [f for f in subfolders if _is_sequence(f)]
        if not sequences:
            continue
        description = str(folder)
        if others := [f.name for f in subfolders if f not in sequences]:
            description += f"; no sequences: {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}"
        if folder != data and (folder.parent / "test").is_dir():
            description += "; test is ignored, its ground truth is not public"
        return sequences, description
    raise InputError(f"data: no sequence in {data}; expected {layout}")


def _is_sequence(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("seqinfo.ini", "img1", "gt/gt.txt", "det/det.txt"))


def _detection_file(folder: Path, detections: str | None) -> Path:
    """Return the first file that exists, else the first of all."""
    if detections is None:
        return folder / "det" / "det.txt"
    if detections == GROUND_TRUTH:
        return folder / "gt" / "gt.txt"
    files = [Path(detections, folder.name + end).expanduser() for end in (".txt", "/det.txt", "/det/det.txt")]
    return next(filter(Path.is_file, files), files[0])


def _load(folder: Path, detection_file: Path, min_score: float) -> DetectionSequence:
    name, file = folder.name, folder / "gt" / "gt.txt"
    frames, size = read_frames(folder)
    ground_truth = read_ground_truth(file, len(frames), name)
    evaluated = [boxes[rows] for boxes, rows in zip(ground_truth.boxes, ground_truth.evaluated(), strict=True)]
    check_boxes(name, file, np.concatenate(evaluated), size)
    if detection_file == file:
        objects = [FrameObjects(boxes, np.ones(len(boxes))) for boxes in evaluated]
    else:
        objects = read_detections(detection_file, len(frames), min_score, name)
        check_boxes(name, detection_file, np.concatenate([frame.boxes for frame in objects]), size)
    visible = [frame.take(_has_area(frame.boxes) & ~outside(frame.boxes, size)) for frame in objects]
    total = sum(map(len, objects))
    ignored = {"without area or outside of the image": total - sum(map(len, visible))}
    log_ignored(name, total, "boxes", ignored)
    log_unannotated(name, evaluated)
    check_detections(name, visible, evaluated)
    ids = np.concatenate(ground_truth.ids)[np.concatenate(ground_truth.evaluated())]
    return DetectionSequence(name, frames, tuple(visible), ground_truth, len(np.unique(ids)))


def read_frames(folder: Path) -> tuple[ImageFrames, tuple[int, int]]:
    """Return the frames 1, 2, ... of a sequence, and their height and width. In seqinfo.ini, imDir is their folder
    (default: img1) and imExt their extension; images after seqLength are ignored."""
    parser, file = configparser.ConfigParser(interpolation=None), folder / "seqinfo.ini"
    text = read_text(file) if file.exists() else ""
    try:
        parser.read_string(text)
        info = parser["Sequence" if parser.sections() else "DEFAULT"]
        images, extension = folder / info.get("imDir", "img1"), info.get("imExt", "").lstrip(".").lower()
        frame_rate = info.getfloat("frameRate", ImageFrames.frame_rate)
        length, height, width = (info.getint(key) for key in ("seqLength", "imHeight", "imWidth"))
        if "frameRate" not in info:
            logger.info(f"{folder.name}: no frameRate in seqinfo.ini, {frame_rate:g} per second is assumed")
        if not 0 < frame_rate < math.inf or (length is not None and length < 1):
            raise ValueError(f"expected a frame rate and a length above 0, got {frame_rate} and {length}")
    except (configparser.Error, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SequenceError(f"{file}: expected [Sequence] and lines of key=value ({reason})") from error
    numbered = numbered_files(images, {f".{extension}"} if extension else EXTENSIONS)
    if 0 in numbered:
        raise SequenceError(f"{images}: expected frames 1, 2, ..., got {numbered[0].name}")
    files = frame_range(images, numbered, 1, max(numbered))
    if length not in (None, len(files)):
        logger.warning(
            f"{folder.name}: {len(files):,} frames exist, {length:,} are in seqinfo.ini; the smaller number is used"
        )
    size = image_size(files[0])
    expected = (height or size[0], width or size[1])
    if expected != size:
        raise SequenceError(
            f"{files[0]}: expected {expected[1]}x{expected[0]} from seqinfo.ini, got {size[1]}x{size[0]}"
        )
    return ImageFrames(files[:length], frame_rate), size


def _has_area(boxes: Boxes) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, 2:] > 0).all(axis=1))


def _read_rows(file: Path, columns: int, with_ids: bool) -> NumberTable:
    """Read rows that begin with a frame, counted from 1, and with an id that occurs once in a frame."""
    table = read_numbers(file, columns, more=True)
    frames, ids = table.values[:, 0], table.values[:, 1]
    table.check(np.isfinite(table.values).all(axis=1), "finite numbers")
    table.check((frames >= 1) & (frames == np.rint(frames)), "a frame, counted from 1, in column 1")
    if with_ids:
        table.check((ids == np.rint(ids)) & (abs(ids) < 2**53), "an integer in column 2")
        first_rows = np.unique(table.values[:, :2], axis=0, return_index=True)[1]
        table.check(np.isin(np.arange(len(ids)), first_rows), "the id in column 2 once per frame")
    return table


def _rows_per_frame(table: NumberTable, count: int) -> list[NDArray[np.int64]]:
    """Return the row numbers of frames 1 to ``count``, in the order of the file. Later frames are ignored."""
    frames = table.values[:, 0]
    order = np.argsort(frames, kind="stable")
    return np.split(order, np.searchsorted(frames[order], np.arange(1, count + 1), side="right"))[:-1]


def read_ground_truth(file: Path, frames: int, name: str) -> BoxGroundTruth:
    """Read lines of frame, id, left, top, width, height, flag, class and more. Lines of later frames are logged.

    Eight or nine columns with a class are the format of MOT16, MOT17 and MOT20. MOT20, recognized by ``name``, has one
    more class of distractors. Ten columns, or -1 as class, are the format of MOT15, which has no classes. A flag of 0
    excludes a box from the evaluation; without that column all boxes are evaluated.

    Raises:
        SequenceError: no box is evaluated.
        TextError: other content; a flag that is not an integer, such as a score, which trackeval would truncate to 0.
    """
    table = _read_rows(file, 6, with_ids=True)
    values = table.values
    if len(values) == 0:
        raise SequenceError(f"{file} is empty")
    columns = values.shape[1]
    flags = values[:, 6] if columns > 6 else np.ones(len(values))
    table.check(flags == np.rint(flags), "a flag of 1, or 0 for a box that is not evaluated, in column 7")
    table.check(_has_area(values[:, 2:6]) | (flags == 0), "a box with a width and a height")
    classes, benchmark = np.full(len(values), PEDESTRIAN), "MOT15"
    if columns not in (8, 9) or (values[:, 7] == -1).all():
        logger.info(f"{name}: {file.name} has no classes, so all boxes are evaluated as people, as in MOT15")
    else:
        table.check(np.isin(values[:, 7], CLASSES), f"a class of {CLASSES[0]} to {CLASSES[-1]} in column 8")
        classes, benchmark = values[:, 7].astype(np.int64), "MOT20" if name.startswith("MOT20") else "MOT17"
    later = values[:, 0] > frames
    ignored = {
        f"after frame {frames:,}, the last one": int(later.sum()),
        "with flag 0": int(((flags == 0) & ~later).sum()),
        f"of other classes than {PEDESTRIAN}": int(((classes != PEDESTRIAN) & (flags != 0) & ~later).sum()),
    }
    if sum(ignored.values()) == len(values):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in ignored.items() if number)
        raise SequenceError(f"{file}: none of the {len(values):,} lines is evaluated: {reasons}")
    log_ignored(name, len(values), f"lines of {file.name}", ignored, expected=not later.any())
    frame_rows = _rows_per_frame(table, frames)
    return BoxGroundTruth(
        benchmark,
        [values[rows, 1].astype(np.int64) for rows in frame_rows],
        [values[rows, 2:6] for rows in frame_rows],
        [classes[rows] for rows in frame_rows],
        [flags[rows].astype(np.int64) for rows in frame_rows],
    )


def read_detections(file: Path, frames: int, min_score: float, name: str) -> list[FrameObjects]:
    """Read a file of detections of the sequence ``name``, see ``open_box_detections``, including boxes without area.
    Raises TextError, or SequenceError if all lines are of other frames."""
    table = _read_rows(file, 6, with_ids=False)
    values, columns = table.values, table.values.shape[1]
    without_id = columns == 6 and bool((values[:, 1] != -1).any())
    if without_id:
        logger.info(f"{name}: the six columns of {file.name} are read as frame, left, top, width, height, score")
    boxes = values[:, 1:5] if without_id else values[:, 2:6]
    scores = values[:, 5] if without_id else values[:, 6] if columns > 6 else np.ones(len(values))
    kept = scores > min_score
    if len(np.unique(scores)) == 1:  # no scores
        if not kept.any():
            logger.info(f"{name}: all scores of {file.name} are {scores[0]:g}; all boxes are used")
        kept, scores = np.ones(len(values), bool), np.ones(len(values))
    later = values[:, 0] > frames
    if len(values) and later.all():
        raise SequenceError(f"{file}: expected frames 1 to {frames:,}, got {values[:, 0].min():,.0f} and later")
    low = int((~kept & ~later).sum())
    ignored = {f"after frame {frames:,}, the last one": int(later.sum()), f"with scores up to {min_score:g}": low}
    log_ignored(name, len(values), f"lines of {file.name}", ignored, expected=not later.any())
    objects = FrameObjects(boxes, scores)
    return [objects.take(rows[kept[rows]]) for rows in _rows_per_frame(table, frames)]


def write_tracks(folder: Path, name: str, tracks: Tracks) -> None:
    """Write ``NAME.txt`` in MOTChallenge's format: frame, id, left, top, width, height, score, -1, -1, -1 per line."""
    with atomic_write(folder / f"{name}.txt") as path, path.open("w", encoding="utf-8", newline="\n") as file:
        for number, frame in enumerate(tracks, 1):
            assert frame.ids is not None
            objects = zip(frame.ids.tolist(), frame.boxes.tolist(), frame.scores.tolist(), strict=True)
            for track_id, box, score in objects:
                file.write(f"{number},{track_id},{','.join(map(repr, box))},{score!r},-1,-1,-1\n")


def read_tracks(folder: Path, name: str, frames: int) -> list[FrameObjects]:
    """Read ``NAME.txt`` in MOTChallenge's format, with one entry for each of ``frames``."""
    table = _read_rows(folder / f"{name}.txt", 7, with_ids=True)
    values = table.values
    table.check(values[:, 0] <= frames, f"a frame of 1 to {frames}")
    objects = FrameObjects(values[:, 2:6], values[:, 6], values[:, 1].astype(np.int64))
    return [objects.take(rows) for rows in _rows_per_frame(table, frames)]
