"""Videos with a mask of every pedestrian or car: MOTSChallenge and KITTI MOTS (Voigtlaender et al. 2019)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.data.decode import EXTENSIONS
from mec.engine.progress import log
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

KITTIS_RATE = 10.0
"""Frames a second."""
Size = tuple[int, int]


@dataclass(frozen=True)
class MaskGroundTruth:
    """Of each frame: who is where, and the region in which nothing counts, of no size where there is none."""

    ids: tuple[NDArray[np.int64], ...]
    masks: tuple[Sequence[RLE], ...]
    ignored: tuple[RLE, ...]


@dataclass(frozen=True)
class _Place:
    """A video on disk. first: number of the first frame. texts, folders: where the truth may be."""

    name: str
    images: Path
    first: int
    texts: tuple[Path, ...]
    folders: tuple[Path, ...]

    def text(self) -> Path | None:
        return next((file for file in self.texts if file.is_file()), None)

    def folder(self) -> Path | None:
        return next((folder for folder in self.folders if any(folder.glob("*.png"))), None)


def open_mask_detections(
    data: Path, detections: str | None = None, names: Sequence[str] | None = None
) -> SequenceLoaders[DetectionSequence]:
    """Sequences with the masks found in them; ``truth`` is a MaskGroundTruth. Boxes are those around the masks.

    Args:
        data: of MOTSChallenge one sequence, a folder of some, or what has them in train: SEQUENCE/img1/000001.jpg, with
            gt/gt.txt, gt/000001.png or ../instances/SEQUENCE/000001.png; its pedestrians are followed. Of KITTI MOTS
            what has training/image_02/0000/000000.png, with instances_txt/0000.txt or instances/0000/000000.png there
            or above; "0000 car" and "0000 pedestrian" are sequences of their own, for no track is of both.
        detections: None for the truth's own masks, or a folder with 0000.txt or MOTS20-02.txt: lines of frame, id,
            class, height, width, run lengths and, if there is a seventh column, score. They may overlap.
        names: those to take, "MOTS20-02" or patterns such as "* car".

    Raises:
        InputError: nothing there that could be used; what is wrong with one sequence is raised when it is loaded.
    """
    if detections is not None:
        detections = os.path.expanduser(detections)
    if not data.is_dir():
        raise InputError(f"data: no folder {data}")
    loads: dict[str, Callable[[], DetectionSequence]] = {}
    places = _kittis(data) or _challenges(data)
    for place in places:
        for word in CLASSES if place.first == 0 else ["pedestrian"]:
            name = f"{place.name} {word}" if place.first == 0 else place.name
            loads[name] = partial(_load, name, place, CLASSES[word], detections)
    if not loads:
        forms = "MOTSChallenge's train/SEQUENCE/img1/000001.jpg or KITTI MOTS' training/image_02/0000/000000.png"
        raise InputError(f"data: no sequence in {data}; expected {forms}")
    if not any(place.text() or place.folder() for place in places):
        raise InputError(f"data: no masks of the truth in {data}; expected {places[0].texts[0]}")
    if detections is not None and not any(Path(detections, f"{place.name}.txt").is_file() for place in places):
        some = f"such as {places[0].name}.txt"
        raise InputError(f"detections: expected a file of each sequence in {detections}, {some}, got none")
    return select_sequences(loads, names)


def _kittis(data: Path) -> list[_Place]:
    bases = [base for base in (data, data / "training") if (base / "image_02").is_dir()]
    roots = dict.fromkeys([data, *bases])
    return [
        _Place(
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


def _challenges(data: Path) -> list[_Place]:
    folders = [data.absolute()] if (data / "img1").is_dir() else []
    for above in (data / "train", data / "images" / "train", data):
        folders = folders or sorted(folder.parent for folder in above.glob("*/img1"))
    return [_Place(f.name, f, 1, (f / "gt" / "gt.txt",), (f / "gt", f.parent / "instances" / f.name)) for f in folders]


def _load(name: str, place: _Place, category: int, detections: str | None) -> DetectionSequence:
    frames, size = _kittis_frames(place.images) if place.first == 0 else read_frames(place.images)
    rows = _per_frame(place, _truth_rows(place, len(frames)), len(frames), size)
    for some in rows:
        _check_truth(some)
    of_class = [[row for row in some if row.category == category] for some in rows]
    truth = MaskGroundTruth(
        tuple(np.array([row.id for row in some], np.int64) for some in of_class),
        tuple([row.mask for row in some] for some in of_class),
        tuple(coco_mask.merge([row.mask for row in some if row.category == IGNORED]) for some in rows),
    )
    if detections is not None:
        file = Path(detections, f"{place.name}.txt")
        rows = _per_frame(place, read_mask_rows(file), len(frames), size)
        of_class = [[row for row in some if row.category == category and row.pixels] for some in rows]
    given = [mask_objects([row.mask for row in some], np.array([row.score for row in some])) for some in of_class]
    return DetectionSequence(name, frames, tuple(given), truth)


def _kittis_frames(folder: Path) -> tuple[ImageFrames, Size]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS and file.name[0] != ".")
    for number, file in enumerate(files):
        if file.stem != f"{number:06d}":
            raise SequenceError(f"{folder}: expected frames 000000, 000001 ... without gaps, got {file.name}")
    if not files:
        raise SequenceError(f"no image in {folder}")
    height, width = read_frame(files[0]).shape[:2]
    return ImageFrames(tuple(files), KITTIS_RATE), (height, width)


def _truth_rows(place: _Place, frames: int) -> list[MaskRow]:
    text, folder = place.text(), place.folder()
    if text is not None:
        return read_mask_rows(text)
    if folder is None:
        raise SequenceError(f"no {place.texts[0]}")
    numbers = range(place.first, place.first + frames)
    return [row for number in numbers for row in read_instances(folder / f"{number:06d}.png", number)]


def _per_frame(place: _Place, rows: Sequence[MaskRow], frames: int, size: Size) -> list[list[MaskRow]]:
    each: list[list[MaskRow]] = [[] for _ in range(frames)]
    later = 0
    for row in rows:
        if row.frame < place.first:
            raise SequenceError(f"{row.place}: expected a frame, counted from {place.first}, got {row.frame}")
        if tuple(row.mask["size"]) != size:
            got = "x".join(map(str, reversed(row.mask["size"])))
            raise SequenceError(f"{row.place}: a mask of {got}, expected {size[1]}x{size[0]} as the first frame")
        if row.frame - place.first < frames:
            each[row.frame - place.first].append(row)
        else:
            later += 1
    if later:
        last = place.first + frames - 1
        log(f"{place.name}: {later:,} of {len(rows):,} masks are of frames after {last}, the last; they are left out")
    return each


def _check_truth(rows: Sequence[MaskRow]) -> None:
    seen: set[int] = set()
    for row in rows:
        if not row.pixels:
            raise SequenceError(f"{row.place}: the mask of object {row.id} has no pixel")
        if row.category != IGNORED and row.id in seen:
            raise SequenceError(f"{row.place}: object {row.id} is twice in frame {row.frame}")
        seen.add(row.id)
    if len(rows) > 1 and coco_mask.area(coco_mask.merge([row.mask for row in rows])) < sum(row.pixels for row in rows):
        pairs = ((a, b) for i, b in enumerate(rows) for a in rows[:i])
        a, b = next(pair for pair in pairs if coco_mask.iou([pair[0].mask], [pair[1].mask], [False])[0, 0] > 0)
        raise SequenceError(f"{b.place}: objects {a.id} and {b.id} overlap in frame {b.frame}; MOTS allows none to")
