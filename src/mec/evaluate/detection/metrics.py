"""Average precision by COCO's definition, or by VOC's, from the development kit's rules at ten IoU thresholds. Details
follow detectron2's PascalVOCDetectionEvaluator."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, to_coco_results

COCO_METRICS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")  # its first six, in COCO's order
IOU_THRESHOLDS = np.arange(50, 100, 5) / 100
IOU_SLICES = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}  # the thresholds that each averages
RECALL_POINTS = np.arange(11) * 0.1  # the fourth is 0.30000000000000004, as in the published numbers

Floats = NDArray[np.float64]


class DetectionMetrics(NamedTuple):
    """Average precisions, fractions of 1: AP (mean over the IoU thresholds 0.50, 0.55 ... 0.95), AP50 and AP75; by
    COCO's definition also by object size in pixels ("AP small": up to 32 x 32, "AP large": from 96 x 96) and of masks
    ("mask AP" ...)."""

    overall: dict[str, float]  # means over the classes; a metric without objects to count is left out
    per_class: dict[str, dict[str, float]]


def detection_metrics(dataset: AnnotatedDataset, detections: Sequence[Detections]) -> DetectionMetrics:
    """Compute average precisions as pycocotools or as detectron2 for VOC, depending on ``dataset.ap_metric``. Masks are
    evaluated if the dataset and all detections, one item per image, have them."""
    assert len(dataset) == len(detections)
    if (dataset.is_crowd | dataset.is_difficult).all():
        raise InputError(f"data: no object to count in {dataset.name}")
    if dataset.ap_metric != "coco":
        per_class = _per_class(dataset.categories, voc_average_precisions(dataset, detections))
        overall = {name: float(np.mean([metrics[name] for metrics in per_class.values()])) for name in IOU_SLICES}
        return DetectionMetrics(overall, per_class)
    overall, per_class = _coco(dataset, detections, "bbox")
    if dataset.has_masks and all(image_detections.masks is not None for image_detections in detections):
        mask_metrics = _coco(dataset, detections, "segm")
        overall |= {f"mask {metric}": value for metric, value in mask_metrics.overall.items()}
        for name, metrics in mask_metrics.per_class.items():
            per_class[name] |= {f"mask {metric}": value for metric, value in metrics.items()}
    return DetectionMetrics(overall, per_class)


def _coco(
    dataset: AnnotatedDataset, detections: Sequence[Detections], iou_type: Literal["bbox", "segm"]
) -> DetectionMetrics:
    ground_truth = COCO(dataset.to_coco())
    results: list[dict[str, Any]] = []
    for image_id, image_detections in zip(dataset.image_ids, detections, strict=True):
        if iou_type == "bbox":
            image_detections = image_detections._replace(masks=None)
        results += to_coco_results(image_detections, image_id, dataset.category_ids)
    if iou_type == "segm":
        for result in results:
            del result["bbox"]  # otherwise the box's area, not the mask's, decides the size category
    # loadRes of older releases takes no empty list
    loaded = ground_truth.loadRes(results) if results else COCO({**ground_truth.dataset, "annotations": []})
    evaluation = COCOeval_faster(ground_truth, loaded, iou_type)
    evaluation.run()
    overall = {name: float(value) for name, value in zip(COCO_METRICS, evaluation.stats, strict=False) if value >= 0}
    # axes: IoU thresholds, recall points, classes, object sizes (0: all), maximum numbers of detections (-1: 100)
    table = evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=1)
    names = dict(zip(dataset.category_ids.tolist(), dataset.categories, strict=True))
    return DetectionMetrics(overall, _per_class([names[i] for i in evaluation.params.catIds], table.T))


def _per_class(names: Sequence[str], table: Floats) -> dict[str, dict[str, float]]:
    """Convert average precisions (c, 10) to metrics by class. Classes without objects (-1 or NaN) are left out."""
    present = [i for i in range(len(names)) if table[i, 0] >= 0]
    return {names[i]: {metric: float(table[i, ious].mean()) for metric, ious in IOU_SLICES.items()} for i in present}


def voc_average_precisions(dataset: AnnotatedDataset, detections: Sequence[Detections]) -> Floats:
    """Return average precisions (c, 10) of each class at IoUs above 0.50, 0.55 ... 0.95 by VOC's rules.

    A detection is assigned to the object of its class with the largest IoU, in VOC's pixel coordinates, which include
    the last pixel. Boxes are rounded to one decimal and scores to three, as in VOC's files. The first detection of an
    object by score is a true positive, others are false positives, and those of difficult objects are neither. Equal
    scores stay in the order of the images, where detectron2 uses an unstable sort. ``ap_metric`` "voc07" is the mean
    precision at 11 recall points, "voc" the area under the curve. A class without objects is NaN (in detectron2 0 or
    NaN); no test set of VOC lacks one.
    """
    labels = np.concatenate([d.labels for d in detections])
    scores = _round(np.concatenate([d.scores for d in detections]), 3)
    boxes = _round(np.concatenate([d.boxes + np.array([1, 1, 0, 0], np.float32) for d in detections]), 1)
    ious, objects = _best_matches(dataset, [len(d.labels) for d in detections], boxes, labels)
    is_counted = ~(dataset.is_difficult | dataset.is_crowd)
    table = np.full((len(dataset.categories), len(IOU_THRESHOLDS)), np.nan)
    for c in np.unique(dataset.labels[is_counted]):
        num_objects = np.count_nonzero(is_counted & (dataset.labels == c))
        indices = np.flatnonzero(labels == c)
        indices = indices[np.argsort(-scores[indices], kind="stable")]
        for t, threshold in enumerate(IOU_THRESHOLDS):
            true_positive, false_positive = _classify(ious[indices] > threshold, objects[indices], is_counted)
            num_true, num_false = np.cumsum(true_positive), np.cumsum(false_positive)
            recall = num_true / num_objects
            precision = num_true / np.maximum(num_true + num_false, 1)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            if dataset.ap_metric == "voc07":
                table[c, t] = np.append(envelope, 0)[np.searchsorted(recall, RECALL_POINTS)].mean()
            else:
                table[c, t] = np.diff(recall, prepend=0) @ envelope
    return table


def _round(values: NDArray[np.float32], decimals: int) -> Floats:
    """Round as printing and parsing does. The product is exact, ties go to even, the quotient is the nearest double."""
    return np.asarray(np.rint(values.astype(np.float64) * 10**decimals) / 10**decimals)


def _best_matches(
    dataset: AnnotatedDataset, counts: Sequence[int], boxes: Floats, labels: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the largest IoU of each detection with an object of its class (-inf without one), and that object; image
    number i has ``counts[i]`` detections."""
    best_ious, best_objects = np.full(len(boxes), -np.inf), np.zeros(len(boxes), np.int64)
    for image, (start, end) in enumerate(pairwise([0, *np.cumsum(counts)])):
        first, last = dataset.offsets[image], dataset.offsets[image + 1]
        if start == end or first == last:
            continue
        a, b = boxes[start:end, None], dataset.boxes[None, first:last] + np.array([1, 1, 0, 0])
        sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
        intersection = sides.clip(0).prod(axis=-1)
        area_a, area_b = ((box[..., 2:] - box[..., :2] + 1).prod(axis=-1) for box in (a, b))
        ious = intersection / (area_a + area_b - intersection)
        ious[labels[start:end, None] != dataset.labels[first:last]] = -np.inf
        best_ious[start:end], best_objects[start:end] = ious.max(axis=1), first + ious.argmax(axis=1)
    return best_ious, best_objects


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
