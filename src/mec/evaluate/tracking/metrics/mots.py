"""Metrics of MOTS (Voigtlaender et al. 2019) for masks, by trackeval's rules."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mec.evaluate.tracking.datasets.mots import MaskGroundTruth
from mec.evaluate.tracking.datasets.mots_format import CLASSES, remove_overlaps
from mec.evaluate.tracking.metrics.identity import SequenceSimilarities, contiguous_ids, identity_scores
from mec.evaluate.tracking.metrics.trackeval_library import trackeval_dataset
from mec.evaluate.tracking.sequences import DetectionSequence, Scores, Tracks

CLASS = "pedestrian"
"""trackeval's class under which all objects are evaluated: its rules for cars are the same."""


def mask_similarities(sequence: DetectionSequence, tracks: Tracks) -> SequenceSimilarities:
    """Return the ids and IoUs after MOTS's preprocessing.

    Overlaps of the tracks are removed first. A mask that matches no object and has more than half of its pixels in an
    ignored region is dropped.

    Args:
        sequence: from ``open_mask_detections``; only its ``ground_truth`` is used.
        tracks: one entry for each frame, with masks; no id occurs twice in a frame.
    """
    ground_truth: MaskGroundTruth = sequence.ground_truth
    if len(tracks) != len(ground_truth.ids):
        raise ValueError(f"{sequence.name}: expected tracks of {len(ground_truth.ids)} frames, got {len(tracks)}")
    dataset, class_id = trackeval_dataset("MOTSChallenge"), CLASSES[CLASS]
    tracks = [remove_overlaps(frame) for frame in tracks]
    if any(frame.ids is None or frame.masks is None for frame in tracks):
        raise ValueError("expected tracks with ids and masks")
    masks = [list(frame.masks or ()) for frame in tracks]
    pairs = zip(ground_truth.masks, masks, strict=True)
    raw = {
        "num_timesteps": len(tracks),
        "seq": sequence.name,
        "gt_ids": contiguous_ids(ground_truth.ids),
        "gt_dets": ground_truth.masks,
        "gt_classes": [np.full(len(ids), class_id) for ids in ground_truth.ids],
        "gt_ignore_region": ground_truth.ignored,
        "tracker_ids": contiguous_ids([np.asarray(frame.ids) for frame in tracks]),
        "tracker_dets": masks,
        "tracker_classes": [np.full(len(frame_masks), class_id) for frame_masks in masks],
        "similarity_scores": [dataset._calculate_similarities(a, b) for a, b in pairs],
    }
    data = dataset.get_preprocessed_seq_data(raw, CLASS)
    return SequenceSimilarities(data["gt_ids"], data["tracker_ids"], data["similarity_scores"])


def mots_scores(sequences: Mapping[str, SequenceSimilarities]) -> Scores:
    """Compute ``identity_scores`` with MOTA and MOTP renamed to MOTSA and MOTSP, and sMOTSA.

    sMOTSA is MOTSA in which a correct mask counts as its IoU. Sequences of KITTI, such as "0002 car", also give a row
    for each class, such as "all car", as in KITTI's tables.

    Raises:
        InputError: trackeval is not installed.
    """
    scores = _scores(sequences)
    for category in CLASSES:
        of_category = {name: sequence for name, sequence in sequences.items() if name.endswith(f" {category}")}
        if 0 < len(of_category) < len(sequences):
            scores[f"all {category}"] = _scores(of_category)["all"]
    return scores


def _scores(sequences: Mapping[str, SequenceSimilarities]) -> Scores:
    objects = {name: sum(map(len, sequence.ground_truth_ids)) for name, sequence in sequences.items()}
    rows = identity_scores(sequences)
    return {name: _row(row, objects.get(name, sum(objects.values()))) for name, row in rows.items()}


def _row(row: dict[str, float], objects: int) -> dict[str, float]:
    true_positives = (objects - row["FN"]) * row["MOTP"]
    smotsa = (true_positives - row["FP"] - row["ID switches"]) / objects if objects else 0.0
    renamed = {{"MOTA": "MOTSA", "MOTP": "MOTSP"}.get(column, column): value for column, value in row.items()}
    return {"sMOTSA": smotsa, **renamed}
