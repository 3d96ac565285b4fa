"""Association of detections with tracks, frame by frame, by appearance and position (UniTrack, Wang et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.tracking.appearance import reconstruction_similarity
from mec.evaluate.tracking.sequences import Boxes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POSITION_STD, VELOCITY_STD = 1 / 20, 1 / 160  # standard deviations per frame, in heights of the box
TRANSITION = np.eye(8) + np.eye(8, k=4)
OBSERVATION = np.eye(4, 8)
GATING_DISTANCE = 9.4877  # 95 % quantile of the squared Mahalanobis distance of a measurement in four dimensions


@dataclass(frozen=True)
class AssociationSettings:
    """Settings of the association. The defaults are UniTrack's for boxes.

    Each frame is associated in three stages: confirmed and lost tracks by appearance and motion; the remaining
    confirmed tracks by IoU; unconfirmed tracks by IoU. Limits are of the cost of a match, 1 - IoU or 1 - similarity.
    """

    motion_weight: float = 0.0  # of the filter's distance in the first stage (1 - lambda in UniTrack); 0: none
    gating: bool = True  # reject pairs beyond GATING_DISTANCE in the first stage if ``motion_weight`` is not 0
    max_appearance_cost: float = 0.7
    max_overlap_cost: float = 0.5
    max_unconfirmed_cost: float = 0.7
    max_duplicate_cost: float = 0.15  # of an active and a lost track below it, the longer tracked one is kept
    confirm_at_once: bool = False  # False waits for a second detection, except in the first frame of the video
    patience: int = 30  # frames that a lost track is kept, at 30 frames per second; UniTrack's code keeps it one longer
    corrected: bool = False  # False: ``padded`` features, and boxes 1 pixel wider and higher, as in UniTrack's code
    use_appearance: bool = True  # False skips the first stage, as a baseline without an encoder

    def __post_init__(self) -> None:
        if not 0 <= self.motion_weight < 1:
            raise InputError(f"motion_weight: expected a number in [0, 1), got {self.motion_weight}")
        if self.patience < 0:
            raise InputError(f"patience: expected at least 0 frames, got {self.patience}")


class BoxFilter:
    """Kalman filter of constant velocity for one box, started at a measured box (4,) with velocity 0.

    The state is (x, y, a, h) and its velocities: center, aspect ratio (width / height) and height of the box. Noise is
    proportional to the height (Wojke et al. 2017, DeepSORT).
    """

    def __init__(self, box: Floats) -> None:
        measured = _measurements(box[None])[0]
        height = measured[3]
        std = np.concatenate([2 * _std(POSITION_STD, height, 1e-2 / 2), 10 * _std(VELOCITY_STD, height, 1e-5 / 10)])
        self.mean, self.covariance = np.concatenate([measured, np.zeros(4)]), np.diag(std**2)

    def predict(self, lost: bool = False) -> None:
        """Advance by one frame. The height of a lost track stays the same."""
        mean = self.mean.copy()
        if lost:
            mean[7] = 0
        std = np.concatenate([_std(POSITION_STD, mean[3], 1e-2), _std(VELOCITY_STD, mean[3], 1e-5)])
        self.mean = TRANSITION @ mean
        self.covariance = TRANSITION @ self.covariance @ TRANSITION.T + np.diag(std**2)

    def update(self, box: Floats) -> None:
        """Correct the state with a measured box (4,)."""
        mean, covariance = self._project()
        gain = np.linalg.solve(covariance, OBSERVATION @ self.covariance).T
        self.mean = self.mean + gain @ (_measurements(box[None])[0] - mean)
        self.covariance = self.covariance - gain @ covariance @ gain.T

    def distances(self, boxes: Boxes) -> Floats:
        """Return the squared Mahalanobis distances (k,) of boxes from the predicted one."""
        mean, covariance = self._project()
        residuals = _measurements(boxes) - mean
        distances: Floats = np.einsum("ki,ik->k", residuals, np.linalg.solve(covariance, residuals.T))
        return distances

    def box(self) -> Floats:
        """Return left, top, width and height."""
        x, y, aspect_ratio, height = self.mean[:4]
        width = aspect_ratio * height
        return np.array([x - width / 2, y - height / 2, width, height])

    def _project(self) -> tuple[Floats, Floats]:
        """Return mean (4,) and covariance (4, 4) of the expected measurement."""
        return self.mean[:4], self.covariance[:4, :4] + np.diag(_std(POSITION_STD, self.mean[3], 1e-1) ** 2)


def _measurements(boxes: Boxes) -> Floats:
    """Convert (k, 4) left, top, width, height to x, y, a, h."""
    centers = boxes[:, :2] + boxes[:, 2:] / 2
    return np.column_stack([centers, boxes[:, 2] / (boxes[:, 3] + 1e-6), boxes[:, 3]])


def _std(per_height: float, height: float, aspect_ratio_std: float) -> Floats:
    return np.array([per_height * height, per_height * height, aspect_ratio_std, per_height * height])


@dataclass
class Track:
    """State of one tracked object."""

    id: int
    motion: BoxFilter
    features: Tensor | None  # (d, cells) in the last frame with a detection; None without an encoder
    first_frame: int  # number of the first frame with a detection, counted from 1
    last_frame: int
    confirmed: bool
    lost: bool = False


class OnlineTracker:
    """Online tracker of one video. Call ``step`` with the detections of each frame in turn."""

    def __init__(self, settings: AssociationSettings, frame_rate: float = 30.0) -> None:
        self.settings = settings
        self.patience = int(frame_rate / 30 * settings.patience)
        self.frame = 0
        self.tracks: list[Track] = []
        self.lost: list[Track] = []
        self.last_id = 0

    def step(self, boxes: Boxes, features: Sequence[Tensor]) -> tuple[Ints, Ints, Boxes]:
        """Associate the detections of the next frame: boxes (k, 4), and k features (d, cells) if appearance is used.
        Return ids (n,), detection indices (n,) and filtered boxes (n, 4) of the confirmed tracks in this frame."""
        self.frame += 1
        settings = self.settings
        features_of: Sequence[Tensor | None] = features or [None] * len(boxes)
        matches: dict[int, Track] = {}
        unmatched = list(range(len(boxes)))

        def match(tracks: list[Track], costs: Floats, max_cost: float) -> None:
            """Update the tracks that match an unmatched detection."""
            for row, index in [(row, unmatched[column]) for row, column in assign(costs, max_cost)]:
                track = matches[index] = tracks[row]
                track.motion.update(boxes[index])
                track.features = features_of[index]
                track.last_frame, track.confirmed, track.lost = self.frame, True, False
                unmatched.remove(index)

        confirmed = [t for t in self.tracks if t.confirmed]
        unconfirmed = [t for t in self.tracks if not t.confirmed]
        candidates = confirmed + self.lost
        for track in candidates:
            track.motion.predict(lost=track.lost)  # a lost track keeps its height
        if settings.use_appearance:
            match(candidates, self._costs(candidates, boxes, features), settings.max_appearance_cost)
        # lost tracks are recovered by appearance only, as in UniTrack
        remaining = [t for t in confirmed if t.last_frame < self.frame]
        match(remaining, 1 - self._iou(_boxes(remaining), boxes[unmatched]), settings.max_overlap_cost)
        match(unconfirmed, 1 - self._iou(_boxes(unconfirmed), boxes[unmatched]), settings.max_unconfirmed_cost)
        for index in unmatched:
            self.last_id += 1
            is_confirmed = settings.confirm_at_once or self.frame == 1
            matches[index] = Track(
                self.last_id, BoxFilter(boxes[index]), features_of[index], self.frame, self.frame, is_confirmed
            )
        self._update_tracks(list(matches.values()))
        active = {id(t) for t in self.tracks}
        output = [(index, t) for index, t in matches.items() if t.confirmed and id(t) in active]
        output.sort(key=lambda match: match[1].id)
        ids = np.array([t.id for _, t in output], np.int64)
        indices = np.array([index for index, _ in output], np.int64)
        return ids, indices, _boxes([t for _, t in output])

    def _iou(self, first: Boxes, second: Boxes) -> Floats:
        margin = [0, 0, 0, 0] if self.settings.corrected else [0, 0, 1, 1]
        return box_iou(first + margin, second + margin)

    def _costs(self, tracks: list[Track], boxes: Boxes, features: Sequence[Tensor]) -> Floats:
        track_features = [t.features for t in tracks if t.features is not None]
        costs = 1 - reconstruction_similarity(track_features, features, padded=not self.settings.corrected)
        weight = self.settings.motion_weight
        if weight and len(boxes):
            for row, track in enumerate(tracks):
                distances = track.motion.distances(boxes)
                costs[row] = (1 - weight) * costs[row] + weight * distances
                if self.settings.gating:
                    costs[row, distances > GATING_DISTANCE] = np.inf
        return costs

    def _update_tracks(self, active: list[Track]) -> None:
        """Sort tracks into active and lost ones; remove expired, duplicate and unmatched unconfirmed ones."""
        active.sort(key=lambda t: t.id)
        lost = [t for t in [*self.lost, *self.tracks] if t.confirmed and t.last_frame < self.frame]
        for track in lost:
            track.lost = True
        # UniTrack removes a track one frame after its patience has ended
        lost = [t for t in lost if self.frame - t.last_frame <= self.patience + 1]
        removed: set[int] = set()
        for i, j in np.argwhere(1 - self._iou(_boxes(active), _boxes(lost)) < self.settings.max_duplicate_cost):
            ages = [t.last_frame - t.first_frame for t in (active[i], lost[j])]
            removed.add(id(lost[j] if ages[0] > ages[1] else active[i]))
        self.tracks = [t for t in active if id(t) not in removed]
        self.lost = [t for t in lost if id(t) not in removed]


def assign(costs: Floats, max_cost: float) -> list[tuple[int, int]]:
    """Return the matching (row, column) of minimum total cost. Each row (or column, if these are fewer) without a pair
    adds ``max_cost``; pairs that cost ``max_cost`` or more, or NaN, are never matched."""
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
