"""Metrics of PoseTrack, of each kind of joint and of whole persons, written from its own evaluation (poseval).

poseval differs in four ways. It omits the last frame of every sequence. In a frame without annotated or without tracked
persons, it counts one missed and one false person, however many there are. It gives no IDF1 to a joint that is never
visible in one of the sequences. And of two possible matches, it prefers the last match even after a gap; trackeval does
so only for a match in the frame before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.datasets.posetrack import PoseGroundTruth
from mec.evaluate.tracking.metrics.identity import SequenceSimilarities, identity_scores
from mec.evaluate.tracking.sequences import JOINTS, DetectionSequence, Scores, Tracks, hide_ignored

MAX_DISTANCE = 0.5  # distance in head sizes up to which a joint is correct
BODY_PARTS = {
    "head": ("head_top", "head_bottom", "nose"),
    **{part: (f"right_{part}", f"left_{part}") for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")},
}

Floats = NDArray[np.float64]
FrameSimilarities = tuple[NDArray[np.int64], NDArray[np.int64], Floats]  # ids of ground truth and tracks, similarities


@dataclass(frozen=True)
class PoseSimilarities:
    """Ids and similarities of whole persons, and of each joint of JOINTS as if it were an object of its own."""

    persons: SequenceSimilarities
    joints: tuple[SequenceSimilarities, ...]


def pose_similarities(sequence: DetectionSequence, tracks: Tracks) -> PoseSimilarities:
    """Return the ids and similarities in the frames that have annotated persons, without joints in ignored regions.

    The similarity of two joints of a kind is 1 minus their distance in sizes of the annotated head, so that PoseTrack's
    limit is at 0.5; that of two persons is the fraction of the annotated joints within this limit.
    """
    ground_truth: PoseGroundTruth = sequence.ground_truth
    annotated = {frame.name: frame for frame in ground_truth.frames}
    persons: list[FrameSimilarities] = []
    joints: list[list[FrameSimilarities]] = [[] for _ in JOINTS]
    for name, tracked in zip(ground_truth.names, tracks, strict=True):
        frame = annotated[name]
        if not frame.persons:
            continue
        true_poses, poses = (hide_ignored(objects.poses, frame.ignored) for objects in (frame.objects, tracked))
        assert frame.objects.ids is not None
        assert tracked.ids is not None
        true_visible, visible = true_poses[..., 2] > 0, poses[..., 2] > 0
        # with a head of size 0, only distance 0 is correct
        head_sizes = np.maximum(frame.head_sizes, np.finfo(float).tiny)[:, None, None]
        both_visible = true_visible[:, None] & visible[None]
        distances = np.linalg.norm(true_poses[:, None, :, :2] - poses[None, ..., :2], axis=3)
        with np.errstate(over="ignore"):
            distances = np.where(both_visible, distances / head_sizes, np.inf)
        fractions = (distances <= MAX_DISTANCE).sum(axis=2) / true_visible.sum(axis=1).clip(1)[:, None]
        rows, columns = true_visible.any(axis=1), visible.any(axis=1)
        persons.append((frame.objects.ids[rows], tracked.ids[columns], fractions[np.ix_(rows, columns)]))
        similarities = (1 - distances).clip(0)
        for j, joint in enumerate(joints):
            rows, columns = true_visible[:, j], visible[:, j]
            joint.append((frame.objects.ids[rows], tracked.ids[columns], similarities[..., j][np.ix_(rows, columns)]))
    return PoseSimilarities(_join_frames(persons), tuple(map(_join_frames, joints)))


def _join_frames(frames: Sequence[FrameSimilarities]) -> SequenceSimilarities:
    return SequenceSimilarities([f[0] for f in frames], [f[1] for f in frames], [f[2] for f in frames])


def pose_scores(sequences: Mapping[str, PoseSimilarities]) -> Scores:
    """Compute a row for each of at least one sequence, and "all". Undefined values are 0.

    MOTA and MOTP (the mean of 1 minus the distance, in head sizes, of correct joints) are from counts of each kind of
    joint over the sequences of the row, then means over the kinds in the ground truth or of a body part. As in
    UniTrack, IDF1 is computed for each kind of joint in each sequence where it is annotated or tracked, the mean is
    over sequences, then over kinds; ID switches are summed over all. Whole persons match if half of their joints do.
    """
    joints = range(len(JOINTS))
    joint_scores = [
        identity_scores({name: sequence.joints[j] for name, sequence in sequences.items()}, hota=False) for j in joints
    ]
    person_scores = identity_scores({name: sequence.persons for name, sequence in sequences.items()})
    scores: Scores = {}
    for row in person_scores:
        names = list(sequences) if row == "all" else [row]
        annotated = {j: [n for n in names if any(map(len, sequences[n].joints[j].ground_truth_ids))] for j in joints}
        by_joint = {joint: joint_scores[j][row] for j, joint in enumerate(JOINTS) if annotated[j]}
        idf1 = [
            [
                joint_scores[j][n]["IDF1"]
                for n in names
                if n in annotated[j] or any(map(len, sequences[n].joints[j].track_ids))
            ]
            for j in joints
        ]
        scores[row] = {
            "MOTA": _mean(values["MOTA"] for values in by_joint.values()),
            "MOTP": _mean(values["MOTP"] for values in by_joint.values()),
            "IDF1": _mean(_mean(values) for values in idf1 if values),
            "ID switches": sum(int(rows[row]["ID switches"]) for rows in joint_scores),
            **{
                f"MOTA {part}": _mean(by_joint[joint]["MOTA"] for joint in part_joints if joint in by_joint)
                for part, part_joints in BODY_PARTS.items()
            },
            **{f"person {column}": person_scores[row][column] for column in ("HOTA", "IDF1", "ID switches")},
        }
    return scores


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else 0.0
