"""VOC's average precision as detectron2 reports it: the development kit's rules at ten IoU thresholds.

Written from the rules. Details follow detectron2's PascalVOCDetectionEvaluator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections

IOU_THRESHOLDS = np.arange(50, 100, 5) / 100
RECALL_POINTS = np.arange(11) * 0.1
"""The fourth is 0.30000000000000004, as in the published numbers."""

Floats = NDArray[np.float64]


def average_precisions(dataset: AnnotatedDataset, detections: Sequence[Detections]) -> Floats:
    """Compute the average precision of each class at IoUs above 0.50, 0.55 ... 0.95.

    A detection is assigned to the object of its class with the largest IoU, computed in VOC's pixel coordinates, which
    include the last pixel. Boxes are rounded to one decimal and scores to three, as in VOC's result files. The
    detection of an object with the highest score is a true positive, others of the same object are false positives,
    and detections of difficult objects are neither. Detections of equal score stay in the order of the images, where
    detectron2 uses an unstable sort.

    Args:
        dataset: n images. ``ap_metric`` "voc07": mean precision at 11 recall points; "voc": area under the curve.
        detections: of each of the n images.

    Returns:
        (c, 10); NaN for a class without objects to count. detectron2 returns 0 or NaN there; none of VOC's own test
        sets lacks a class.
    """
    labels = np.concatenate([d.labels for d in detections])
    scores = _round(np.concatenate([d.scores for d in detections]), 3)
    boxes = _round(np.concatenate([d.boxes + np.array([1, 1, 0, 0], np.float32) for d in detections]), 1)
    ious, objects = _best_matches(dataset, [len(d.labels) for d in detections], boxes, labels)
    is_counted = ~(dataset.is_difficult | dataset.is_crowd)
    table = np.full((len(dataset.categories), len(IOU_THRESHOLDS)), np.nan)
    for c in range(len(table)):
        num_objects = int(np.count_nonzero(is_counted & (dataset.labels == c)))
        if num_objects == 0:
            continue
        indices = np.flatnonzero(labels == c)
        indices = indices[np.argsort(-scores[indices], kind="stable")]
        for t, threshold in enumerate(IOU_THRESHOLDS):
            is_match = ious[indices] > threshold
            true_positive, false_positive = _classify(is_match, objects[indices], is_counted)
            table[c, t] = _average_precision(
                true_positive, false_positive, num_objects, eleven_points=dataset.ap_metric == "voc07"
            )
    return table


def _round(values: NDArray[np.float32], decimals: int) -> Floats:
    """Round as printing and parsing does. The product is exact, ties go to even, the quotient is the nearest double."""
    return np.asarray(np.rint(values.astype(np.float64) * 10**decimals) / 10**decimals)


def _best_matches(
    dataset: AnnotatedDataset, counts: Sequence[int], boxes: Floats, labels: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the largest IoU of each detection with an object of its class (-inf without one), and that object.

    ``counts``: number of detections in each image.
    """
    best_ious, best_objects = np.full(len(boxes), -np.inf), np.zeros(len(boxes), np.int64)
    object_boxes = dataset.boxes + np.array([1, 1, 0, 0])
    ends = np.cumsum(counts)
    for image, (end, count) in enumerate(zip(ends, counts, strict=True)):
        rows, first, last = slice(end - count, end), dataset.offsets[image], dataset.offsets[image + 1]
        if count == 0 or first == last:
            continue
        ious = _box_iou(boxes[rows], object_boxes[first:last])
        ious[labels[rows, None] != dataset.labels[first:last]] = -np.inf
        best_ious[rows], best_objects[rows] = ious.max(axis=1), first + ious.argmax(axis=1)
    return best_ious, best_objects


def _box_iou(boxes1: Floats, boxes2: Floats) -> Floats:
    """Return IoUs (n, m) of boxes x1, y1, x2, y2 in pixels, the last pixel included."""
    a, b = boxes1[:, None], boxes2[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    intersection = sides.clip(0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2] + 1).prod(axis=-1) for box in (a, b)]
    return np.asarray(intersection / (areas[0] + areas[1] - intersection))


def _classify(
    is_match: NDArray[np.bool_], objects: NDArray[np.int64], is_counted: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which detections of a class, sorted by descending score, are true and which are false positives."""
    counted_matches = np.flatnonzero(is_match & is_counted[objects])
    true_positive = np.zeros(len(is_match), bool)
    true_positive[counted_matches[np.unique(objects[counted_matches], return_index=True)[1]]] = True
    false_positive = ~is_match
    false_positive[counted_matches] = ~true_positive[counted_matches]
    return true_positive, false_positive


def _average_precision(
    true_positive: NDArray[np.bool_], false_positive: NDArray[np.bool_], num_objects: int, eleven_points: bool
) -> float:
    num_true, num_false = np.cumsum(true_positive), np.cumsum(false_positive)
    recall = num_true / num_objects
    precision = num_true / np.maximum(num_true + num_false, 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_points:
        return float(np.append(envelope, 0)[np.searchsorted(recall, RECALL_POINTS)].mean())
    return float(np.diff(recall, prepend=0) @ envelope)
