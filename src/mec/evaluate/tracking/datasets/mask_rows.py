"""Lines and instance images of MOTS (Voigtlaender et al. 2019): a mask of an object in a frame."""

from __future__ import annotations

import math
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
from mec.evaluate.tracking.sequences import RLE, SequenceError
from mec.text_files import read_lines

CLASSES = {"car": 1, "pedestrian": 2}
NAMES = {number: name for name, number in CLASSES.items()}
IGNORED = 10  # class of the regions that are not evaluated
CLASS_MULTIPLIER = 1000  # a pixel of an instance image is class * CLASS_MULTIPLIER + instance


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
