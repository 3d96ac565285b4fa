"""Reader and writer of MOTSChallenge and KITTI MOTS (Voigtlaender et al. 2019): masks of every pedestrian or car."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import parse_rle_counts
from mec.evaluate.tracking.datasets.files import detection_files, frame_range, log_ignored, numbered_files, read_lines
from mec.evaluate.tracking.datasets.motchallenge import read_frames, sequence_folders
from mec.evaluate.tracking.sequences import (
    RLE,
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

CLASSES = {"car": 1, "pedestrian": 2}
IGNORED = 10  # class of the regions that are not evaluated
CLASS_MULTIPLIER = 1000  # a pixel of an instance image is class * CLASS_MULTIPLIER + instance
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

    MOTSChallenge: SEQUENCE/img1/000001.jpg with gt/gt.txt, gt/000001.png or ../instances/SEQUENCE/000001.png. KITTI
    MOTS: training/image_02/0000/000000.png with instances_txt/0000.txt or instances/0000/000000.png there or above;
    "0000 car" and "0000 pedestrian" are separate sequences, because a track has one class. ``detections`` is a folder
    of MOTS20-02.txt or 0000.txt, whose masks may overlap; None takes the masks of the ground truth.
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


@dataclass(frozen=True)
class MaskRow:
    """An object in a frame. ``location`` is the file and line it was read from, for error messages."""

    location: str
    frame: int
    id: int
    category: int
    mask: RLE
    pixels: int
    score: float = 1.0


def read_mask_rows(file: Path) -> list[MaskRow]:
    """Read lines of frame, id, class, height, width, run lengths and, in an optional seventh column, score."""
    rows = []
    for number, line in read_lines(file):
        location = f"{file}: line {number}"
        try:
            rows.append(_parse_row(location, line.split()))
        except ValueError as error:
            raise SequenceError(f"{location}: {error}") from None
    return rows


def _parse_row(location: str, fields: Sequence[str]) -> MaskRow:
    if len(fields) not in (6, 7):
        raise ValueError(f"expected frame id class height width run-lengths [score], got {len(fields)} columns")
    try:
        frame, object_id, category, height, width = map(int, fields[:5])
        score = float(fields[6]) if len(fields) == 7 else 1.0
    except ValueError:
        raise ValueError(f"expected integers in columns 1 to 5, and a score, got {' '.join(fields[:5])[:60]}") from None
    if abs(object_id) >= 2**53 or not math.isfinite(score):
        raise ValueError(f"expected an id of at most 15 digits and a finite score, got {object_id} and {score}")
    _check_class(category)
    runs = parse_rle_counts(fields[5])
    if min(height, width) < 1 or (runs < 0).any() or runs.sum() != height * width:
        got = f"a run of {runs.min()}" if (runs < 0).any() else runs.sum()
        raise ValueError(f"expected run lengths of {height} x {width} pixels in total, got {got}")
    mask = {"size": [height, width], "counts": fields[5].encode()}
    return MaskRow(location, frame, object_id, category, mask, int(runs[1::2].sum()), score)


def _check_class(category: int) -> None:
    if category not in (*CLASSES.values(), IGNORED):
        raise ValueError(f"expected class 1 (car), 2 (pedestrian) or {IGNORED} (ignored), got {category}")


def read_instances(file: Path, frame: int) -> list[MaskRow]:
    """Read a 16-bit image whose pixels are class * 1000 + instance, 10000 in ignored regions, and 0 for background."""
    try:
        pixels: NDArray[Any] = open_image(file.read_bytes()).raw(PixelFormat())
        if pixels.shape[2] != 1 or pixels.dtype.kind not in "iu":
            raise ValueError(f"expected one integer per pixel, got {pixels.shape[2]} of {pixels.dtype}")
        rows = []
        for value in np.unique(pixels[pixels != 0]).tolist():
            category = value // CLASS_MULTIPLIER
            _check_class(category)
            mask = coco_mask.encode(np.asfortranarray(pixels[..., 0] == value, np.uint8))
            rows.append(MaskRow(str(file), frame, value, category, mask, int(coco_mask.area(mask))))
    except OSError as error:
        raise SequenceError(f"{file}: {error.strerror or error}") from error
    except (CorruptImageError, ValueError) as error:
        raise SequenceError(f"{file}: {error}") from error
    return rows


def mask_objects(
    masks: Sequence[RLE], scores: NDArray[np.float64], ids: NDArray[np.int64] | None = None
) -> FrameObjects:
    boxes = np.array(coco_mask.toBbox(list(masks)), np.float64).reshape(-1, 4)
    return FrameObjects(boxes, scores, ids, masks=list(masks))


def remove_overlaps(objects: FrameObjects) -> FrameObjects:
    """Assign every pixel to one object, as MOTS requires: to the higher score, or the smaller mask of equal scores."""
    masks = list(objects.masks or [])
    areas = coco_mask.area(masks)
    if len(masks) < 2 or coco_mask.area(coco_mask.merge(masks)) == sum(areas):
        return objects
    pixels = coco_mask.decode(masks).astype(bool)
    taken = np.zeros(pixels.shape[:2], bool)
    for i in np.lexsort((areas, -objects.scores)):
        pixels[..., i] &= ~taken
        taken |= pixels[..., i]
    kept = np.flatnonzero(pixels.any(axis=(0, 1)))
    ids = None if objects.ids is None else objects.ids[kept]
    return mask_objects(coco_mask.encode(np.asfortranarray(pixels[..., kept], np.uint8)), objects.scores[kept], ids)


def _class_and_first_frame(sequence: str) -> tuple[int, int]:
    """Return 1 and 0 for KITTI's "0002 car", and 2 and 1 for MOTSChallenge's "MOTS20-02"."""
    if match := re.fullmatch(rf"\d{{4}} ({'|'.join(CLASSES)})", sequence):
        return CLASSES[match[1]], 0
    return CLASSES["pedestrian"], 1


def write_mots_tracks(folder: Path, name: str, tracks: Tracks) -> None:
    """Write ``NAME.txt``: frame, id, class, height, width and run lengths per line, without overlaps. In KITTI's "0002
    car", to be joined with "0002 pedestrian", frames count from 0, and the class is the last digit of an id."""
    category, first = _class_and_first_frame(name)
    with atomic_write(folder / f"{name}.txt") as path, path.open("w", encoding="ascii", newline="\n") as file:
        for number, objects in enumerate(map(remove_overlaps, tracks), first):
            assert objects.ids is not None
            assert objects.masks is not None
            for track_id, mask in zip(objects.ids.tolist(), objects.masks, strict=True):
                written_id = track_id if first else 10 * track_id + category
                height, width = mask["size"]
                file.write(f"{number} {written_id} {category} {height} {width} {mask['counts'].decode()}\n")


def read_mots_tracks(folder: Path, name: str, frames: int) -> list[FrameObjects]:
    """Read the file that ``write_mots_tracks`` wrote, with one entry for each of ``frames``; scores are 1."""
    category, first = _class_and_first_frame(name)
    tracks: list[dict[int, RLE]] = [{} for _ in range(frames)]  # by id
    for row in read_mask_rows(folder / f"{name}.txt"):
        track_id = row.id if first else row.id // 10
        if not 0 <= row.frame - first < frames:
            raise SequenceError(f"{row.location}: expected a frame of {first} to {frames - 1 + first}, got {row.frame}")
        if row.category != category or track_id in tracks[row.frame - first]:
            raise SequenceError(f"{row.location}: expected class {category}, and every id once per frame")
        tracks[row.frame - first][track_id] = row.mask
    return [
        mask_objects(list(masks.values()), np.ones(len(masks)), np.array(list(masks), np.int64)) for masks in tracks
    ]
