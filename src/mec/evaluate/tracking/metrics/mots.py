"""Who is who among masks: MOTS' figures (Voigtlaender et al. 2019), by trackeval's rules."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mec.evaluate.tracking.datasets.mots import MaskGroundTruth
from mec.evaluate.tracking.datasets.mots_format import CLASSES, remove_overlaps
from mec.evaluate.tracking.metrics.identity import SequenceSimilarities, contiguous_ids, identity_scores
from mec.evaluate.tracking.metrics.trackeval_library import trackeval_dataset
from mec.evaluate.tracking.sequences import DetectionSequence, Scores, Tracks

RULES = "pedestrian"
"""trackeval's class in whose name all are compared: its rules are the same for cars."""


def mask_similarities(sequence: DetectionSequence, tracks: Tracks) -> SequenceSimilarities:
    """Tracks made ``remove_overlaps``; a mask that fits nobody and lies by more than half in an ignored region does not count.

    Args:
        sequence: of ``open_mask_detections``; only its ``truth`` is used.
        tracks: one for each of its frames, with masks; no id is in a frame twice.
    """
    truth: MaskGroundTruth = sequence.ground_truth
    if len(tracks) != len(truth.ids):
        raise ValueError(f"{sequence.name}: expected tracks of {len(truth.ids)} frames, got {len(tracks)}")
    rules, known = trackeval_dataset("MOTSChallenge"), CLASSES[RULES]
    tracks = [remove_overlaps(found) for found in tracks]
    if any(found.ids is None or found.masks is None for found in tracks):
        raise ValueError("expected tracks with ids and masks")
    masks = [list(found.masks or ()) for found in tracks]
    raw = {
        "num_timesteps": len(tracks),
        "seq": sequence.name,
        "gt_ids": contiguous_ids(truth.ids),
        "gt_dets": truth.masks,
        "gt_classes": [np.full(len(ids), known) for ids in truth.ids],
        "gt_ignore_region": truth.ignored,
        "tracker_ids": contiguous_ids([np.asarray(found.ids) for found in tracks]),
        "tracker_dets": masks,
        "tracker_classes": [np.full(len(some), known) for some in masks],
        "similarity_scores": [rules._calculate_similarities(a, b) for a, b in zip(truth.masks, masks, strict=True)],
    }
    data = rules.get_preprocessed_seq_data(raw, RULES)
    return SequenceSimilarities(data["gt_ids"], data["tracker_ids"], data["similarity_scores"])


def mots_scores(compared: Mapping[str, SequenceSimilarities]) -> Scores:
    """``identity_scores``, where MOTA and MOTP are MOTSA and MOTSP, and sMOTSA.

    sMOTSA is MOTSA in which a mask that is right counts as its overlap. KITTI's sequences, "0002 car" and so on, have a
    row for each class too, "all car", which is what its tables show.

    Raises:
        InputError: no trackeval.
    """
    scores = _scores(compared)
    for word in CLASSES:
        own = {name: one for name, one in compared.items() if name.endswith(f" {word}")}
        if 0 < len(own) < len(compared):
            scores[f"all {word}"] = _scores(own)["all"]
    return scores


def _scores(compared: Mapping[str, SequenceSimilarities]) -> Scores:
    sizes = {name: sum(map(len, one.ground_truth_ids)) for name, one in compared.items()}
    rows = identity_scores(compared)
    return {name: _row(row, sizes.get(name, sum(sizes.values()))) for name, row in rows.items()}


def _row(row: dict[str, float], objects: int) -> dict[str, float]:
    right = (objects - row["missed"]) * row["MOTP"]
    soft = (right - row["false"] - row["switches"]) / objects if objects else 0.0
    named = {{"MOTA": "MOTSA", "MOTP": "MOTSP"}.get(column, column): value for column, value in row.items()}
    return {"sMOTSA": soft, **named}
