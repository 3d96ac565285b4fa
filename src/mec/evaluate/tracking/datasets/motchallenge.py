"""Pedestrians in boxes: the form of MOTChallenge (Milan et al. 2016), and its rules for MOT15, MOT16, MOT17 and MOT20.

Coordinates stay as the files have them; those of MOTChallenge count from 1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.engine.progress import log
from mec.errors import InputError
from mec.evaluate.tracking.datasets.motchallenge_frames import read_frames
from mec.evaluate.tracking.datasets.motchallenge_table import read_table
from mec.evaluate.tracking.metrics.identity import SequenceSimilarities, contiguous_ids
from mec.evaluate.tracking.metrics.trackeval_library import trackeval_dataset
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

CLASSES = np.arange(1, 14)
PEDESTRIAN = 1
DETECTORS = ("-DPM", "-FRCNN", "-SDP")
"""The ends of the names in MOT17, which has every video three times."""
TRUTH = "gt"
"""In place of a folder of detections: the boxes of the truth."""


@dataclass(frozen=True)
class BoxGroundTruth:
    """Who is where in each frame, those included who do not count.

    benchmark: trackeval's name of the one whose rules hold.
    classes: 1 where the file has none.
    flags: 0 for what does not count.
    """

    benchmark: str
    ids: Sequence[NDArray[np.int64]]
    boxes: Sequence[Boxes]
    classes: Sequence[NDArray[np.int64]]
    flags: Sequence[NDArray[np.int64]]


def open_box_detections(
    data: Path, detections: str | None = None, min_score: float = 0.5, names: Sequence[str] | None = None
) -> SequenceLoaders[DetectionSequence]:
    """Sequences with what was detected in them; ``truth`` is a BoxGroundTruth.

    Args:
        data: one sequence, a folder of some, or what has them in train. A sequence has img1/000001.jpg and gt/gt.txt,
            and may have seqinfo.ini and det/det.txt.
        detections: None for det/det.txt of each sequence, "gt" for the truth's own boxes that count, or a folder with
            SEQUENCE.txt, SEQUENCE/det.txt or SEQUENCE/det/det.txt. A line is frame, -1, left, top, width, height and
            score, or, with six columns, the same without the -1.
        min_score: boxes of larger scores are taken, on whatever scale they are; all, where all scores are equal.
        names: those to take, "MOT17-02-SDP" or patterns such as "*-FRCNN".

    Raises:
        InputError: nothing there that could be used; what is wrong with one sequence is raised when it is loaded.
    """
    if detections is not None:
        detections = os.path.expanduser(detections)
    folders = _chosen(_sequences(data), names)
    if not any((folder / "gt" / "gt.txt").is_file() for folder in folders.values()):
        raise InputError(f"data: no gt/gt.txt in {data}; expected the truth, which MOTChallenge keeps back for test")
    if detections is not None and detections != TRUTH and not Path(detections).is_dir():
        raise InputError(f'detections: no folder {detections}; expected "gt" or a folder with a SEQUENCE.txt of each')
    if detections != TRUTH and not any(_detections(folder, detections) for folder in folders.values()):
        name, place = next(iter(folders)), "det/det.txt"
        if detections is None:
            raise InputError(f'detections: no sequence of {data} has {place}; expected "gt" or a folder')
        raise InputError(f"detections: expected a file of each sequence in {detections}, such as {name}.txt, got none")
    return {name: partial(_load, folder, detections, min_score) for name, folder in folders.items()}


def _sequences(data: Path) -> list[Path]:
    if not data.is_dir():
        raise InputError(f"data: no folder {data}")
    if _is_sequence(data):
        return [Path(os.path.abspath(data))]  # named as it was called, were it a link
    for folder in (data / "train", data / "images" / "train", data):
        found = sorted(f for f in folder.glob("*") if _is_sequence(f))
        if found and folder != data and (folder.parent / "test").is_dir():
            log(f"{folder}: read; test is left out, for its truth is not public")
        if found:
            return found
    raise InputError(f"data: no sequence in {data}; expected MOTChallenge's train/SEQUENCE/img1/000001.jpg")


def _is_sequence(folder: Path) -> bool:
    return any((folder / inner).exists() for inner in ("seqinfo.ini", "img1", "gt/gt.txt", "det/det.txt"))


def _chosen(folders: list[Path], names: Sequence[str] | None) -> dict[str, Path]:
    known = select_sequences({folder.name: folder for folder in folders}, names)
    videos = {name.removesuffix(next(filter(name.endswith, DETECTORS), "")) for name in known}
    if not names and len(videos) < len(known):
        log(f'{len(known) - len(videos)} sequences are the videos of others; --sequences "*-FRCNN" takes each once')
    return known


def _detections(folder: Path, detections: str | None) -> Path | None:
    if detections is None:
        files = [folder / "det" / "det.txt"]
    else:
        files = [Path(detections, folder.name + end) for end in (".txt", "/det.txt", "/det/det.txt")]
    return next((file for file in files if file.is_file()), None)


def _load(folder: Path, detections: str | None, min_score: float) -> DetectionSequence:
    name = folder.name
    truth_file = folder / "gt" / "gt.txt"
    if not truth_file.is_file():
        raise SequenceError(f"no {truth_file}")
    frames, size = read_frames(folder)
    truth = read_ground_truth(truth_file, len(frames), name)
    _not_elsewhere(truth_file, np.concatenate(truth.boxes), size)
    if detections == TRUTH:
        counts = [(a != 0) & (b == PEDESTRIAN) for a, b in zip(truth.flags, truth.classes, strict=True)]
        given = [FrameObjects(box[some], np.ones(some.sum())) for box, some in zip(truth.boxes, counts, strict=True)]
    else:
        file = _detections(folder, detections)
        if file is None:
            raise SequenceError(f"no detections of {name} in {detections or folder}")
        given = read_detections(file, len(frames), min_score)
        _not_elsewhere(file, np.concatenate([found.boxes for found in given]), size)
    usable = [found.take(_has_area(found.boxes) & ~_outside(found.boxes, size)) for found in given]
    total, kept = (sum(map(len, some)) for some in (given, usable))
    if kept < total:
        log(f"{name}: {total - kept:,} of {total:,} boxes are left out, without area or outside the image")
    if kept == 0:
        log(f"{name}: no box in any of the {len(frames)} frames, so there will be no tracks")
    return DetectionSequence(name, frames, tuple(usable), truth)


def _not_elsewhere(file: Path, boxes: Boxes, size: tuple[int, int]) -> None:
    """Single boxes of real annotations are outside; most of them are when they are those of another image."""
    outside = int(_outside(boxes, size).sum())
    if 2 * outside > len(boxes):
        height, width = size
        raise SequenceError(f"{file}: {outside:,} of {len(boxes):,} boxes are outside images of {width}x{height}")


def _outside(boxes: Boxes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Wholly."""
    ends = boxes[:, :2] + boxes[:, 2:]
    return np.asarray(((ends <= 0) | (boxes[:, :2] >= size[::-1])).any(axis=1))


