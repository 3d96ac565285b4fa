"""Kalman filter of constant velocity that predicts boxes.

The state is (x, y, a, h) and its velocities: center, aspect ratio (width / height) and height of the box. Noise is
proportional to the height (Wojke et al. 2017, DeepSORT).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.sequences import Boxes

Floats = NDArray[np.float64]

POSITION_STD, VELOCITY_STD = 1 / 20, 1 / 160
"""Standard deviations per frame, in heights of the box."""
TRANSITION = np.eye(8) + np.eye(8, k=4)
OBSERVATION = np.eye(4, 8)
GATING_DISTANCE = 9.4877
"""95 % quantile of the squared Mahalanobis distance of a measurement in four dimensions."""


@dataclass
class BoxFilter:
    """State of one box: ``mean`` (8,) and ``covariance`` (8, 8)."""

    mean: Floats
    covariance: Floats

    @staticmethod
    def from_box(box: Floats) -> BoxFilter:
        """Start at a measured box (4,) with velocity 0."""
        measured = _measurements(box[None])[0]
        height = measured[3]
        std = np.concatenate([2 * _position_std(height, 1e-2 / 2), 10 * _velocity_std(height, 1e-5 / 10)])
        return BoxFilter(np.concatenate([measured, np.zeros(4)]), np.diag(std**2))

    def predict(self, lost: bool = False) -> None:
        """Advance by one frame. The height of a lost track stays the same."""
        mean = self.mean.copy()
        if lost:
            mean[7] = 0
        std = np.concatenate([_position_std(mean[3], 1e-2), _velocity_std(mean[3], 1e-5)])
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
        return self.mean[:4], self.covariance[:4, :4] + np.diag(_position_std(self.mean[3], 1e-1) ** 2)


def _measurements(boxes: Boxes) -> Floats:
    """Convert (k, 4) left, top, width, height to x, y, a, h."""
    centers = boxes[:, :2] + boxes[:, 2:] / 2
    return np.column_stack([centers, boxes[:, 2] / (boxes[:, 3] + 1e-6), boxes[:, 3]])


def _position_std(height: float, aspect_ratio_std: float) -> Floats:
    return np.array([POSITION_STD * height, POSITION_STD * height, aspect_ratio_std, POSITION_STD * height])


def _velocity_std(height: float, aspect_ratio_std: float) -> Floats:
    return np.array([VELOCITY_STD * height, VELOCITY_STD * height, aspect_ratio_std, VELOCITY_STD * height])
