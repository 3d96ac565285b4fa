"""OTB's one-pass evaluation of single-object trackers (Wu, Lim and Yang, CVPR 2013 and PAMI 2015).

Shares of frames in which the overlap of the boxes is above a threshold (success) and in which their centers are within
a distance (precision). All frames with a box in the truth count, the given first one too. OTB's own toolkit takes a
frame whose true box begins left of or above the image for a failure of every tracker: 8 of 59,040 frames, which here
count as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.sequences import Boxes, BoxSequence, Scores

Floats = NDArray[np.float64]
OVERLAPS = np.arange(21) / 20
DISTANCES = np.arange(51)
"""Pixels."""
PUBLISHED_DISTANCE = 20
"""Of the precision that is reported."""


def paired_iou(truth: Boxes, boxes: Boxes) -> Floats:
    """(frames,) joint area by area of both together; NaN where either is, 0 where neither has an area."""
    low = np.maximum(truth[:, :2], boxes[:, :2])
    high = np.minimum(truth[:, :2] + truth[:, 2:], boxes[:, :2] + boxes[:, 2:])
    common = (high - low).clip(0).prod(axis=1)
    union = truth[:, 2:].prod(axis=1) + boxes[:, 2:].prod(axis=1) - common
    # without the limit, rounding puts equal boxes above the threshold of 1
    return np.asarray((common / np.where(union == 0, 1, union)).clip(0, 1))


def success(truth: Boxes, boxes: Boxes) -> Floats:
    """(21,) shares of frames that overlap by more than 0, 0.05 ... 1; frames with NaN in the truth do not count.

    Raises:
        ValueError: not one box for every frame.
    """
    truth, boxes = _counted(truth, boxes)
    return np.asarray((paired_iou(truth, boxes)[:, None] > OVERLAPS).mean(axis=0))


def precision(truth: Boxes, boxes: Boxes) -> Floats:
    """(51,) shares of frames whose centers are at most 0, 1 ... 50 pixels apart; else as ``success``."""
    truth, boxes = _counted(truth, boxes)
    apart = (boxes[:, :2] + boxes[:, 2:] / 2) - (truth[:, :2] + truth[:, 2:] / 2)
    return np.asarray((np.hypot(apart[:, 0], apart[:, 1])[:, None] <= DISTANCES).mean(axis=0))


def _counted(truth: Boxes, boxes: Boxes) -> tuple[Boxes, Boxes]:
    if truth.shape != boxes.shape or truth.shape[1:] != (4,):
        raise ValueError(f"boxes: expected one for every frame, (frames, 4) {truth.shape}, got {boxes.shape}")
    counted = ~np.isnan(truth).any(axis=1)
    if not counted.any():
        raise ValueError("truth: expected a box in at least one frame")
    return truth[counted], boxes[counted]


def box_metrics(truth: Boxes, boxes: Boxes) -> dict[str, float]:
    """AUC: mean success over the thresholds. precision: within 20 pixels. Shares of 1; at best the AUC is 20/21."""
    return {
        "AUC": float(success(truth, boxes).mean()),
        "precision": float(precision(truth, boxes)[PUBLISHED_DISTANCE]),
    }


def box_scores(sequences: Sequence[BoxSequence], tracks: Mapping[str, Boxes]) -> Scores:
    """Figures of each sequence, then means: of those with an attribute, as "OCC (3)" for three, and of "all".

    Args:
        sequences: at least one.
        tracks: (frames, 4) boxes by the name of the sequence.
    """
    each = {one.name: box_metrics(one.ground_truth, tracks[one.name]) for one in sequences}
    scores = dict(each)
    for attribute in sorted({attribute for one in sequences for attribute in one.attributes}):
        having = [each[one.name] for one in sequences if attribute in one.attributes]
        scores[f"{attribute} ({len(having)})"] = _mean(having)
    scores["all"] = _mean(list(each.values()))
    return scores


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {column: float(np.mean([row[column] for row in rows])) for column in rows[0]}
