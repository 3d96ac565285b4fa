"""J&F, the figures of DAVIS (Perazzi et al. 2016): J of the regions, F of their contours, by trackeval."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.progress import Shown, say
from mec.evaluate.tracking.metrics import trackeval
from mec.evaluate.tracking.sequences import VOID, Labels, MaskSequence, Scores

COLUMNS = ("J&F", "J", "J recall", "J decay", "F", "F recall", "F decay")
RECALLED = 0.5
QUARTERS = 4
NEEDED = (
    # trackeval asks for an opencv with windows, which lacks libraries on servers; this one takes its place
    ("cv2", "dilate", "--force-reinstall --no-deps opencv-python-headless"),
    ("skimage.morphology", "disk", "scikit-image"),
    ("pycocotools.mask", "decode", "pycocotools"),
)
"""What trackeval imports when it compares contours: module, what it takes from it, and what to install."""

Floats = NDArray[np.float64]


def check_contours() -> None:
    """What is missing for the figures is better known before hours of tracking.

    Raises:
        InputError: trackeval, opencv or scikit-image cannot be imported; what to install.
    """
    trackeval()
    for module, name, remedy in NEEDED:
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"trackeval: {module}: {' '.join(str(error).split())}; pip install {remedy}") from error


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
        InputError: as ``check_contours``.
        BrokenSequenceError: by the truth.
    """
    check_contours()
    metric = trackeval().metrics.JAndF()
    found: dict[str, Floats] = {}
    with Shown("comparing masks", len(sequences), unit="sequences") as shown:
        for sequence in sequences:
            measured = _measured(sequence, tracks[sequence.name], metric)
            if len(measured):
                found[sequence.name] = np.stack([_summary(measured[:, k]) for k in range(measured.shape[1])])
            else:
                say(f"{sequence.name}: no figures, for no frame between the first and the last has a mask")
            shown.advance(1)
    if found:
        found["all"] = np.concatenate(list(found.values()))
    return {name: dict(zip(COLUMNS, objects.mean(axis=0).tolist(), strict=True)) for name, objects in found.items()}


def _measured(sequence: MaskSequence, tracks: Sequence[Labels], metric: Any) -> Floats:
    """(frames, objects, 2), J and F."""
    if len(tracks) != len(sequence.names):
        raise ValueError(f"{sequence.name}: expected labels of {len(sequence.names)} frames, got {len(tracks)}")
    first = sequence.truth(0)
    assert first is not None
    ids = [label for label in np.unique(first).tolist() if label not in (0, VOID)]
    rows = []
    for i in range(1, len(tracks) - 1):
        truth = sequence.truth(i)
        if truth is None:
            continue
        if tracks[i].shape != truth.shape:
            raise ValueError(f"{sequence.name}: expected labels of {truth.shape}, got {tracks[i].shape} in frame {i}")
        found = np.where(truth == VOID, 0, tracks[i])
        rows.append([_compared(truth == label, found == label, metric) for label in ids])
    return np.array(rows, np.float64)


def _compared(truth: NDArray[np.bool_], found: NDArray[np.bool_], metric: Any) -> tuple[float, float]:
    """J and F of one object in one frame: of several, trackeval would choose which was meant to be which."""
    runs = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in (truth, found)]
    result = metric.eval_sequence(
        {
            "num_timesteps": 1, "num_gt_ids": 1, "num_tracker_ids": 1, "gt_ids": [[0]], "tracker_ids": [[0]],
            "gt_dets": [[runs[0]]], "tracker_dets": [[runs[1]]],
        }
    )  # fmt: skip
    return float(result["J-Mean"]), float(result["F-Mean"])


def _summary(measured: Floats) -> Floats:
    """(frames, 2) to the columns. trackeval's own would count frames in 8 bits."""
    ends = np.round(np.linspace(1, len(measured), QUARTERS + 1) + 1e-10).astype(np.int64) - 1
    # each quarter has its last frame in common with the next
    first, last = (measured[ends[q] : ends[q + 1] + 1].mean(axis=0) for q in (0, QUARTERS - 1))
    means = measured.mean(axis=0)
    each = np.stack([means, (measured > RECALLED).mean(axis=0), first - last], axis=1)
    return np.concatenate([[means.mean()], *each])
