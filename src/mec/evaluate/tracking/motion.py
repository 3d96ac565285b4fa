"""Where a box will be in the next frame: a Kalman filter of constant velocity, for all tracks at once.

The state is (x, y, a, h) and its velocities: the middle of the box, its width over its height, its height. Noise grows
with the height (Wojke et al. 2017, DeepSORT).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.sequences import Boxes

Floats = NDArray[np.float64]

POSITION, VELOCITY = 1 / 20, 1 / 160
"""Standard deviations a frame, in heights."""
STEP = np.eye(8) + np.eye(8, k=4)
SEEN = np.eye(4, 8)
FAR = 9.4877
"""Squared Mahalanobis distance that 95 % of measurements of four numbers keep below."""


@dataclass
class Motion:
    """What is believed of one box: ``mean`` (8,) and ``covariance`` (8, 8)."""

    mean: Floats
    covariance: Floats

    @staticmethod
    def of(box: Floats) -> Motion:
        seen = _measured(box[None])[0]
        deviation = np.concatenate([2 * _deviations(seen[3], 1e-2 / 2), 10 * _velocities(seen[3], 1e-5 / 10)])
        return Motion(np.concatenate([seen, np.zeros(4)]), np.diag(deviation**2))

    def predict(self, still_seen: bool) -> None:
        """One frame on; a box that is lost keeps its height."""
        mean = self.mean.copy()
        if not still_seen:
            mean[7] = 0
        deviation = np.concatenate([_deviations(mean[3], 1e-2), _velocities(mean[3], 1e-5)])
        self.mean = STEP @ mean
        self.covariance = STEP @ self.covariance @ STEP.T + np.diag(deviation**2)

    def update(self, box: Floats) -> None:
        """The box (4,) was measured."""
        mean, covariance = self._projected()
        gain = np.linalg.solve(covariance, SEEN @ self.covariance).T
        self.mean = self.mean + gain @ (_measured(box[None])[0] - mean)
        self.covariance = self.covariance - gain @ covariance @ gain.T

    def distances(self, boxes: Boxes) -> Floats:
        """Squared Mahalanobis distances (k,) of boxes from where this one is expected."""
        mean, covariance = self._projected()
        away = _measured(boxes) - mean
        distances: Floats = np.einsum("ki,ik->k", away, np.linalg.solve(covariance, away.T))
        return distances

    def box(self) -> Floats:
        """Left, top, width, height."""
        x, y, ratio, height = self.mean[:4]
        width = ratio * height
        return np.array([x - width / 2, y - height / 2, width, height])

    def _projected(self) -> tuple[Floats, Floats]:
        return self.mean[:4], self.covariance[:4, :4] + np.diag(_deviations(self.mean[3], 1e-1) ** 2)


def _measured(boxes: Boxes) -> Floats:
    """(k, 4) left, top, width, height -> x, y, a, h."""
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    return np.column_stack([middle, boxes[:, 2] / (boxes[:, 3] + 1e-6), boxes[:, 3]])


def _deviations(height: float, ratio: float) -> Floats:
    return np.array([POSITION * height, POSITION * height, ratio, POSITION * height])


def _velocities(height: float, ratio: float) -> Floats:
    return np.array([VELOCITY * height, VELOCITY * height, ratio, VELOCITY * height])
