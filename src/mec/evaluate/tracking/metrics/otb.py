"""OTB's one-pass evaluation of single-object trackers (Wu, Lim and Yang, CVPR 2013 and PAMI 2015).

Success is the fraction of frames whose IoU is above a threshold; precision is the fraction whose centers are within a
distance. All frames with a ground truth box are evaluated, including the first one, which the tracker was given. OTB's
own toolkit counts a frame as a failure of every tracker if its ground truth box begins left of or above the image; that
concerns 8 of 59,040 frames, which are evaluated normally here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.sequences import Boxes, BoxSequence, Scores

Floats = NDArray[np.float64]
IOU_THRESHOLDS = np.arange(21) / 20
MAX_DISTANCE = 20  # pixels


def paired_iou(ground_truth: Boxes, boxes: Boxes) -> Floats:
    """Return the IoU (frames,) of the boxes of each frame; NaN where a box is NaN, 0 where neither has an area."""
    low = np.maximum(ground_truth[:, :2], boxes[:, :2])
    high = np.minimum(ground_truth[:, :2] + ground_truth[:, 2:], boxes[:, :2] + boxes[:, 2:])
    intersection = (high - low).clip(0).prod(axis=1)
    union = ground_truth[:, 2:].prod(axis=1) + boxes[:, 2:].prod(axis=1) - intersection
    # without clipping, rounding puts equal boxes above the threshold of 1
    return np.asarray((intersection / np.where(union == 0, 1, union)).clip(0, 1))


def box_metrics(ground_truth: Boxes, boxes: Boxes) -> dict[str, float]:
    """Return AUC and precision. Frames without ground truth are ignored.

    AUC is the mean over the thresholds of the fraction of frames with a larger IoU, at most 20/21; precision is the
    fraction of frames whose centers are at most 20 pixels apart.

    Raises:
        ValueError: there is not one box for every frame.
    """
    if ground_truth.shape != boxes.shape or ground_truth.shape[1:] != (4,):
        raise ValueError(f"boxes: expected one for every frame, (frames, 4) {ground_truth.shape}, got {boxes.shape}")
    evaluated = ~np.isnan(ground_truth).any(axis=1)
    if not evaluated.any():
        raise ValueError("ground_truth: expected a box in at least one frame")
    ground_truth, boxes = ground_truth[evaluated], boxes[evaluated]
    success = (paired_iou(ground_truth, boxes)[:, None] > IOU_THRESHOLDS).mean(axis=0)
    offsets = (boxes[:, :2] + boxes[:, 2:] / 2) - (ground_truth[:, :2] + ground_truth[:, 2:] / 2)
    precision = (np.hypot(offsets[:, 0], offsets[:, 1]) <= MAX_DISTANCE).mean()
    return {"AUC": float(success.mean()), "precision": float(precision)}


def box_scores(sequences: Sequence[BoxSequence], tracks: Mapping[str, Boxes]) -> Scores:
    """Compute a row for each sequence, then means: over sequences with an attribute, as "OCC (3)" for 3, and "all".

    ``tracks`` has the boxes (frames, 4) by the name of the sequence.
    """
    by_sequence = {sequence.name: box_metrics(sequence.ground_truth, tracks[sequence.name]) for sequence in sequences}
    scores = dict(by_sequence)
    for attribute in sorted({attribute for sequence in sequences for attribute in sequence.attributes}):
        rows = [by_sequence[sequence.name] for sequence in sequences if attribute in sequence.attributes]
        scores[f"{attribute} ({len(rows)})"] = _mean(rows)
    scores["all"] = _mean(list(by_sequence.values()))
    return scores


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {column: float(np.mean([row[column] for row in rows])) for column in rows[0]}
