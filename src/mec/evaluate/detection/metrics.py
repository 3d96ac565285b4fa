"""Average precision of detections by COCO's or VOC's definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, to_coco_results
from mec.evaluate.detection.voc_metrics import average_precisions

COCO_METRICS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
"""Names of COCO's first six metrics, in COCO's order."""
IOU_SLICES = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""Metric -> the IoU thresholds that it averages, of the ten 0.50, 0.55 ... 0.95."""


class DetectionMetrics(NamedTuple):
    """Average precisions, fractions of 1.

    overall: AP (mean over the IoU thresholds 0.50, 0.55 ... 0.95), AP50 and AP75, each the mean over the classes. By
        COCO's definition also by size of the object ("AP small": up to 32 x 32 pixels, "AP medium", "AP large": from
        96 x 96) and of masks ("mask AP" ...).
    per_class: AP, AP50 and AP75 of each class, and of its masks.

    A metric without objects to count is left out.
    """

    overall: dict[str, float]
    per_class: dict[str, dict[str, float]]


def detection_metrics(dataset: AnnotatedDataset, detections: Sequence[Detections]) -> DetectionMetrics:
    """Compute average precisions as pycocotools or as detectron2 for VOC, depending on ``dataset.ap_metric``.

    Masks are evaluated if the dataset and all detections have them.

    Args:
        dataset: n images.
        detections: of each of the n images.

    Raises:
        InputError: no object to count.
    """
    assert len(dataset) == len(detections)
    if (dataset.is_crowd | dataset.is_difficult).all():
        raise InputError(f"data: no object to count in {dataset.name}")
    if dataset.ap_metric != "coco":
        return _voc(dataset, detections)
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


def _voc(dataset: AnnotatedDataset, detections: Sequence[Detections]) -> DetectionMetrics:
    table = average_precisions(dataset, detections)
    per_class = _per_class(dataset.categories, np.nan_to_num(table, nan=-1))
    overall = {name: float(np.mean([metrics[name] for metrics in per_class.values()])) for name in IOU_SLICES}
    return DetectionMetrics(overall, per_class)


def _per_class(names: Sequence[str], table: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Convert average precisions (c, 10) to metrics by class. Classes without objects (-1) are left out."""
    present = [i for i in range(len(names)) if table[i, 0] >= 0]
    return {names[i]: {metric: float(table[i, ious].mean()) for metric, ious in IOU_SLICES.items()} for i in present}
