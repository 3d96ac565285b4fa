"""Reader and writer of MOTSChallenge and KITTI MOTS (Voigtlaender et al. 2019): masks of every pedestrian or car."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.tracking.datasets.files import (
    check_detections,
    detection_files,
    frame_range,
    image_files,
    log_ignored,
    log_ignored_names,
    log_unannotated,
    numbered_files,
)
from mec.evaluate.tracking.datasets.mask_rows import (
    CLASSES,
    IGNORED,
    NAMES,
    MaskRow,
    read_instances,
    read_mask_rows,
)
from mec.evaluate.tracking.datasets.motchallenge import read_frames, sequence_folders
from mec.evaluate.tracking.sequences import (
    RLE,
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
    videos, description = _kitti_videos(data), f"KITTI MOTS' layout in {data}"
    if not videos:
        folders, description = sequence_folders(data, layouts)
        description = f"MOTSChallenge's layout in {description}"
        for f in folders:
            files = [f / "gt" / "gt.txt", f / "gt", f.parent / "instances" / f.name]
            videos.append(_Video(f.name, f, False, _first_existing(files)))
    if not any(video.ground_truth.exists() for video in videos):
        raise InputError(f"data: no ground truth masks in {data}; expected {videos[0].ground_truth}")
    kinds = sorted({"text" if video.ground_truth.suffix == ".txt" else "instance images" for video in videos})
    detection_paths = detection_files(detections, [video.name for video in videos], ".txt")
    loaders = {}
    for video in videos:
        for category in CLASSES if video.is_kitti else ["pedestrian"]:
            name = f"{video.name} {category}" if video.is_kitti else video.name
            loaders[name] = partial(_load, name, video, CLASSES[category], detection_paths[video.name])
    source = "the ground truth" if detections is None else f"{detections}/SEQUENCE.txt"
    description += f"; ground truth from {' and '.join(kinds)}; detections of {source}"
    return SequenceLoaders(select_sequences(loaders, names), description)


def _kitti_videos(data: Path) -> list[_Video]:
    bases = [base for base in (data, data / "training") if (base / "image_02").is_dir()]
    entries = sorted(f for base in bases[:1] for f in (base / "image_02").iterdir() if f.is_dir())
    folders = [f for f in entries if f.name.isdecimal()]
    log_ignored_names("folder", "image_02", [f.name for f in entries if f not in folders])
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
        images = [video.ground_truth / f"{first + i:06d}.png" for i in range(len(frames))]
        rows = [row for number, image in enumerate(images, first) for row in read_instances(image, number)]
        others = [file.name for file in image_files(video.ground_truth) if file not in images]
        log_ignored_names("image", video.ground_truth, others)
    else:
        rows = read_mask_rows(video.ground_truth)
    frame_rows = _rows_per_frame(name, rows, first, len(frames), size)
    for rows in frame_rows:
        _check_ground_truth(rows)
    of_class = [[row for row in rows if row.category == category] for rows in frame_rows]
    found = [row.category for rows in frame_rows for row in rows]
    if category not in found and not (video.is_kitti and set(found) - {IGNORED}):  # KITTI has videos of one class
        counts = ", ".join(f"{found.count(c):,} of class {c}" for c in sorted(set(found))) or "none"
        raise SequenceError(
            f"{video.ground_truth}: expected masks of class {category} ({NAMES[category]}), got {counts}"
        )
    ground_truth = MaskGroundTruth(
        tuple(np.array([row.id for row in rows], np.int64) for rows in of_class),
        tuple([row.mask for row in rows] for rows in of_class),
        tuple(coco_mask.merge([row.mask for row in rows if row.category == IGNORED]) for rows in frame_rows),
    )
    true_boxes = [_enclosing_boxes(masks) for masks in ground_truth.masks]
    if detections is not None:
        frame_rows = _rows_per_frame(name, read_mask_rows(detections), first, len(frames), size)
        of_class = [[row for row in rows if row.category == category and row.pixels] for rows in frame_rows]
        total, empty = sum(map(len, frame_rows)), sum(not row.pixels for rows in frame_rows for row in rows)
        ignored = {"empty": empty, "of another class": total - empty - sum(map(len, of_class))}
        log_ignored(name, total, f"masks of {detections.name}", ignored, expected=video.is_kitti and not empty)
    objects = [mask_objects([row.mask for row in rows], np.array([row.score for row in rows])) for rows in of_class]
    log_unannotated(name, true_boxes, expected=video.is_kitti)
    if category in found or any(of_class):
        check_detections(name, objects, true_boxes)
    return DetectionSequence(name, frames, tuple(objects), ground_truth, len(set(np.concatenate(ground_truth.ids))))


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
    if 0 < later == len(rows):
        raise SequenceError(f"{rows[0].location}: expected frames {first} to {last}, got {rows[0].frame}")
    log_ignored(name, len(rows), "masks", {f"after frame {last}, the last one": later})
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


def mask_objects(
    masks: Sequence[RLE], scores: NDArray[np.float64], ids: NDArray[np.int64] | None = None
) -> FrameObjects:
    return FrameObjects(_enclosing_boxes(masks), scores, ids, masks=list(masks))


def _enclosing_boxes(masks: Sequence[RLE]) -> Boxes:
    return np.array(coco_mask.toBbox(list(masks)), np.float64).reshape(-1, 4)


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
