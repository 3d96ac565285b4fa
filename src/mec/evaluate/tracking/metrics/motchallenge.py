"""MOTChallenge's preprocessing of boxes, by trackeval. ``identity_scores`` computes the metrics."""

from __future__ import annotations

import numpy as np

from mec.evaluate.tracking.datasets.motchallenge import PEDESTRIAN, BoxGroundTruth
from mec.evaluate.tracking.metrics.identity import SequenceSimilarities, contiguous_ids
from mec.evaluate.tracking.metrics.trackeval_library import trackeval_dataset
from mec.evaluate.tracking.sequences import DetectionSequence, Tracks


def box_similarities(sequence: DetectionSequence, tracks: Tracks) -> SequenceSimilarities:
    """Return the ids and IoUs after MOTChallenge's preprocessing, which keeps only annotated pedestrians with a flag.

    By the rules of MOT16, MOT17 and MOT20, a tracked box that matches a person on a vehicle, a standing person, a
    distractor or a reflection is removed. ``read_ground_truth`` decides which rules apply.

    Args:
        sequence: from ``open_box_detections``; only its ``ground_truth`` is used.
        tracks: one entry for each frame; no id occurs twice in a frame.
    """
    ground_truth: BoxGroundTruth = sequence.ground_truth
    if len(tracks) != len(ground_truth.ids):
        raise ValueError(f"{sequence.name}: expected tracks of {len(ground_truth.ids)} frames, got {len(tracks)}")
    track_ids = [frame.ids for frame in tracks if frame.ids is not None]
    if len(track_ids) != len(tracks):
        raise ValueError(f"{sequence.name}: expected tracks with ids")
    dataset = trackeval_dataset("MotChallenge2DBox", BENCHMARK=ground_truth.benchmark)
    pairs = zip(ground_truth.boxes, tracks, strict=True)
    raw = {
        "num_timesteps": len(tracks),
        "seq": sequence.name,
        "gt_ids": contiguous_ids(ground_truth.ids),
        "gt_dets": ground_truth.boxes,
        "gt_classes": ground_truth.classes,
        "gt_extras": [{"zero_marked": flags} for flags in ground_truth.flags],
        "tracker_ids": contiguous_ids(track_ids),
        "tracker_dets": [frame.boxes for frame in tracks],
        "tracker_classes": [np.full(len(frame), PEDESTRIAN) for frame in tracks],
        "tracker_confidences": [frame.scores for frame in tracks],
        "similarity_scores": [dataset._calculate_similarities(boxes, frame.boxes) for boxes, frame in pairs],
    }
    data = dataset.get_preprocessed_seq_data(raw, "pedestrian")
    return SequenceSimilarities(data["gt_ids"], data["tracker_ids"], data["similarity_scores"])
