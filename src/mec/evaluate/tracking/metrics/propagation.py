"""Metrics of the propagation of one box (``sot``, OTB) or of masks (``vos``, DAVIS).

OTB's one-pass evaluation (Wu, Lim and Yang, CVPR 2013 and PAMI 2015), of all frames with a ground truth box. OTB's
toolkit counts a frame as a failure if this box begins left of or above the image (8 of 59,040 frames); not so here.

J&F of DAVIS (Perazzi et al. 2016), without trackeval: its F needs scikit-image and an OpenCV with GUI libraries, which
servers lack; it matches objects by overlap although their ids are given; and its decay counts frames in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from mec.engine.progress import ProgressBar
from mec.evaluate.tracking.sequences import VOID, Boxes, BoxSequence, Labels, MaskSequence, Scores

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
IOU_THRESHOLDS = np.arange(21) / 20
MAX_DISTANCE = 20  # pixels
COLUMNS = ("J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay")
RECALL_THRESHOLD = 0.5
QUARTERS = 4
CONTOUR_TOLERANCE = 0.008  # distance of matching contour pixels, a fraction of the image diagonal, rounded up to pixels


def paired_iou(ground_truth: Boxes, boxes: Boxes) -> Floats:
    """Return the IoU (frames,) of the boxes of each frame; NaN where a box is NaN, 0 where neither has an area."""
    low = np.maximum(ground_truth[:, :2], boxes[:, :2])
    high = np.minimum(ground_truth[:, :2] + ground_truth[:, 2:], boxes[:, :2] + boxes[:, 2:])
    intersection = (high - low).clip(0).prod(axis=1)
    union = ground_truth[:, 2:].prod(axis=1) + boxes[:, 2:].prod(axis=1) - intersection
    # without clipping, rounding puts equal boxes above the threshold of 1
    return np.asarray((intersection / np.where(union == 0, 1, union)).clip(0, 1))


def box_metrics(ground_truth: Boxes, boxes: Boxes) -> dict[str, float]:
    """Return AUC, the mean over the thresholds of the fraction of frames with a larger IoU, at most 20/21, and
    precision, the fraction of frames with centers at most 20 pixels apart. Frames without ground truth are ignored."""
    evaluated = ~np.isnan(ground_truth).any(axis=1)
    ground_truth, boxes = ground_truth[evaluated], boxes[evaluated]
    success = (paired_iou(ground_truth, boxes)[:, None] > IOU_THRESHOLDS).mean(axis=0)
    offsets = (boxes[:, :2] + boxes[:, 2:] / 2) - (ground_truth[:, :2] + ground_truth[:, 2:] / 2)
    precision = (np.hypot(offsets[:, 0], offsets[:, 1]) <= MAX_DISTANCE).mean()
    return {"AUC": float(success.mean()), "precision": float(precision)}


def box_scores(sequences: Sequence[BoxSequence], tracks: Mapping[str, Boxes]) -> Scores:
    """Compute a row for each sequence, then means: over sequences with an attribute, as "OCC (3)" for 3, and "all"."""
    by_sequence = {sequence.name: box_metrics(sequence.ground_truth, tracks[sequence.name]) for sequence in sequences}
    scores = dict(by_sequence)
    for attribute in sorted({attribute for sequence in sequences for attribute in sequence.attributes}):
        rows = [by_sequence[sequence.name] for sequence in sequences if attribute in sequence.attributes]
        scores[f"{attribute} ({len(rows)})"] = _mean(rows)
    scores["all"] = _mean(list(by_sequence.values()))
    return scores


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {column: float(np.mean([row[column] for row in rows])) for column in rows[0]}


def mask_scores(sequences: Sequence[MaskSequence], tracks: Callable[[MaskSequence], Sequence[Labels]]) -> Scores:
    """Compute a row for each sequence, the mean of its objects, and "all", the mean of all objects, as in DAVIS 2017.

    The objects are those of the first mask. The first, the last, and frames without ground truth are not evaluated.
    Void pixels are removed from both masks, as in DAVIS's unsupervised evaluation; the data of its semi-supervised one,
    which takes void for background, has none. An object in neither mask counts as correct. Recall is the fraction of
    frames above 0.5; decay is the mean of the first quarter of the frames minus that of the last.
    """
    by_sequence: dict[str, Floats] = {}
    with ProgressBar("comparing masks", len(sequences), unit="sequences") as progress:
        for sequence in sequences:
            values = _frame_values(sequence, tracks(sequence))
            if len(values):
                by_sequence[sequence.name] = np.stack([_summary(values[:, k]) for k in range(values.shape[1])])
            progress.advance(1)
    if by_sequence:
        by_sequence["all"] = np.concatenate(list(by_sequence.values()))
    return {
        name: dict(zip(COLUMNS, objects.mean(axis=0).tolist(), strict=True)) for name, objects in by_sequence.items()
    }


def _frame_values(sequence: MaskSequence, tracks: Sequence[Labels]) -> Floats:
    """Return J and F of each frame and object, (frames, objects, 2)."""
    first = sequence.ground_truth(0)
    assert first is not None
    ids = [label for label in np.unique(first).tolist() if label not in (0, VOID)]
    rows = []
    for i in range(1, len(sequence.names) - 1):
        ground_truth = sequence.ground_truth(i)
        if ground_truth is None:
            continue
        labels = np.where(ground_truth == VOID, 0, tracks[i])
        pairs = ((ground_truth == object_id, labels == object_id) for object_id in ids)
        rows.append([(region_similarity(*masks), contour_accuracy(*masks)) for masks in pairs])
    return np.array(rows, np.float64)


def region_similarity(ground_truth: Mask, mask: Mask) -> float:
    """Return J, the IoU of two masks (h, w); 1 if both are empty."""
    union = int((ground_truth | mask).sum())
    return float((ground_truth & mask).sum() / union) if union else 1.0


def contour_accuracy(ground_truth: Mask, mask: Mask) -> float:
    """Return F, the harmonic mean of the fractions of each contour that are near the other one."""
    tolerance = np.ceil(CONTOUR_TOLERANCE * np.hypot(*ground_truth.shape))
    edges = _contour(ground_truth), _contour(mask)
    if not (edges[0].any() and edges[1].any()):
        return float(not (edges[0].any() or edges[1].any()))
    recall, precision = (
        float((distance_transform_edt(~other)[edge] <= tolerance).mean()) for edge, other in (edges, edges[::-1])
    )
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _contour(mask: Mask) -> Mask:
    """Return the pixels that differ from their neighbor to the right, below, or to the lower right."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edge: Mask = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    return edge


def _summary(values: Floats) -> Floats:
    """Return the columns of one object from its J and F (frames, 2)."""
    ends = np.round(np.linspace(1, len(values), QUARTERS + 1) + 1e-10).astype(np.int64) - 1
    # adjacent quarters share a frame
    first, last = (values[ends[q] : ends[q + 1] + 1].mean(axis=0) for q in (0, QUARTERS - 1))
    means = values.mean(axis=0)
    statistics = np.stack([means, (values > RECALL_THRESHOLD).mean(axis=0), first - last], axis=1)
    return np.concatenate([[means.mean()], *statistics])
