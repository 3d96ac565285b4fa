"""Mask files of MOTS (Voigtlaender et al. 2019): text with COCO's run lengths, and instance images."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.evaluate.detection.datasets.annotations import parse_rle_counts
from mec.evaluate.tracking.datasets.files import read_lines
from mec.evaluate.tracking.sequences import RLE, FrameObjects, SequenceError, Tracks
from mec.files import atomic_write

CLASSES = {"car": 1, "pedestrian": 2}
IGNORED = 10  # class of the regions that are not evaluated
CLASS_MULTIPLIER = 1000  # a pixel of an instance image is class * CLASS_MULTIPLIER + instance


@dataclass(frozen=True)
class MaskRow:
    """An object in a frame. ``location`` names the file and line it was read from, for error messages."""

    location: str
    frame: int
    id: int
    category: int
    mask: RLE
    pixels: int
    score: float = 1.0


def read_mask_rows(file: Path) -> list[MaskRow]:
    """Read lines of frame, id, class, height, width, run lengths and, in an optional seventh column, score.

    Raises SequenceError if the file is unreadable or damaged.
    """
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
    """Read a 16-bit image whose pixels are class * 1000 + instance, 10000 in ignored regions, and 0 for background.

    Raises SequenceError if the image is missing, corrupt or in color, or has other classes.
    """
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
    """Return objects with the masks (k) and the boxes around them."""
    boxes = np.array(coco_mask.toBbox(list(masks)), np.float64).reshape(-1, 4)
    return FrameObjects(boxes, scores, ids, masks=list(masks))


def remove_overlaps(objects: FrameObjects) -> FrameObjects:
    """Assign every pixel to one object, as MOTS requires: to the higher score, or the smaller mask of equal scores.

    Objects that lose all their pixels are removed.
    """
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
    """Write ``NAME.txt`` in the format of MOTS: frame, id, class, height, width and run lengths per line.

    Overlaps are removed. For KITTI's "0002 car", frames count from 0, and the class is appended to the ids as a digit.
    Concatenate "0002 car.txt" and "0002 pedestrian.txt" to obtain the 0002.txt of KITTI's evaluation.
    """
    category, first = _class_and_first_frame(name)
    with atomic_write(folder / f"{name}.txt") as path, path.open("w", encoding="ascii", newline="\n") as file:
        for number, objects in enumerate(map(remove_overlaps, tracks), first):
            if objects.ids is None or objects.masks is None:
                raise ValueError("expected tracks with ids and masks")
            for track_id, mask in zip(objects.ids.tolist(), objects.masks, strict=True):
                written_id = track_id if first else 10 * track_id + category
                height, width = mask["size"]
                file.write(f"{number} {written_id} {category} {height} {width} {mask['counts'].decode()}\n")


def read_mots_tracks(folder: Path, name: str, frames: int) -> list[FrameObjects]:
    """Read the file that ``write_mots_tracks`` wrote, with one entry for each of ``frames``; scores are 1.

    Raises SequenceError if the file is damaged, has other frames, or has an id twice in a frame.
    """
    category, first = _class_and_first_frame(name)
    tracks: list[dict[int, RLE]] = [{} for _ in range(frames)]
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
