"""Reader of MOTSChallenge and KITTI MOTS (Voigtlaender et al. 2019): videos with a mask of every pedestrian or car.

``mots_format`` reads and writes the files of masks and tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.tracking.datasets.files import detection_files, frame_range, log_ignored, numbered_files
from mec.evaluate.tracking.datasets.motchallenge import read_frames, sequence_folders
from mec.evaluate.tracking.datasets.mots_format import (
    CLASSES,
    IGNORED,
    MaskRow,
    mask_objects,
    read_instances,
    read_mask_rows,
)
from mec.evaluate.tracking.sequences import (
    RLE,
    DetectionSequence,
    ImageFrames,
    SequenceError,
    SequenceLoaders,
    image_size,
    select_sequences,
)

KITTI_FRAME_RATE = 10.0


@dataclass(frozen=True)
class MaskGroundTruth:
    """Annotated objects of each frame, and the region that is not evaluated, a mask of size 0 x 0 if there is none."""

    ids: tuple[NDArray[np.int64], ...]
    masks: tuple[Sequence[RLE], ...]
    ignored: tuple[RLE, ...]


@dataclass(frozen=True)
class _Video:
    """Files of one video. ``ground_truth`` is a text file or a folder of instance images."""

    name: str
    images: Path
    is_kitti: bool
    ground_truth: Path


def open_mask_detections(
    data: Path, detections: str | None = None, names: Sequence[str] | None = None
) -> SequenceLoaders[DetectionSequence]:
    """Return loaders of the sequences by name. Their ``ground_truth`` is a MaskGroundTruth. Boxes enclose the masks.

    Args:
        data: for MOTSChallenge, one sequence, a folder of sequences, or a folder with sequences in train, with
            SEQUENCE/img1/000001.jpg and gt/gt.txt, gt/000001.png or ../instances/SEQUENCE/000001.png; its pedestrians
            are tracked. For KITTI MOTS, a folder with training/image_02/0000/000000.png, and with
            instances_txt/0000.txt or instances/0000/000000.png there or above. "0000 car" and "0000 pedestrian" are
            separate sequences, because a track has one class.
        detections: None for the masks of the ground truth, or a folder with 0000.txt or MOTS20-02.txt: lines of frame,
            id, class, height, width, run lengths and, in an optional seventh column, score. Masks may overlap.
        names: names or patterns of the sequences to load, such as "MOTS20-02" or "* car".

    Raises:
        InputError: there are no usable files at all. Errors in one sequence are raised when it is loaded.
    """
    layouts = "MOTSChallenge's train/SEQUENCE/img1/000001.jpg or KITTI MOTS' training/image_02/0000/000000.png"
    videos = _kitti_videos(data) or [
        _Video(f.name, f, False, _first_existing([f / "gt" / "gt.txt", f / "gt", f.parent / "instances" / f.name]))
        for f in sequence_folders(data, layouts)
    ]
    if not any(video.ground_truth.exists() for video in videos):
        raise InputError(f"data: no ground truth masks in {data}; expected {videos[0].ground_truth}")
    files = detection_files(detections, [video.name for video in videos], ".txt")
    loaders = {}
    for video in videos:
        for category in CLASSES if video.is_kitti else ["pedestrian"]:
            name = f"{video.name} {category}" if video.is_kitti else video.name
            loaders[name] = partial(_load, name, video, CLASSES[category], files[video.name])
    return select_sequences(loaders, names)


def _kitti_videos(data: Path) -> list[_Video]:
    bases = [base for base in (data, data / "training") if (base / "image_02").is_dir()]
    folders = sorted(f for base in bases[:1] for f in (base / "image_02").iterdir() if f.name.isdecimal())
    roots = dict.fromkeys([data, *bases])
    videos = []
    for folder in folders:
        texts = [root / "instances_txt" / f"{folder.name}.txt" for root in roots]
        images = [root / "instances" / folder.name for root in roots]
        videos.append(_Video(folder.name, folder, True, _first_existing([*texts, *images])))
    return videos


def _first_existing(paths: Sequence[Path]) -> Path:
    """Return the first text file or folder of .png files that exists, else the first path."""
    return next((path for path in paths if path.is_file() or any(path.glob("*.png"))), paths[0])


def _load(name: str, video: _Video, category: int, detections: Path | None) -> DetectionSequence:
    if video.is_kitti:
        numbered = numbered_files(video.images)
        frames = ImageFrames(frame_range(video.images, numbered, 0, max(numbered)), KITTI_FRAME_RATE)
        size = image_size(frames.files[0])
    else:
        frames, size = read_frames(video.images)
    first = 0 if video.is_kitti else 1
    if video.ground_truth.is_dir():
        images = {number: video.ground_truth / f"{number:06d}.png" for number in range(first, first + len(frames))}
        rows = [row for number, image in images.items() for row in read_instances(image, number)]
    else:
        rows = read_mask_rows(video.ground_truth)
    frame_rows = _rows_per_frame(video.name, rows, first, len(frames), size)
    for rows in frame_rows:
        _check_ground_truth(rows)
    of_class = [[row for row in rows if row.category == category] for rows in frame_rows]
    ground_truth = MaskGroundTruth(
        tuple(np.array([row.id for row in rows], np.int64) for rows in of_class),
        tuple([row.mask for row in rows] for rows in of_class),
        tuple(coco_mask.merge([row.mask for row in rows if row.category == IGNORED]) for rows in frame_rows),
    )
    if detections is not None:
        frame_rows = _rows_per_frame(video.name, read_mask_rows(detections), first, len(frames), size)
        of_class = [[row for row in rows if row.category == category and row.pixels] for rows in frame_rows]
    objects = [mask_objects([row.mask for row in rows], np.array([row.score for row in rows])) for rows in of_class]
    return DetectionSequence(name, frames, tuple(objects), ground_truth)


def _rows_per_frame(
    name: str, rows: Sequence[MaskRow], first: int, frames: int, size: tuple[int, int]
) -> list[list[MaskRow]]:
    frame_rows: list[list[MaskRow]] = [[] for _ in range(frames)]
    for row in rows:
        if row.frame < first:
            raise SequenceError(f"{row.location}: expected a frame, counted from {first}, got {row.frame}")
        if tuple(row.mask["size"]) != size:
            got = "x".join(map(str, reversed(row.mask["size"])))
            raise SequenceError(f"{row.location}: expected a mask of {size[1]}x{size[0]} as the first frame, got {got}")
        if row.frame - first < frames:
            frame_rows[row.frame - first].append(row)
    later, last = len(rows) - sum(map(len, frame_rows)), first + frames - 1
    log_ignored(name, later, len(rows), "masks", f"their frames are after {last}, the last one")
    return frame_rows


def _check_ground_truth(rows: Sequence[MaskRow]) -> None:
    seen: set[int] = set()
    for row in rows:
        if not row.pixels:
            raise SequenceError(f"{row.location}: the mask of object {row.id} is empty")
        if row.category != IGNORED and row.id in seen:
            raise SequenceError(f"{row.location}: object {row.id} occurs twice in frame {row.frame}")
        seen.add(row.id)
    if len(rows) > 1 and coco_mask.area(coco_mask.merge([row.mask for row in rows])) < sum(row.pixels for row in rows):
        pairs = ((a, b) for i, b in enumerate(rows) for a in rows[:i])
        a, b = next(pair for pair in pairs if coco_mask.iou([pair[0].mask], [pair[1].mask], [False])[0, 0] > 0)
        raise SequenceError(
            f"{b.location}: objects {a.id} and {b.id} overlap in frame {b.frame}; MOTS does not allow overlaps"
        )
