"""Masks in the files of MOTS (Voigtlaender et al. 2019): lines with COCO's run lengths, and images of instances."""

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
from mec.evaluate.detection.masks import run_lengths
from mec.evaluate.tracking.sequences import RLE, FrameObjects, SequenceError, Tracks
from mec.files import atomic_write

CLASSES = {"car": 1, "pedestrian": 2}
IGNORED = 10
"""The class of regions in which a mask is neither right nor wrong."""
DIVISOR = 1000
"""In images of instances a pixel is its class times this, and a number."""


@dataclass(frozen=True)
class MaskRow:
    """An object in a frame. ``place`` says where it was read, for people."""

    place: str
    frame: int
    id: int
    category: int
    mask: RLE
    pixels: int
    score: float = 1.0


def read_mask_rows(file: Path) -> list[MaskRow]:
    """Lines of frame, id, class, height, width, run lengths and, if there is a seventh column, score.

    Raises:
        SequenceError: unreadable or damaged.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SequenceError(f"{file} cannot be read as text ({error})") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.split():
            place = f"{file}: line {number}"
            try:
                rows.append(_row(place, words))
            except ValueError as error:
                raise SequenceError(f"{place}: {error}") from None
    return rows


def _row(place: str, words: Sequence[str]) -> MaskRow:
    if len(words) not in (6, 7):
        raise ValueError(f"expected frame id class height width run-lengths [score], got {len(words)} columns")
    try:
        frame, number, category, height, width = map(int, words[:5])
    except ValueError:
        raise ValueError(f"expected whole numbers in columns 1 to 5, got {' '.join(words[:5])[:60]}") from None
    if abs(number) >= 2**53:
        raise ValueError(f"expected an id of fewer digits, got {number}")
    _expect_class(category)
    runs = run_lengths(words[5])
    if min(height, width) < 1 or (runs < 0).any() or runs.sum() != height * width:
        got = f"{runs.min()} and more" if (runs < 0).any() else runs.sum()
        raise ValueError(f"expected run lengths of {height} x {width} pixels in all, got {got}")
    try:
        score = float(words[6]) if len(words) == 7 else 1.0
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"expected a finite number as score, got {words[6][:60]!r}")
    mask = {"size": [height, width], "counts": words[5].encode()}
    return MaskRow(place, frame, number, category, mask, int(runs[1::2].sum()), score)


def _expect_class(category: int) -> None:
    if category not in (*CLASSES.values(), IGNORED):
        raise ValueError(f"expected class 1 (car), 2 (pedestrian) or {IGNORED} (ignored), got {category}")


def read_instances(file: Path, frame: int) -> list[MaskRow]:
    """An image of 16 bits whose pixels are class * 1000 + number, 10000 where nothing counts, 0 elsewhere.

    Raises:
        SequenceError: missing, damaged, in color, or with other classes.
    """
    try:
        pixels: NDArray[Any] = open_image(file.read_bytes()).raw(PixelFormat())
        if pixels.shape[2] != 1 or pixels.dtype.kind not in "iu":
            raise ValueError(f"expected one whole number a pixel, got {pixels.shape[2]} of {pixels.dtype}")
        rows = []
        for value in np.unique(pixels[pixels != 0]).tolist():
            _expect_class(value // DIVISOR)
            mask = coco_mask.encode(np.asfortranarray(pixels[..., 0] == value, np.uint8))
            rows.append(MaskRow(str(file), frame, value, value // DIVISOR, mask, int(coco_mask.area(mask))))
    except OSError as error:
        raise SequenceError(f"{file}: {error.strerror or error}") from error
    except (CorruptImageError, ValueError) as error:
        raise SequenceError(f"{file}: {error}") from error
    return rows


def mask_objects(
    masks: Sequence[RLE], scores: NDArray[np.float64], ids: NDArray[np.int64] | None = None
) -> FrameObjects:
    """With the boxes around them."""
    boxes = np.array(coco_mask.toBbox(list(masks)), np.float64).reshape(-1, 4)
    return FrameObjects(boxes, scores, ids, masks=list(masks))


def remove_overlaps(found: FrameObjects) -> FrameObjects:
    """The same where no pixel is two objects', as MOTS asks: the better score has it, or else the smaller mask.

    Objects of which nothing is left are left out.
    """
    masks = list(found.masks or [])
    areas = coco_mask.area(masks)
    if len(masks) < 2 or coco_mask.area(coco_mask.merge(masks)) == sum(areas):
        return found
    pixels = coco_mask.decode(masks).astype(bool)
    taken = np.zeros(pixels.shape[:2], bool)
    for i in np.lexsort((areas, -found.scores)):
        pixels[..., i] &= ~taken
        taken |= pixels[..., i]
    left = np.flatnonzero(pixels.any(axis=(0, 1)))
    ids = None if found.ids is None else found.ids[left]
    return mask_objects(coco_mask.encode(np.asfortranarray(pixels[..., left], np.uint8)), found.scores[left], ids)


def _kitti(name: str) -> tuple[int, int]:
    """Class and first frame: of "0002 car" 1 and 0, of MOTSChallenge's "MOTS20-02" 2 and 1."""
    if match := re.fullmatch(rf"\d{{4}} ({'|'.join(CLASSES)})", name):
        return CLASSES[match[1]], 0
    return CLASSES["pedestrian"], 1


def write_mots_tracks(folder: Path, name: str, tracks: Tracks) -> None:
    """``name``.txt with lines of frame, id, class, height, width and run lengths, ``remove_overlaps``, as MOTS asks for.

    Of KITTI's "0002 car" frames count from 0, and ids are followed by the class: "0002 car.txt" and "0002
    pedestrian.txt" make the 0002.txt of its evaluation when they are joined.
    """
    category, first = _kitti(name)
    with atomic_write(folder / f"{name}.txt") as path, path.open("w", encoding="ascii", newline="\n") as file:
        for frame, found in enumerate(map(remove_overlaps, tracks), first):
            if found.ids is None or found.masks is None:
                raise ValueError("expected tracks with ids and masks")
            for number, mask in zip(found.ids.tolist(), found.masks, strict=True):
                written = number if first else 10 * number + category
                height, width = mask["size"]
                file.write(f"{frame} {written} {category} {height} {width} {mask['counts'].decode()}\n")


def read_mots_tracks(folder: Path, name: str, frames: int) -> list[FrameObjects]:
    """What ``write_mots_tracks`` wrote, with one entry for each of ``frames``; scores are 1.

    Raises:
        SequenceError: damage, other frames, or an id twice in a frame.
    """
    category, first = _kitti(name)
    each: list[dict[int, RLE]] = [{} for _ in range(frames)]
    for row in read_mask_rows(folder / f"{name}.txt"):
        number = row.id if first else row.id // 10
        if not 0 <= row.frame - first < frames:
            raise SequenceError(f"{row.place}: expected a frame of {first} to {frames - 1 + first}")
        if row.category != category or number in each[row.frame - first]:
            raise SequenceError(f"{row.place}: expected class {category}, and every id once in a frame")
        each[row.frame - first][number] = row.mask
    return [mask_objects(list(one.values()), np.ones(len(one)), np.array(list(one), np.int64)) for one in each]