def _has_area(boxes: Boxes) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, 2:] > 0).all(axis=1))


def read_ground_truth(file: Path, frames: int, name: str) -> BoxGroundTruth:
    """Lines of frame, id, left, top, width, height, flag, class and more; those of later frames are remarked on.

    Eight or nine columns with a class are the form of MOT16, MOT17 and MOT20, where the last has one more class of
    distractors and is known by its ``name``. Ten, or -1 as class, are that of MOT15, without classes. A flag of 0 says
    that a box does not count; without that column all do.

    Raises:
        SequenceError: damage, no line, a box without area, an unknown class, or an id twice in a frame.
    """
    table = read_table(file, 6)
    values = table.values
    if len(values) == 0:
        raise SequenceError(f"{file} is empty")
    table.expect_once(1)
    flags = values[:, 6] if table.columns > 6 else np.ones(len(values))
    table.expect(_has_area(values[:, 2:6]) | (flags == 0), "a box with a width and a height")
    classes, benchmark = np.full(len(values), PEDESTRIAN), "MOT15"
    if table.columns in (8, 9) and (values[:, 7] != -1).any():
        table.expect(np.isin(values[:, 7], CLASSES), f"a class of {CLASSES[0]} to {CLASSES[-1]} in column 8")
        classes, benchmark = values[:, 7].astype(np.int64), "MOT20" if name.startswith("MOT20") else "MOT17"
    if later := int((values[:, 0] > frames).sum()):
        log(
            f"{name}: {later:,} of {len(values):,} lines of {file.name} are of frames after {frames}; they are left out"
        )
    rows = table.per_frame(frames)
    return BoxGroundTruth(
        benchmark,
        [values[these, 1].astype(np.int64) for these in rows],
        [values[these, 2:6] for these in rows],
        [classes[these] for these in rows],
        [flags[these].astype(np.int64) for these in rows],
    )


