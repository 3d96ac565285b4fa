"""Masks of COCO's annotations: polygons in several nestings, and run-length encoding (RLE), compressed or not."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask

from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import Rle, parse_rle_counts

logger = logging.getLogger("mec")

MAX_COORDINATE = 100_000  # pixels. Polygons beyond are damaged, and rasterizing them takes memory: they are discarded
MIN_BOX_IOU = 0.1  # of the extent of a mask with the box of its object: that of any careful annotation is near 1
MIN_MASKS = 10  # from which a file with most masks outside their boxes is refused


class MaskReader:
    """Reads segmentations and counts those that cannot be used as annotated."""

    def __init__(self) -> None:
        self.num_segmentations = 0  # that are not empty
        self.num_masks = 0
        self.unread: Counter[str] = Counter()  # by the reason
        self.first_unread: Any = None  # id of the annotation
        self.far_from_box: list[Any] = []  # ids of annotations

    def read(
        self, segmentation: Any, size: tuple[int, int], box: tuple[float, ...], annotation_id: Any
    ) -> tuple[bytes, int]:
        """Return compressed RLE counts and number of pixels of the mask in an image of ``size`` (height, width); b""
        and 0 without any. ``box`` is that of the object: x, y, width, height. ValueError if RLE is damaged."""
        if isinstance(segmentation, list):
            segmentation = [part for part in segmentation if part != []]
        if not segmentation:
            return b"", 0
        self.num_segmentations += 1
        reasons: list[str] = []
        if isinstance(segmentation, list) and not all(isinstance(part, dict) for part in segmentation):
            polygons = [polygon for part in _parts(segmentation) if (polygon := _polygon(part, reasons))]
            rles = coco_mask.frPyObjects(polygons, *size) if polygons else []
        else:
            parts = segmentation if isinstance(segmentation, list) else [segmentation]
            rles = [_compress_rle(part, *size) for part in parts]
        mask = coco_mask.merge(rles) if len(rles) > 1 else rles[0] if rles else None
        num_pixels = 0 if mask is None else int(coco_mask.area(mask))
        if not num_pixels and not reasons:
            reasons.append("no pixel in the image")
        if reasons:
            self.unread[reasons[0]] += 1
            self.first_unread = annotation_id if self.first_unread is None else self.first_unread
        if mask is None or not num_pixels:
            return b"", 0
        self.num_masks += 1
        if _box_iou(coco_mask.toBbox(mask).tolist(), box) < MIN_BOX_IOU:
            self.far_from_box.append(annotation_id)
        return mask["counts"], num_pixels

    def check(self, name: str, has_masks: bool) -> None:
        """Log what could not be read in the file ``name``, in capitals if it has no masks therefore; InputError if most
        masks lie outside their box."""
        total = self.num_segmentations
        if self.unread:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.unread.most_common())
            number = f"{self.unread.total():,} of {total:,} segmentations"
            how, end = "could not be read, or only in part", ""
            if not has_masks:
                how, end = "CANNOT BE READ", ". THERE ARE NO MASKS: THE DETECTOR LEARNS BOXES ONLY"
            first = f"the first: annotation {self.first_unread}"
            logger.warning(f"{name}: {number} {how} ({reasons}); {first}{end}")
        if self.far_from_box:
            number = f"{len(self.far_from_box):,} of {self.num_masks:,} masks"
            line = f"{name}: {number} lie outside the bbox of their annotation (IoU below {MIN_BOX_IOU})"
            first = f"the first: annotation {self.far_from_box[0]}"
            if self.num_masks >= MIN_MASKS and 2 * len(self.far_from_box) > self.num_masks:
                raise InputError(f"data: {line}; expected masks and boxes in pixels of the same image; {first}")
            logger.warning(f"{line}, used as annotated; {first}")


def _box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes: x, y, width, height."""
    sides = (min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    intersection = math.prod(max(0.0, side) for side in sides)
    return intersection / max(a[2] * a[3] + b[2] * b[3] - intersection, 1e-9)


def _parts(segmentation: list[Any]) -> list[Any]:
    """Return the polygons of an object, which is one polygon if it is a list of numbers or of points."""
    is_flat = all(isinstance(part, int | float) for part in segmentation)
    are_points = all(isinstance(part, list) and len(part) == 2 and not _is_nested(part) for part in segmentation)
    return [segmentation] if is_flat or are_points else segmentation


def _is_nested(part: list[Any]) -> bool:
    return any(isinstance(value, list) for value in part)


def _polygon(part: Any, reasons: list[str]) -> list[float]:
    """Return a polygon as x, y, x, y ...; [] if it is none, with the reason appended to ``reasons``."""
    try:
        values = np.asarray(part)
    except ValueError:
        values = np.empty((0, 0), object)  # lists of different lengths
    if values.dtype.kind in "if" and values.ndim == 2 and values.shape[1] == 2:
        values = values.reshape(-1)
    if values.dtype.kind not in "if" or values.ndim != 1:
        reasons.append("not lists of x and y")
    elif len(values) == 4:
        reasons.append("a box of two corners")
    elif len(values) % 2:
        reasons.append("an odd number of coordinates")
    elif len(values) < 6:
        reasons.append("fewer than three corners")
    elif not np.abs(values).max() < MAX_COORDINATE:
        reasons.append("impossible coordinates")
    else:
        return list(values.tolist())
    return []


def _compress_rle(mask: Any, height: int, width: int) -> Rle:
    if not isinstance(mask, dict) or not mask.keys() >= {"size", "counts"}:
        raise ValueError("expected polygons, or RLE with size and counts")
    if mask["size"] != [height, width]:
        raise ValueError(f"expected the size of its image, [{height}, {width}], got {mask['size']}")
    runs = parse_rle_counts(mask["counts"]).tolist() if isinstance(mask["counts"], str) else mask["counts"]
    are_runs = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    if not are_runs or sum(runs) != height * width:  # not every decoder checks this
        raise ValueError(f"expected run lengths of {height * width} pixels in total")
    return dict(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width))
