"""Reader of MOTSChallenge and KITTI MOTS (Voigtlaender et al. 2019): videos with a mask of every pedestrian or car.

``mots_format`` reads and writes the files of masks and tracks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.data.decode import EXTENSIONS
from mec.errors import InputError
from mec.evaluate.tracking.datasets.motchallenge_frames import read_frames
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
    read_frame,
    select_sequences,
)

logger = logging.getLogger("mec")

KITTI_FRAME_RATE = 10.0
Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class MaskGroundTruth:
    """Annotated objects of each frame, and the region that is not evaluated, a mask of size 0 x 0 if there is none."""

    ids: tuple[NDArray[np.int64], ...]
    masks: tuple[Sequence[RLE], ...]
    ignored: tuple[RLE, ...]


@dataclass(frozen=True)
class _VideoFiles:
    """Files of one video.

    first: number of the first frame, 0 for KITTI and 1 for MOTSChallenge.
    text_files, instance_folders: where the ground truth may be.
    """

    name: str
    images: Path
    first: int
    text_files: tuple[Path, ...]
    instance_folders: tuple[Path, ...]

    @property
    def is_kitti(self) -> bool:
        return self.first == 0

    def text_file(self) -> Path | None:
        return next((file for file in self.text_files if file.is_file()), None)

    def instance_folder(self) -> Path | None:
        return next((folder for folder in self.instance_folders if any(folder.glob("*.png"))), None)


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
    if detections is not None:
        detections = os.path.expanduser(detections)
    if not data.is_dir():
        raise InputError(f"data: no folder {data}")
    loaders: dict[str, Callable[[], DetectionSequence]] = {}
    videos = _kitti_videos(data) or _motschallenge_videos(data)
    for video in videos:
        for category in CLASSES if video.is_kitti else ["pedestrian"]:
            name = f"{video.name} {category}" if video.is_kitti else video.name
            loaders[name] = partial(_load, name, video, CLASSES[category], detections)
    if not loaders:
        layouts = "MOTSChallenge's train/SEQUENCE/img1/000001.jpg or KITTI MOTS' training/image_02/0000/000000.png"
        raise InputError(f"data: no sequence in {data}; expected {layouts}")
    if not any(video.text_file() or video.instance_folder() for video in videos):
        raise InputError(f"data: no ground truth masks in {data}; expected {videos[0].text_files[0]}")
    if detections is not None and not any(Path(detections, f"{video.name}.txt").is_file() for video in videos):
        example = f"{videos[0].name}.txt"
        raise InputError(f"detections: expected a file for each sequence in {detections}, such as {example}, got none")
    return select_sequences(loaders, names)


def _kitti_videos(data: Path) -> list[_VideoFiles]:
    bases = [base for base in (data, data / "training") if (base / "image_02").is_dir()]
    roots = dict.fromkeys([data, *bases])
    return [
        _VideoFiles(
            folder.name,
            folder,
            0,
            tuple(root / "instances_txt" / f"{folder.name}.txt" for root in roots),
            tuple(root / "instances" / folder.name for root in roots),
        )
        for base in bases[:1]
        for folder in sorted((base / "image_02").iterdir())
        if folder.is_dir() and folder.name.isdecimal()
    ]


def _motschallenge_videos(data: Path) -> list[_VideoFiles]:
    folders = [data.absolute()] if (data / "img1").is_dir() else []
    for parent in (data / "train", data / "images" / "train", data):
        folders = folders or sorted(folder.parent for folder in parent.glob("*/img1"))
    return [
        _VideoFiles(f.name, f, 1, (f / "gt" / "gt.txt",), (f / "gt", f.parent / "instances" / f.name)) for f in folders
    ]


def _load(name: str, video: _VideoFiles, category: int, detections: str | None) -> DetectionSequence:
    frames, size = _kitti_frames(video.images) if video.is_kitti else read_frames(video.images)
    frame_rows = _rows_per_frame(video, _ground_truth_rows(video, len(frames)), len(frames), size)
    for rows in frame_rows:
        _check_ground_truth(rows)
    of_class = [[row for row in rows if row.category == category] for rows in frame_rows]
    ground_truth = MaskGroundTruth(
        tuple(np.array([row.id for row in rows], np.int64) for rows in of_class),
        tuple([row.mask for row in rows] for rows in of_class),
        tuple(coco_mask.merge([row.mask for row in rows if row.category == IGNORED]) for rows in frame_rows),
    )
    if detections is not None:
        file = Path(detections, f"{video.name}.txt")
        frame_rows = _rows_per_frame(video, read_mask_rows(file), len(frames), size)
        of_class = [[row for row in rows if row.category == category and row.pixels] for rows in frame_rows]
    objects = [mask_objects([row.mask for row in rows], np.array([row.score for row in rows])) for rows in of_class]
    return DetectionSequence(name, frames, tuple(objects), ground_truth)


def _kitti_frames(folder: Path) -> tuple[ImageFrames, Size]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS and file.name[0] != ".")
    for number, file in enumerate(files):
        if file.stem != f"{number:06d}":
            raise SequenceError(f"{folder}: expected frames 000000, 000001, ... without gaps, got {file.name}")
    if not files:
        raise SequenceError(f"no image in {folder}")
    height, width = read_frame(files[0]).shape[:2]
    return ImageFrames(tuple(files), KITTI_FRAME_RATE), (height, width)


def _ground_truth_rows(video: _VideoFiles, frames: int) -> list[MaskRow]:
    text_file, folder = video.text_file(), video.instance_folder()
    if text_file is not None:
        return read_mask_rows(text_file)
    if folder is None:
        raise SequenceError(f"no {video.text_files[0]}")
    numbers = range(video.first, video.first + frames)
    return [row for number in numbers for row in read_instances(folder / f"{number:06d}.png", number)]


def _rows_per_frame(video: _VideoFiles, rows: Sequence[MaskRow], frames: int, size: Size) -> list[list[MaskRow]]:
    frame_rows: list[list[MaskRow]] = [[] for _ in range(frames)]
    later = 0
    for row in rows:
        if row.frame < video.first:
            raise SequenceError(f"{row.location}: expected a frame, counted from {video.first}, got {row.frame}")
        if tuple(row.mask["size"]) != size:
            got = "x".join(map(str, reversed(row.mask["size"])))
            raise SequenceError(f"{row.location}: expected a mask of {size[1]}x{size[0]} as the first frame, got {got}")
        if row.frame - video.first < frames:
            frame_rows[row.frame - video.first].append(row)
        else:
            later += 1
    if later:
        last = video.first + frames - 1
        logger.info(
            f"{video.name}: {later:,} of {len(rows):,} masks are ignored, their frames are after {last}, the last one"
        )
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
