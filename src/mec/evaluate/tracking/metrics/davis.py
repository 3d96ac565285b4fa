"""J&F, the figures of DAVIS (Perazzi et al. 2016): J of the regions, F of their contours.

Not trackeval's: its F needs an OpenCV with windows, which servers lack libraries for, and scikit-image; it matches
objects by overlap where they are given; and its decay counts frames in 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from mec.engine.progress import ProgressBar, log
from mec.evaluate.tracking.sequences import VOID, Labels, MaskSequence, Scores

COLUMNS = ("J&F", "J", "J recall", "J decay", "F", "F recall", "F decay")
RECALLED = 0.5
QUARTERS = 4
NEAR = 0.008
"""Of the diagonal, rounded up to pixels: how far a point of a contour may be from the other."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def mask_scores(sequences: Sequence[MaskSequence], tracks: Mapping[str, Sequence[Labels]]) -> Scores:
    """A row for each sequence, the mean of its objects, and "all", the mean of all objects, as DAVIS 2017 has it.

    The objects are those of the first mask, each compared with what was found under its own label. The first frame and
    the last are left out, and those without truth. Void is left out of both, as in DAVIS's evaluation without
    supervision; its other one takes void for background, and has none. An object that is neither there nor found
    counts as right.

    Args:
        sequences: one or more, of different names.
        tracks: by sequence, the labels of every frame. Each sequence is asked for once, so they may come from disk.

    Returns:
        Shares; recall is that of frames above 0.5, decay the mean of the first quarter less that of the last. A
        sequence of which no frame can be compared has no row, which is said; there is no "all" without rows.

    Raises:
        ValueError: more or fewer labels than frames, or of another size.
        SequenceError: by the truth.
    """
    found: dict[str, Floats] = {}
    with ProgressBar("comparing masks", len(sequences), unit="sequences") as shown:
        for sequence in sequences:
            measured = _measured(sequence, tracks[sequence.name])
            if len(measured):
                found[sequence.name] = np.stack([_summary(measured[:, k]) for k in range(measured.shape[1])])
            else:
                log(f"{sequence.name}: no figures, for no frame between the first and the last has a mask")
            shown.advance(1)
    if found:
        found["all"] = np.concatenate(list(found.values()))
    return {name: dict(zip(COLUMNS, objects.mean(axis=0).tolist(), strict=True)) for name, objects in found.items()}


def _measured(sequence: MaskSequence, tracks: Sequence[Labels]) -> Floats:
    """(frames, objects, 2), J and F."""
    if len(tracks) != len(sequence.names):
        raise ValueError(f"{sequence.name}: expected labels of {len(sequence.names)} frames, got {len(tracks)}")
    first = sequence.ground_truth(0)
    assert first is not None
    ids = [label for label in np.unique(first).tolist() if label not in (0, VOID)]
    rows = []
    for i in range(1, len(tracks) - 1):
        truth = sequence.ground_truth(i)
        if truth is None:
            continue
        if tracks[i].shape != truth.shape:
            raise ValueError(f"{sequence.name}: expected labels of {truth.shape}, got {tracks[i].shape} in frame {i}")
        found = np.where(truth == VOID, 0, tracks[i])
        rows.append(
            [(region_similarity(truth == label, found == label), contour_accuracy(truth == label, found == label)) for label in ids]
        )
    return np.array(rows, np.float64)


def region_similarity(truth: Mask, found: Mask) -> float:
    """J: pixels of both masks (h, w) in those of either; 1 where there are none."""
    joint = int((truth | found).sum())
    return float((truth & found).sum() / joint) if joint else 1.0


def contour_accuracy(truth: Mask, found: Mask) -> float:
    """F: the harmonic mean of the shares of each contour that are near the other."""
    reach = np.ceil(NEAR * np.hypot(*truth.shape))
    edges = _contour(truth), _contour(found)
    if not (edges[0].any() and edges[1].any()):
        return float(not (edges[0].any() or edges[1].any()))
    recall, precision = (
        float((distance_transform_edt(~other)[own] <= reach).mean()) for own, other in (edges, edges[::-1])
    )
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _contour(mask: Mask) -> Mask:
    """Pixels unlike the one to the right, below, or both."""
    wider = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edge: Mask = (mask != wider[:-1, 1:]) | (mask != wider[1:, :-1]) | (mask != wider[1:, 1:])
    return edge


def _summary(measured: Floats) -> Floats:
    """(frames, 2) to the columns."""
    ends = np.round(np.linspace(1, len(measured), QUARTERS + 1) + 1e-10).astype(np.int64) - 1
    # each quarter has its last frame in common with the next
    first, last = (measured[ends[q] : ends[q + 1] + 1].mean(axis=0) for q in (0, QUARTERS - 1))
    means = measured.mean(axis=0)
    each = np.stack([means, (measured > RECALLED).mean(axis=0), first - last], axis=1)
    return np.concatenate([[means.mean()], *each])
