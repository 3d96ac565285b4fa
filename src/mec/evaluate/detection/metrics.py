"""How right detections are: the figures of COCO and of VOC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, as_records
from mec.evaluate.detection.voc_metrics import precisions

COLUMNS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
"""The first six of COCO's figures, in its order."""
OVERLAPS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""Which of the ten thresholds 0.50, 0.55 ... 0.95 of overlap make a figure."""


class Figures(NamedTuple):
    """Average precisions, shares of 1.

    overall: AP (the mean over overlaps of 0.50, 0.55 ... 0.95), AP50 and AP75, each the mean over the classes. By
        COCO's rules also of objects of its sizes ("AP small": up to 32 x 32 pixels, "AP medium", "AP large": from
        96 x 96) and of masks ("mask AP" ...).
    by_class: AP, AP50 and AP75 of each class, and of its masks.

    What no object counts for is not there.
    """

    overall: dict[str, float]
    by_class: dict[str, dict[str, float]]


def figures(annotated: AnnotatedDataset, found: Sequence[Detections]) -> Figures:
    """By the rules of the set: those of pycocotools, or those of VOC's development kit (see voc_figures).

    Masks count where the set has them and all detections have them.

    Args:
        annotated: n images.
        found: n, those in each image.

    Raises:
        InputError: no object that counts.
    """
    assert len(annotated) == len(found)
    if (annotated.crowd | annotated.difficult).all():
        raise InputError(f"data: no object to count in {annotated.name}")
    if annotated.rules != "coco":
        return _voc(annotated, found)
    overall, by_class = _coco(annotated, found, "bbox")
    if annotated.has_masks and all(detections.masks is not None for detections in found):
        of_masks = _coco(annotated, found, "segm")
        overall |= {f"mask {column}": value for column, value in of_masks.overall.items()}
        for name, row in of_masks.by_class.items():
            by_class[name] |= {f"mask {column}": value for column, value in row.items()}
    return Figures(overall, by_class)


def _coco(annotated: AnnotatedDataset, found: Sequence[Detections], of: Literal["bbox", "segm"]) -> Figures:
    truth = COCO(annotated.as_coco())
    records: list[dict[str, Any]] = []
    for number, detections in zip(annotated.ids, found, strict=True):
        if of == "bbox":
            detections = detections._replace(masks=None)
        records += as_records(detections, number, annotated.category_ids)
    if of == "segm":
        for record in records:
            del record["bbox"]  # or its area, not the mask's, would say whether a detection is small
    # loadRes of older releases takes no empty list
    results = truth.loadRes(records) if records else COCO({**truth.dataset, "annotations": []})
    evaluation = COCOeval_faster(truth, results, of)
    evaluation.run()
    overall = {c: float(value) for c, value in zip(COLUMNS, evaluation.stats, strict=False) if value >= 0}
    # thresholds, points of recall, classes, sizes, numbers of detections: all sizes, the most detections
    table = evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=1)
    names = dict(zip(annotated.category_ids.tolist(), annotated.categories, strict=True))
    return Figures(overall, _rows([names[number] for number in evaluation.params.catIds], table.T))


def _voc(annotated: AnnotatedDataset, found: Sequence[Detections]) -> Figures:
    table = precisions(annotated, found)
    by_class = _rows(annotated.categories, np.nan_to_num(table, nan=-1))
    overall = {c: float(np.mean([row[c] for row in by_class.values()])) for c in OVERLAPS}
    return Figures(overall, by_class)


def _rows(names: Sequence[str], table: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Average precisions (c, 10), -1 of classes without objects -> a row of figures for each of the others."""
    counted = [i for i in range(len(names)) if table[i, 0] >= 0]
    return {names[i]: {c: float(table[i, at].mean()) for c, at in OVERLAPS.items()} for i in counted}
