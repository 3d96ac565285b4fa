"""The Kalman filter against the textbook's equations (Kalman 1960), written with matrices and inverses."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mec.evaluate.tracking.association import GATING_DISTANCE, BoxFilter

Floats = NDArray[np.float64]


class TextbookFilter:
    """Noise as in DeepSORT: for a height h, h/20 for positions and h/160 for velocities per frame."""

    def __init__(self, box: Floats) -> None:
        self.x = np.concatenate([self.z(box), np.zeros(4)])
        h = box[3]
        self.P = np.diag([h / 10, h / 10, 1e-2, h / 10, h / 16, h / 16, 1e-5, h / 16]) ** 2
        self.F = np.block([[np.eye(4), np.eye(4)], [np.zeros((4, 4)), np.eye(4)]])
        self.H = np.hstack([np.eye(4), np.zeros((4, 4))])

    @staticmethod
    def z(box: Floats) -> Floats:
        left, top, width, height = box
        return np.array([left + width / 2, top + height / 2, width / (height + 1e-6), height])

    def predict(self) -> None:
        h = self.x[3]
        Q = np.diag([h / 20, h / 20, 1e-2, h / 20, h / 160, h / 160, 1e-5, h / 160]) ** 2
        self.x = self.F @ self.x
        self.P = self.F @ self.P @ self.F.T + Q

    def innovation_covariance(self) -> Floats:
        h = self.x[3]
        R = np.diag([h / 20, h / 20, 1e-1, h / 20]) ** 2
        return self.H @ self.P @ self.H.T + R

    def update(self, box: Floats) -> None:
        S = self.innovation_covariance()
        K = self.P @ self.H.T @ np.linalg.inv(S)
        self.x = self.x + K @ (self.z(box) - self.H @ self.x)
        self.P = (np.eye(8) - K @ self.H) @ self.P

    def distance(self, box: Floats) -> float:
        innovation = self.z(box) - self.H @ self.x
        return float(innovation @ np.linalg.inv(self.innovation_covariance()) @ innovation)

    def assert_equals(self, motion: BoxFilter) -> None:
        np.testing.assert_allclose(motion.mean, self.x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(motion.covariance, self.P, rtol=1e-7, atol=1e-9)


def test_filter_equals_textbook_over_ten_frames_with_two_missed() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[30 + 5 * t, 40 - 2 * t, 20 + t, 60 + 2 * t] for t in range(10)]) + rng.normal(size=(10, 4))
    motion, textbook = BoxFilter(boxes[0]), TextbookFilter(boxes[0])
    textbook.assert_equals(motion)
    for frame, box in enumerate(boxes[1:], 1):
        motion.predict()
        textbook.predict()
        textbook.assert_equals(motion)
        others = boxes[[frame - 1, frame]] + rng.normal(size=(2, 4))
        np.testing.assert_allclose(motion.distances(others), [textbook.distance(other) for other in others])
        if frame not in (4, 5):
            motion.update(box)
            textbook.update(box)
            textbook.assert_equals(motion)


def test_lost_box_keeps_its_height_and_moves_on() -> None:
    motion = BoxFilter(np.array([10.0, 20, 30, 60]))
    motion.mean[4:] = 3, -1, 0, 5
    motion.predict(lost=True)
    np.testing.assert_allclose(motion.box(), [13, 19, 30, 60], atol=1e-5)
    motion.mean[7] = 5
    motion.predict()
    assert motion.mean[3] == 65
    assert motion.mean[0] == pytest.approx(25 + 3 + 3)


def test_gating_distance_is_the_95_percent_quantile_in_four_dimensions() -> None:
    stats = pytest.importorskip("scipy.stats")
    assert stats.chi2(4).ppf(0.95) == pytest.approx(GATING_DISTANCE, abs=1e-4)
