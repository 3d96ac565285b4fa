"""Association of detections with tracks, frame by frame, by appearance and position.

Follows UniTrack (Wang et al., NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.tracking.motion import GATING_DISTANCE, BoxFilter
from mec.evaluate.tracking.sequences import Boxes
from mec.evaluate.tracking.similarity import reconstruction_similarity

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AssociationSettings:
    """Settings of the association. The defaults are UniTrack's for boxes.

    Each frame is associated in three stages: confirmed and lost tracks by appearance and motion; the remaining
    confirmed tracks by IoU; unconfirmed tracks by IoU.

    Attributes:
        motion_weight: weight of the Kalman filter's distance in the cost of the first stage (1 - lambda in UniTrack);
            0 uses appearance alone in that stage, which is how representations are compared.
        gating: reject pairs beyond the Mahalanobis gate (``GATING_DISTANCE``) in the first stage; only if
            ``motion_weight`` is not 0.
        max_appearance_cost: upper limit of the cost of a match in the first stage.
        max_overlap_cost: upper limit of 1 - IoU for a match with the predicted box of a confirmed track.
        max_unconfirmed_cost: upper limit of 1 - IoU for a match with an unconfirmed track.
        max_duplicate_cost: an active and a lost track with a smaller 1 - IoU are duplicates; the longer tracked one
            is kept.
        confirm_at_once: confirm tracks in their first frame; False waits for a second detection, except for the tracks
            of the first frame of the video.
        patience: number of frames that a lost track is kept, at 30 frames per second; scaled with the frame rate.
            UniTrack's code keeps it one frame longer, and so does this one.
        corrected: False follows UniTrack's code: feature sets are ``padded`` (see ``reconstruction_similarity``), and
            boxes overlap as if they were 1 pixel wider and higher. True fixes both.
        use_appearance: False skips the first stage and associates by IoU alone, as a baseline without an encoder.
    """

    motion_weight: float = 0.0
    gating: bool = True
    max_appearance_cost: float = 0.7
    max_overlap_cost: float = 0.5
    max_unconfirmed_cost: float = 0.7
    max_duplicate_cost: float = 0.15
    confirm_at_once: bool = False
    patience: int = 30
    corrected: bool = False
    use_appearance: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.motion_weight < 1:
            raise InputError(f"motion_weight: expected a number in [0, 1), got {self.motion_weight}")
        if self.patience < 0:
            raise InputError(f"patience: expected at least 0 frames, got {self.patience}")


@dataclass
class Track:
    """State of one tracked object.

    motion: Kalman filter of the box.
    features: appearance features (d, spatial positions) in the last frame with a detection; None without an encoder.
    first_frame, last_frame: numbers of the first and the last frame with a detection, counted from 1.
    """

    id: int
    motion: BoxFilter
    features: Tensor | None
    first_frame: int
    last_frame: int
    confirmed: bool
    lost: bool = False


@dataclass(frozen=True)
class _Detections:
    boxes: Boxes
    features: Sequence[Tensor]

    def features_of(self, index: int) -> Tensor | None:
        return self.features[index] if self.features else None


class OnlineTracker:
    """Online tracker of one video. Call ``step`` with the detections of each frame in turn.

    Args:
        settings: see AssociationSettings.
        frame_rate: frames per second of the video.
    """

    def __init__(self, settings: AssociationSettings, frame_rate: float = 30.0) -> None:
        self.settings = settings
        self.patience = int(frame_rate / 30 * settings.patience)
        self.frame = 0
        self.tracks: list[Track] = []
        self.lost: list[Track] = []
        self.last_id = 0

    def step(self, boxes: Boxes, features: Sequence[Tensor]) -> tuple[Ints, Ints, Boxes]:
        """Associate the detections of the next frame.

        Args:
            boxes: (k, 4) left, top, width, height.
            features: (d, spatial positions) of each detection; empty if ``use_appearance`` is False.

        Returns:
            ids (n,) of the confirmed tracks with a detection in this frame, indices (n,) of their detections, and
            their filtered boxes (n, 4).
        """
        detections = _Detections(boxes, features)
        self.frame += 1
        matches: dict[int, Track] = {}
        confirmed = [t for t in self.tracks if t.confirmed]
        unconfirmed = [t for t in self.tracks if not t.confirmed]
        candidates = confirmed + self.lost
        for track in candidates:
            track.motion.predict(lost=track.lost)  # a lost track keeps its height
        unmatched = np.arange(len(boxes))
        pairs = assign(self._costs(candidates, detections), self.settings.max_appearance_cost)
        unmatched = self._match(candidates, pairs, unmatched, detections, matches)
        matched = {id(t) for t in matches.values()}
        # lost tracks are recovered by appearance only, as in UniTrack
        remaining = [t for t in confirmed if id(t) not in matched]
        pairs = assign(1 - self._iou(_boxes(remaining), boxes[unmatched]), self.settings.max_overlap_cost)
        unmatched = self._match(remaining, pairs, unmatched, detections, matches)
        pairs = assign(1 - self._iou(_boxes(unconfirmed), boxes[unmatched]), self.settings.max_unconfirmed_cost)
        unmatched = self._match(unconfirmed, pairs, unmatched, detections, matches)
        for index in unmatched.tolist():
            self.last_id += 1
            motion, is_confirmed = BoxFilter.from_box(boxes[index]), self.settings.confirm_at_once or self.frame == 1
            matches[index] = Track(
                self.last_id, motion, detections.features_of(index), self.frame, self.frame, is_confirmed
            )
        self._update_tracks(matches)
        active = {id(t) for t in self.tracks}
        output = [(index, t) for index, t in matches.items() if t.confirmed and id(t) in active]
        output.sort(key=lambda match: match[1].id)
        ids = np.array([t.id for _, t in output], np.int64)
        indices = np.array([index for index, _ in output], np.int64)
        return ids, indices, _boxes([t for _, t in output])

    def _iou(self, first: Boxes, second: Boxes) -> Floats:
        margin = [0, 0, 0, 0] if self.settings.corrected else [0, 0, 1, 1]
        return box_iou(first + margin, second + margin)

    def _costs(self, tracks: list[Track], detections: _Detections) -> Floats:
        if not self.settings.use_appearance:
            return np.ones((len(tracks), len(detections.boxes)))
        features = [t.features for t in tracks if t.features is not None]
        costs = 1 - reconstruction_similarity(features, detections.features, padded=not self.settings.corrected)
        weight = self.settings.motion_weight
        if weight and len(detections.boxes):
            for row, track in enumerate(tracks):
                distances = track.motion.distances(detections.boxes)
                costs[row] = (1 - weight) * costs[row] + weight * distances
                if self.settings.gating:
                    costs[row, distances > GATING_DISTANCE] = np.inf
        return costs

    def _match(
        self,
        tracks: list[Track],
        pairs: list[tuple[int, int]],
        unmatched: Ints,
        detections: _Detections,
        matches: dict[int, Track],
    ) -> Ints:
        """Update the tracks of all pairs (index into tracks, into unmatched) and return the detections left over."""
        for row, column in pairs:
            index = int(unmatched[column])
            track = matches[index] = tracks[row]
            track.motion.update(detections.boxes[index])
            track.features = detections.features_of(index)
            track.last_frame, track.confirmed, track.lost = self.frame, True, False
        return np.delete(unmatched, [column for _, column in pairs])

    def _update_tracks(self, matches: dict[int, Track]) -> None:
        """Sort tracks into active and lost ones; remove expired, duplicate and unmatched unconfirmed ones."""
        active = sorted(matches.values(), key=lambda t: t.id)
        matched = {id(t) for t in active}
        for track in [*self.tracks, *self.lost]:
            if id(track) not in matched:
                track.lost = True
        lost = [t for t in [*self.lost, *self.tracks] if t.lost and t.confirmed]
        # UniTrack removes a track one frame after its patience has ended
        lost = [t for t in lost if self.frame - t.last_frame <= self.patience + 1]
        duplicates = np.argwhere(1 - self._iou(_boxes(active), _boxes(lost)) < self.settings.max_duplicate_cost)
        active_is_older = [
            active[i].last_frame - active[i].first_frame > lost[j].last_frame - lost[j].first_frame
            for i, j in duplicates
        ]
        removed_active = {int(i) for (i, _), older in zip(duplicates, active_is_older, strict=True) if not older}
        removed_lost = {int(j) for (_, j), older in zip(duplicates, active_is_older, strict=True) if older}
        self.tracks = [t for i, t in enumerate(active) if i not in removed_active]
        self.lost = [t for j, t in enumerate(lost) if j not in removed_lost]


def assign(costs: Floats, max_cost: float) -> list[tuple[int, int]]:
    """Return the matching (row, column) of minimum total cost.

    The total is the sum over the pairs, plus ``max_cost`` for each row (or column, if these are fewer) without a pair.
    Pairs that cost ``max_cost`` or more, or NaN, are never matched.
    """
    gains = np.minimum(np.where(np.isnan(costs), np.inf, costs) - max_cost, 0.0)
    rows, columns = linear_sum_assignment(gains)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if gains[r, c] < 0]


def box_iou(first: Boxes, second: Boxes) -> Floats:
    """Return the IoU (k, l) of boxes (k, 4) and (l, 4) as left, top, width, height; 0 for boxes without area."""
    start = np.maximum(first[:, None, :2], second[None, :, :2])
    stop = np.minimum((first[:, :2] + first[:, 2:])[:, None], (second[:, :2] + second[:, 2:])[None])
    intersection = np.clip(stop - start, 0, None).prod(2)
    union = first[:, 2:].prod(1)[:, None] + second[:, 2:].prod(1)[None] - intersection
    iou: Floats = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou


def _boxes(tracks: Sequence[Track]) -> Boxes:
    return np.array([t.motion.box() for t in tracks]).reshape(-1, 4)
