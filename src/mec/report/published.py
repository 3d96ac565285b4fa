"""Published metrics to compare results with, each with its source.

Contains only numbers that were read in the source itself; the paper's tables have more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mec.report.schema import PublishedResult
from mec.results import Result, to_metrics

MEC_CODE, SIMSIAM = "official code's README", "SimSiam paper (Chen and He, CVPR 2021)"
UNITRACK = "UniTrack's docs/RESULTS.md"
IMAGENET = {"train": 1_281_167, "test": 50_000, "classes": 1000}
VOC = {"train": 16_551, "test": 4_952, "classes": 20}
COCO = {"train": 118_287, "test": 5_000, "classes": 80}
OTB = {"sequences": 100, "frames": 59_035}
"""OTB's own evaluation omits the first five of the 59,040 frames, which are those of Tiger1."""
DAVIS = {"sequences": 30, "frames": 1_999}

PAPER_PROBE = {
    "head": "BatchNorm and linear", "optimizer": "LARS", "head_lr": 0.03, "batch_size": 4096, "schedule": "cosine",
    "epochs": 100, "image_size": 224,
}  # fmt: skip
SIMSIAM_PROBE = {
    "head": "linear", "optimizer": "LARS", "head_lr": 0.02, "batch_size": 4096, "schedule": "cosine", "epochs": 90,
    "image_size": 224,
}  # fmt: skip
VOC_C4 = {
    "detector": "Faster R-CNN C4", "max_steps": 24_000, "batch_size": 16, "lr": 0.02, "train_short_side": [480, 800],
    "test_short_side": 800, "metric": "VOC2007 (11 points)",
}  # fmt: skip
COCO_C4 = {
    "detector": "Mask R-CNN C4", "max_steps": 90_000, "batch_size": 16, "lr": 0.02, "train_short_side": [640, 800],
    "test_short_side": 800, "metric": "COCO",
}  # fmt: skip
SOT = {"corrected": False, "search_size": 520, "cells": 65}
VOS = {"neighbors": 10, "context": 5, "radius": 12, "temperature": 0.05}


@dataclass(frozen=True)
class Entry:
    """A published result, and the conditions for a result to be comparable with it.

    Attributes:
        protocol: identifier of the result's protocol.
        settings: settings that the result's protocol must include.
        counts: counts of the result's dataset.
        published: the published result.
        row: a row that the result must have. The rows of sot are different trackers.
    """

    protocol: str
    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    published: PublishedResult
    row: str = "encoder"


def _detection(description: str, ap50: float, ap: float, ap75: float) -> PublishedResult:
    return PublishedResult(description, to_metrics({"AP50": ap50, "AP": ap, "AP75": ap75}), f"{SIMSIAM}, Table 5")


FASTER_RCNN, MASK_RCNN = "ResNet-50, Faster R-CNN C4, mean of 5 trials", "ResNet-50, Mask R-CNN C4"
ENTRIES = (
    Entry(
        "linear-paper",
        PAPER_PROBE,
        IMAGENET,
        PublishedResult("MEC, ResNet-50, 100 epochs of ImageNet", to_metrics({"top-1": 0.708}), MEC_CODE),
    ),
    *(
        Entry(
            "linear-simsiam",
            SIMSIAM_PROBE,
            IMAGENET,
            PublishedResult(
                f"SimSiam, ResNet-50, {epochs} epochs of ImageNet", to_metrics({"top-1": top_1}), f"{SIMSIAM}, Table 4"
            ),
        )
        for epochs, top_1 in ((100, 0.681), (200, 0.700), (400, 0.708), (800, 0.713))
    ),
    Entry("detect-voc07+12", VOC_C4, VOC, _detection(f"ImageNet with labels, {FASTER_RCNN}", 0.813, 0.535, 0.588)),
    Entry("detect-voc07+12", VOC_C4, VOC, _detection(f"MoCo v2, {FASTER_RCNN}", 0.823, 0.570, 0.633)),
    Entry("detect-voc07+12", VOC_C4, VOC, _detection(f"SimSiam, {FASTER_RCNN}", 0.824, 0.570, 0.637)),
    Entry("detect-coco-1x", COCO_C4, COCO, _detection(f"ImageNet with labels, {MASK_RCNN}", 0.582, 0.382, 0.412)),
    Entry("detect-coco-1x", COCO_C4, COCO, _detection(f"MoCo v2, {MASK_RCNN}", 0.588, 0.392, 0.425)),
    Entry("detect-coco-1x", COCO_C4, COCO, _detection(f"SimSiam, {MASK_RCNN}", 0.593, 0.392, 0.421)),
    Entry(
        "sot-unitrack",
        SOT,
        OTB,
        PublishedResult("xcorr with ResNet-18, ImageNet with labels, s3", to_metrics({"AUC": 0.555}), UNITRACK),
        "xcorr",
    ),
    Entry(
        "sot-unitrack",
        SOT,
        OTB,
        PublishedResult("dcf with ResNet-18, ImageNet with labels, s3", to_metrics({"AUC": 0.618}), UNITRACK),
        "dcf",
    ),
    Entry(
        "vos-unitrack",
        VOS,
        DAVIS,
        PublishedResult("ResNet-18, ImageNet with labels, s3", to_metrics({"J mean": 0.584}), UNITRACK),
    ),
)


def find_published(result: Result) -> list[PublishedResult]:
    """Return the published results of the same protocol and settings on the same dataset."""
    return [
        entry.published
        for entry in ENTRIES
        if entry.protocol == result.protocol.id
        and result.protocol.includes(entry.settings)
        and entry.row in result.rows
        and result.dataset.counts == entry.counts
    ]
