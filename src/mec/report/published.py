"""Published figures that a result may be read beside: of the same task, data and protocol, each with its source.

The paper's own tables give more, but only what could be read at its source is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mec.report.schema import Published

MEC_CODE, SIMSIAM = "official code's README", "SimSiam paper (Chen and He, CVPR 2021)"
UNITRACK = "UniTrack's docs/RESULTS.md"
IMAGENET = "(1,281,167 train, 50,000 test, 1000 classes)"
VOC = "(16,551 train, 4,952 test, 20 classes)"
COCO = "(118,287 train, 5,000 test, 80 classes)"
OTB = "(100 sequences, 59,035 frames)"
"""Of OTB's 59,040 its own evaluation leaves out the first five of Tiger1."""
DAVIS = "(30 sequences, 1,999 frames)"
PAPER_PROBE = (
    "offline linear probe, paper: BatchNorm and linear layer, LARS, learning rate 0.03 for 256, batch 4096, cosine, "
    "100 epochs = 31,300 steps, crops and flips, 224 px, last epoch,"
)
SIMSIAM_PROBE = (
    "offline linear probe, simsiam: linear layer, LARS, learning rate 0.02 for 256, batch 4096, cosine, "
    "90 epochs = 28,170 steps, crops and flips, 224 px, last epoch,"
)
SIXTEEN = "iterations of 16, learning rate 0.02, short side"
VOC_RULES = f"Faster R-CNN C4, voc07+12: 24,000 {SIXTEEN} 480 to 800 px, 800 in testing; VOC2007's figures (11 points);"
COCO_RULES = f"Mask R-CNN C4, coco-1x: 90,000 {SIXTEEN} 640 to 800 px, 800 in testing; COCO's figures;"
SOT = "frozen features, as published (UniTrack): three search regions of 520 px, 65 x 65 cells;"
VOS = (
    "frozen features (UniTrack): labels of the 10 most similar cells of the first frame and of the last 5 within 12 "
    "cells, temperature 0.05;"
)


@dataclass(frozen=True)
class Entry:
    """A figure, and which results it is shown beside: those whose protocol begins so, on data of these numbers.

    ``row``: one that the result must have, where its rows are not of one protocol.
    """

    task: str
    protocol: str
    data: str
    published: Published
    row: str = "encoder"


def _detected(what: str, ap50: float, ap: float, ap75: float) -> Published:
    return Published(what, {"AP50": ap50, "AP": ap, "AP75": ap75}, f"{SIMSIAM}, Table 5")


FIVE, MASKED = "ResNet-50, Faster R-CNN C4, mean of 5", "ResNet-50, Mask R-CNN C4"
ENTRIES = (
    Entry(
        "linear", PAPER_PROBE, IMAGENET, Published("MEC, ResNet-50, 100 epochs of ImageNet", {"top-1": 0.708}, MEC_CODE)
    ),
    *(
        Entry(
            "linear",
            SIMSIAM_PROBE,
            IMAGENET,
            Published(f"SimSiam, ResNet-50, {epochs} epochs of ImageNet", {"top-1": top_1}, f"{SIMSIAM}, Table 4"),
        )
        for epochs, top_1 in ((100, 0.681), (200, 0.700), (400, 0.708), (800, 0.713))
    ),
    Entry("detect", VOC_RULES, VOC, _detected(f"ImageNet with labels, {FIVE}", 0.813, 0.535, 0.588)),
    Entry("detect", VOC_RULES, VOC, _detected(f"MoCo v2, {FIVE}", 0.823, 0.570, 0.633)),
    Entry("detect", VOC_RULES, VOC, _detected(f"SimSiam, {FIVE}", 0.824, 0.570, 0.637)),
    Entry("detect", COCO_RULES, COCO, _detected(f"ImageNet with labels, {MASKED}", 0.582, 0.382, 0.412)),
    Entry("detect", COCO_RULES, COCO, _detected(f"MoCo v2, {MASKED}", 0.588, 0.392, 0.425)),
    Entry("detect", COCO_RULES, COCO, _detected(f"SimSiam, {MASKED}", 0.593, 0.392, 0.421)),
    Entry(
        "sot", SOT, OTB, Published("xcorr with ResNet-18, ImageNet with labels, s3", {"AUC": 0.555}, UNITRACK), "xcorr"
    ),
    Entry("sot", SOT, OTB, Published("dcf with ResNet-18, ImageNet with labels, s3", {"AUC": 0.618}, UNITRACK), "dcf"),
    Entry("vos", VOS, DAVIS, Published("ResNet-18, ImageNet with labels, s3", {"J": 0.584}, UNITRACK)),
)


def published(result: Mapping[str, Any]) -> list[Published]:
    """Figures of the result's protocol on the same data.

    Args:
        result: a line of results.jsonl.
    """
    protocol, data = str(result.get("protocol")), str(result.get("data"))
    return [
        entry.published
        for entry in ENTRIES
        if entry.task == result.get("task")
        and entry.row in (result.get("figures") or {})
        and protocol.startswith(entry.protocol)
        and data.endswith(entry.data)
    ]