def read_detections(file: Path, frames: int, min_score: float) -> list[FrameObjects]:
    """What ``open_box_detections`` says of ``detections``, boxes without area included.

    Raises:
        SequenceError: damage.
    """
    table = read_table(file, 6)
    values, columns = table.values, table.columns
    short = columns == 6 and bool((values[:, 1] != -1).any())
    boxes = values[:, 1:5] if short else values[:, 2:6]
    scores = values[:, 5] if short else values[:, 6] if columns > 6 else np.ones(len(values))
    said = len(np.unique(scores)) > 1
    found = FrameObjects(boxes, scores if said else np.ones(len(scores)))
    taken = scores > min_score if said else np.ones(len(scores), bool)
    return [found.take(rows[taken[rows]]) for rows in table.per_frame(frames)]


def box_similarities(sequence: DetectionSequence, tracks: Tracks) -> SequenceSimilarities:
    """After MOTChallenge's own preprocessing, by trackeval: of the truth only pedestrians with a flag count.

    With the rules of MOT16, MOT17 and MOT20, a box of a track that fits somebody on a vehicle, a standing person, a
    distractor or a reflection is neither right nor wrong. ``read_ground_truth`` says which rules hold.

    Args:
        sequence: of ``open_box_detections``; only its ``truth`` is used.
        tracks: one for each frame; no id is in a frame twice.
    """
    truth: BoxGroundTruth = sequence.ground_truth
    if len(tracks) != len(truth.ids):
        raise ValueError(f"{sequence.name}: expected tracks of {len(truth.ids)} frames, got {len(tracks)}")
    rules = trackeval_dataset("MotChallenge2DBox", BENCHMARK=truth.benchmark)
    pairs = zip(truth.boxes, tracks, strict=True)
    raw = {
        "num_timesteps": len(tracks),
        "seq": sequence.name,
        "gt_ids": contiguous_ids(truth.ids),
        "gt_dets": truth.boxes,
        "gt_classes": truth.classes,
        "gt_extras": [{"zero_marked": flags} for flags in truth.flags],
        "tracker_ids": contiguous_ids([_ids(found) for found in tracks]),
        "tracker_dets": [found.boxes for found in tracks],
        "tracker_classes": [np.full(len(found), PEDESTRIAN) for found in tracks],
        "tracker_confidences": [found.scores for found in tracks],
        "similarity_scores": [rules._calculate_similarities(boxes, found.boxes) for boxes, found in pairs],
    }
    data = rules.get_preprocessed_seq_data(raw, "pedestrian")
    return SequenceSimilarities(data["gt_ids"], data["tracker_ids"], data["similarity_scores"])


def _ids(found: FrameObjects) -> NDArray[np.int64]:
    if found.ids is None:
        raise ValueError("expected tracks with ids")
    return found.ids


def write_tracks(folder: Path, name: str, tracks: Tracks) -> None:
    """``name``.txt with lines of frame, id, left, top, width, height, score, -1, -1, -1, as MOTChallenge asks for."""
    with atomic_write(folder / f"{name}.txt") as path, path.open("w", encoding="utf-8", newline="\n") as file:
        for frame, found in enumerate(tracks, 1):
            for number, box, score in zip(
                _ids(found).tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True
            ):
                file.write(f"{frame},{number},{','.join(map(repr, box))},{score!r},-1,-1,-1\n")


def read_tracks(folder: Path, name: str, frames: int) -> list[FrameObjects]:
    """What ``write_tracks`` wrote, or others in this form, with one entry for each of ``frames``.

    Raises:
        SequenceError: damage, frames after the last, or an id twice in a frame.
    """
    table = read_table(folder / f"{name}.txt", 7)
    values = table.values
    table.expect(values[:, 0] <= frames, f"a frame of 1 to {frames}")
    table.expect_once(1)
    found = FrameObjects(values[:, 2:6], values[:, 6], values[:, 1].astype(np.int64))
    return [found.take(rows) for rows in table.per_frame(frames)]
