"""Published metrics to compare results with, each with its source.

Contains only numbers that were read in the source itself; the paper's tables have more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mec.results import Metric, Result, to_metrics

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
class PublishedResult:
    """Published metrics, named as in the result: of method, backbone and pretraining, from a publication and table."""

    description: str
    metrics: list[Metric]
    source: str


@dataclass(frozen=True)
class PublishedTable:
    """Published results, and the conditions for a result to be comparable with them."""

    protocol: str  # identifier of the result's protocol
    settings: Mapping[str, Any]  # settings that the result's protocol must include
    counts: Mapping[str, int]  # of the result's dataset
    source: str  # the publication and its table
    metrics: tuple[str, ...]  # columns
    rows: Mapping[str, tuple[float, ...]]  # description -> values of the columns
    row: str = "encoder"  # a row that the result must have: the rows of sot are different trackers


TABLES = (
    PublishedTable("linear-paper", PAPER_PROBE, IMAGENET, MEC_CODE, ("top-1",), {
        "MEC, ResNet-50, 100 epochs of ImageNet": (0.708,),
    }),
    PublishedTable("linear-simsiam", SIMSIAM_PROBE, IMAGENET, f"{SIMSIAM}, Table 4", ("top-1",), {
        "SimSiam, ResNet-50, 100 epochs of ImageNet": (0.681,),
        "SimSiam, ResNet-50, 200 epochs of ImageNet": (0.700,),
        "SimSiam, ResNet-50, 400 epochs of ImageNet": (0.708,),
        "SimSiam, ResNet-50, 800 epochs of ImageNet": (0.713,),
    }),
    PublishedTable("detect-voc07+12", VOC_C4, VOC, f"{SIMSIAM}, Table 5", ("AP50", "AP", "AP75"), {
        "ImageNet with labels, ResNet-50, Faster R-CNN C4, mean of 5 trials": (0.813, 0.535, 0.588),
        "MoCo v2, ResNet-50, Faster R-CNN C4, mean of 5 trials": (0.823, 0.570, 0.633),
        "SimSiam, ResNet-50, Faster R-CNN C4, mean of 5 trials": (0.824, 0.570, 0.637),
    }),
    PublishedTable("detect-coco-1x", COCO_C4, COCO, f"{SIMSIAM}, Table 5", ("AP50", "AP", "AP75"), {
        "ImageNet with labels, ResNet-50, Mask R-CNN C4": (0.582, 0.382, 0.412),
        "MoCo v2, ResNet-50, Mask R-CNN C4": (0.588, 0.392, 0.425),
        "SimSiam, ResNet-50, Mask R-CNN C4": (0.593, 0.392, 0.421),
    }),
    PublishedTable("sot-unitrack", SOT, OTB, UNITRACK, ("AUC",), {
        "xcorr with ResNet-18, ImageNet with labels, s3": (0.555,),
    }, row="xcorr"),
    PublishedTable("sot-unitrack", SOT, OTB, UNITRACK, ("AUC",), {
        "dcf with ResNet-18, ImageNet with labels, s3": (0.618,),
    }, row="dcf"),
    PublishedTable("vos-unitrack", VOS, DAVIS, UNITRACK, ("J mean",), {
        "ResNet-18, ImageNet with labels, s3": (0.584,),
    }),
)  # fmt: skip


def find_published(result: Result) -> list[PublishedResult]:
    """Return the published results of the same protocol and settings on the same dataset."""
    return [
        PublishedResult(description, to_metrics(dict(zip(table.metrics, values, strict=True))), table.source)
        for table in TABLES
        if table.protocol == result.protocol.id
        and result.protocol.includes(table.settings)
        and table.row in result.rows
        and result.dataset.counts == table.counts
        for description, values in table.rows.items()
    ]
