"""Who is who among poses: PoseTrack's figures joint by joint, and those of whole persons.

Written from what PoseTrack's own evaluation (poseval) computes, as UniTrack uses it. That differs in four things: it
leaves the last frame of every sequence out; it counts one missed and one false person for a frame where nobody is left
or found, however many there are; it gives no IDF1 to a joint that one of the sequences never shows; and where two
matches are possible, it prefers the last one after a gap too, trackeval only that of the frame before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.datasets.posetrack import PoseGroundTruth
from mec.evaluate.tracking.metrics.identity import SequenceSimilarities, identity_scores
from mec.evaluate.tracking.sequences import DetectionSequence, Scores, Tracks
from mec.evaluate.tracking.skeletons import JOINTS

NEAR = 0.5
"""Head sizes within which a joint is right."""
PARTS = {
    "head": ("head_top", "head_bottom", "nose"),
    **{part: (f"right_{part}", f"left_{part}") for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")},
}

Floats = NDArray[np.float64]
Row = tuple[NDArray[np.int64], NDArray[np.int64], Floats]
"""Ids of the truth, those of the tracks, and how alike they are, in one frame."""


@dataclass(frozen=True)
class PoseSimilarities:
    """persons: whole. joints: in the order of JOINTS, each as if it were an object of its own."""

    persons: SequenceSimilarities
    joints: tuple[SequenceSimilarities, ...]


def pose_similarities(sequence: DetectionSequence, tracks: Tracks) -> PoseSimilarities:
    """In the frames in which somebody is annotated, without joints in ignored regions and persons who have no other.

    Two joints of a kind are alike by 1 less their distance in sizes of the true head, so that 0.5 is where PoseTrack
    draws the line; two persons by the share of the true one's joints that are so near, whatever else is found.

    Args:
        sequence: of ``open_pose_detections``; only its ``truth`` is used.
        tracks: one for each of its frames, with poses; no id is in a frame twice.
    """
    truth: PoseGroundTruth = sequence.ground_truth
    known = {one.name: one for one in truth.images}
    persons: list[Row] = []
    joints: list[list[Row]] = [[] for _ in JOINTS]
    for name, found in zip(truth.names, tracks, strict=True):
        frame = known[name]
        if not frame.annotated:
            continue
        true_poses, poses = (_counted(one.poses, frame.ignored) for one in (frame.found, found))
        if frame.found.ids is None or found.ids is None:
            raise ValueError("expected tracks with ids")
        shown, seen = true_poses[..., 2] > 0, poses[..., 2] > 0
        # a head without size is right only where nothing is off
        heads = np.maximum(frame.heads, np.finfo(float).tiny)[:, None, None]
        both = shown[:, None] & seen[None]
        apart = np.linalg.norm(true_poses[:, None, :, :2] - poses[None, ..., :2], axis=3)
        with np.errstate(over="ignore"):
            apart = np.where(both, apart / heads, np.inf)
        shares = (apart <= NEAR).sum(axis=2) / shown.sum(axis=1).clip(1)[:, None]
        there, here = shown.any(axis=1), seen.any(axis=1)
        persons.append((frame.found.ids[there], found.ids[here], shares[np.ix_(there, here)]))
        alike = (1 - apart).clip(0)
        for j, rows in enumerate(joints):
            there, here = shown[:, j], seen[:, j]
            rows.append((frame.found.ids[there], found.ids[here], alike[..., j][np.ix_(there, here)]))
    return PoseSimilarities(_compared(persons), tuple(map(_compared, joints)))


def _compared(rows: Sequence[Row]) -> SequenceSimilarities:
    return SequenceSimilarities([ids for ids, _, _ in rows], [ids for _, ids, _ in rows], [alike for _, _, alike in rows])


def _counted(poses: Floats | None, ignored: Iterable[Floats]) -> Floats:
    """(k, joints, 3), those within ignored polygons not seen."""
    if poses is None:
        raise ValueError("expected tracks with poses")
    poses = poses.copy()
    for polygon in ignored:
        poses[..., 2] *= ~_within(poses[..., :2], polygon)
    return poses


def _within(points: Floats, polygon: Floats) -> NDArray[np.bool_]:
    """(..., 2) points: whether a ray to the right crosses an odd number of the sides of (n, 2) corners."""
    x, y = points[..., 0, None], points[..., 1, None]
    (x1, y1), (x2, y2) = polygon.T, np.roll(polygon, -1, axis=0).T
    spans = (y1 > y) != (y2 > y)
    at = x1 + (y - y1) * (x2 - x1) / np.where(y1 == y2, 1, y2 - y1)
    return np.asarray((spans & (x < at)).sum(axis=-1) % 2 == 1)


def pose_scores(compared: Mapping[str, PoseSimilarities]) -> Scores:
    """A row for each of one or more sequences, and "all".

    MOTA, MOTP: of each kind of joint, its counts summed over the sequences of the row; the mean of the kinds that the
        truth has. "MOTA head", "MOTA wrist" ...: means over the kinds of joints in that part, likewise.
    IDF1: of each kind of joint in each sequence that shows it, in truth or tracks; the mean over sequences, then over
        kinds: UniTrack's.
    switches: of identity, summed over all kinds of joints and sequences: UniTrack's.
    person HOTA, person IDF1, person switches: of whole persons, who are found where half of their joints are.

    MOTP is a mean of 1 less the distance in head sizes of joints that are right. What cannot be said is 0.

    Raises:
        InputError: no trackeval.
    """
    kinds = [
        identity_scores({name: one.joints[j] for name, one in compared.items()}, hota=False) for j in range(len(JOINTS))
    ]
    persons = identity_scores({name: one.persons for name, one in compared.items()})
    scores: Scores = {}
    for row in persons:
        sequences = list(compared) if row == "all" else [row]
        own = {j: [s for s in sequences if _counts(compared[s].joints[j].ground_truth_ids)] for j in range(len(JOINTS))}
        shown = {joint: kinds[j][row] for j, joint in enumerate(JOINTS) if own[j]}
        told = [
            [kinds[j][s]["IDF1"] for s in sequences if s in own[j] or _counts(compared[s].joints[j].track_ids)]
            for j in range(len(JOINTS))
        ]
        scores[row] = {
            "MOTA": _mean(one["MOTA"] for one in shown.values()),
            "MOTP": _mean(one["MOTP"] for one in shown.values()),
            "IDF1": _mean(_mean(one) for one in told if one),
            "switches": sum(int(kind[row]["switches"]) for kind in kinds),
            **{f"MOTA {part}": _mean(shown[j]["MOTA"] for j in of if j in shown) for part, of in PARTS.items()},
            **{f"person {column}": persons[row][column] for column in ("HOTA", "IDF1", "switches")},
        }
    return scores


def _counts(frames: Iterable[NDArray[np.int64]]) -> bool:
    return any(len(ids) for ids in frames)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else 0.0
