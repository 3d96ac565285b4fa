"""VOC's average precision as detectron2 reports it: its development kit's rules at ten thresholds of overlap.

Written from the rules; source of the details: detectron2's PascalVOCDetectionEvaluator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections

THRESHOLDS = np.arange(50, 100, 5) / 100
POINTS = np.arange(11) * 0.1
"""Of recall; the fourth is 0.30000000000000004, as in the figures that are published."""

Floats = NDArray[np.float64]


def precisions(annotated: AnnotatedDataset, found: Sequence[Detections]) -> Floats:
    """Average precision of each class at overlaps above 0.50, 0.55 ... 0.95.

    A detection goes to the object of its class that it overlaps most, in VOC's pixels, whose last one counts too: boxes
    are those of result files, with one decimal, and scores have three. The best detection of an object is right, others
    of it are wrong, and those of a difficult object are neither. Detections of equal score stay in the order of the
    images, where detectron2 leaves it to an unstable sort.

    Args:
        annotated: n images; ``rules`` "voc07" takes the mean precision at 11 points of recall, "voc" the area.
        found: n, those in each image.

    Returns:
        (c, 10); nan for a class without objects that count. detectron2 has 0 or nan there; none of VOC's own test sets
        lacks a class.
    """
    labels = np.concatenate([one.labels for one in found])
    scores = _rounded(np.concatenate([one.scores for one in found]), 3)
    boxes = _rounded(np.concatenate([one.boxes + np.array([1, 1, 0, 0], np.float32) for one in found]), 1)
    overlaps, objects = _nearest(annotated, [len(one.labels) for one in found], boxes, labels)
    counts = ~(annotated.difficult | annotated.crowd)
    table = np.full((len(annotated.categories), len(THRESHOLDS)), np.nan)
    for c in range(len(table)):
        total = int(np.count_nonzero(counts & (annotated.labels == c)))
        if total == 0:
            continue
        own = np.flatnonzero(labels == c)
        own = own[np.argsort(-scores[own], kind="stable")]
        for t, threshold in enumerate(THRESHOLDS):
            hit = overlaps[own] > threshold
            right, wrong = _judged(hit, objects[own], counts)
            table[c, t] = _average_precision(right, wrong, total, annotated.rules == "voc07")
    return table


def _rounded(values: NDArray[np.float32], decimals: int) -> Floats:
    """As printed and read again: the product is exact, halves go to even, and the quotient is the nearest double."""
    return np.asarray(np.rint(values.astype(np.float64) * 10**decimals) / 10**decimals)


def _nearest(
    annotated: AnnotatedDataset, counts: Sequence[int], boxes: Floats, labels: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64]]:
    """For each of D detections the largest overlap with an object of its class, -inf without one, and that object."""
    overlaps, objects = np.full(len(boxes), -np.inf), np.zeros(len(boxes), np.int64)
    theirs = annotated.boxes + np.array([1, 1, 0, 0])
    ends = np.cumsum(counts)
    for image, (end, count) in enumerate(zip(ends, counts, strict=True)):
        rows, first, last = slice(end - count, end), annotated.starts[image], annotated.starts[image + 1]
        if count == 0 or first == last:
            continue
        each = _overlaps(boxes[rows], theirs[first:last])
        each[labels[rows, None] != annotated.labels[first:last]] = -np.inf
        overlaps[rows], objects[rows] = each.max(axis=1), first + each.argmax(axis=1)
    return overlaps, objects


def _overlaps(boxes: Floats, others: Floats) -> Floats:
    """Shares (a, b) of the joint area; x1, y1, x2, y2 are pixels, the last one within."""
    a, b = boxes[:, None], others[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    common = sides.clip(0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2] + 1).prod(axis=-1) for box in (a, b)]
    return np.asarray(common / (areas[0] + areas[1] - common))


def _judged(
    hit: NDArray[np.bool_], objects: NDArray[np.int64], counts: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the detections of a class, best first, are right and which are wrong."""
    of_counted = np.flatnonzero(hit & counts[objects])
    right = np.zeros(len(hit), bool)
    right[of_counted[np.unique(objects[of_counted], return_index=True)[1]]] = True
    wrong = ~hit
    wrong[of_counted] = ~right[of_counted]
    return right, wrong


def _average_precision(right: NDArray[np.bool_], wrong: NDArray[np.bool_], total: int, points: bool) -> float:
    correct, mistaken = np.cumsum(right), np.cumsum(wrong)
    recall = correct / total
    precision = correct / np.maximum(correct + mistaken, 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if points:
        return float(np.append(envelope, 0)[np.searchsorted(recall, POINTS)].mean())
    return float(np.diff(recall, prepend=0) @ envelope)
