"""The filter against the textbook's equations (Kalman 1960), written out with matrices and inverses."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mec.evaluate.tracking.motion import FAR, Motion

Floats = NDArray[np.float64]


class Textbook:
    """Noise as DeepSORT has it: of a height h, h/20 of places and h/160 of velocities a frame; ratios of their own."""

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

    def innovation(self) -> Floats:
        h = self.x[3]
        R = np.diag([h / 20, h / 20, 1e-1, h / 20]) ** 2
        return self.H @ self.P @ self.H.T + R

    def update(self, box: Floats) -> None:
        S = self.innovation()
        K = self.P @ self.H.T @ np.linalg.inv(S)
        self.x = self.x + K @ (self.z(box) - self.H @ self.x)
        self.P = (np.eye(8) - K @ self.H) @ self.P

    def distance(self, box: Floats) -> float:
        away = self.z(box) - self.H @ self.x
        return float(away @ np.linalg.inv(self.innovation()) @ away)

    def same_as(self, motion: Motion) -> None:
        np.testing.assert_allclose(motion.mean, self.x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(motion.covariance, self.P, rtol=1e-7, atol=1e-9)


def test_ten_frames_of_which_two_are_missed() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[30 + 5 * t, 40 - 2 * t, 20 + t, 60 + 2 * t] for t in range(10)]) + rng.normal(size=(10, 4))
    motion, textbook = Motion.of(boxes[0]), Textbook(boxes[0])
    textbook.same_as(motion)
    for frame, box in enumerate(boxes[1:], 1):
        motion.predict(still_seen=True)
        textbook.predict()
        textbook.same_as(motion)
        others = boxes[[frame - 1, frame]] + rng.normal(size=(2, 4))
        np.testing.assert_allclose(motion.distances(others), [textbook.distance(other) for other in others])
        if frame not in (4, 5):
            motion.update(box)
            textbook.update(box)
            textbook.same_as(motion)


def test_what_is_lost_keeps_its_height_and_goes_on() -> None:
    box = np.array([10.0, 20, 30, 60])
    motion = Motion.of(box)
    motion.mean[4:] = 3, -1, 0, 5
    motion.predict(still_seen=False)
    np.testing.assert_allclose(motion.box(), [13, 19, 30, 60], atol=1e-5)
    motion.mean[7] = 5
    motion.predict(still_seen=True)
    assert motion.mean[3] == 65
    assert motion.mean[0] == pytest.approx(25 + 3 + 3)


def test_a_new_one_is_where_it_was_seen() -> None:
    box = np.array([10.0, 20, 30, 60])
    np.testing.assert_allclose(Motion.of(box).box(), box, rtol=1e-7)
    assert Motion.of(box).distances(np.stack([box, box]))[0] == pytest.approx(0)
    assert Motion.of(box).distances(np.zeros((0, 4))).shape == (0,)


def test_the_mean_given_is_not_shared_between_frames() -> None:
    motion = Motion.of(np.array([10.0, 20, 30, 60]))
    before = motion.mean, motion.covariance
    kept = motion.mean.copy(), motion.covariance.copy()
    motion.predict(still_seen=False)
    motion.update(np.array([11.0, 20, 30, 60]))
    for array, copied in zip(before, kept, strict=True):
        np.testing.assert_array_equal(array, copied)


def test_a_velocity_is_learned() -> None:
    motion = Motion.of(np.array([0.0, 0, 20, 40]))
    for frame in range(1, 30):
        motion.predict(still_seen=True)
        motion.update(np.array([4.0 * frame, 0, 20, 40]))
    motion.predict(still_seen=True)
    assert motion.box()[0] == pytest.approx(120, abs=0.5)


def test_far_is_the_95_percent_quantile_of_four_numbers() -> None:
    stats = pytest.importorskip("scipy.stats")
    assert stats.chi2(4).ppf(0.95) == pytest.approx(FAR, abs=1e-4)
