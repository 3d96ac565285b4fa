"""Crops against bilinear samples of each pixel; tracked boxes against targets with known motion."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.tracking.association import box_iou
from mec.evaluate.tracking.sequences import Frame, SequenceError
from mec.evaluate.tracking.sot import crop, track_box

Floats = NDArray[np.float64]


class FrameList:
    frame_rate = 30.0

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)


class ColorFeatures:
    """Stands in for DenseFeatures: a cell is the mean color of its 8 x 8 pixels, and its squares."""

    stride = 8

    def preprocess(self, frame: Frame) -> Tensor:
        return torch.from_numpy(frame.astype(np.float32) / 255 - 0.5).permute(2, 0, 1)[None]

    def __call__(self, images: Tensor) -> Tensor:
        cells = F.avg_pool2d(images, self.stride, ceil_mode=True)
        return torch.cat([cells, cells**2 - 0.1], dim=1)


class WidthFeatures(ColorFeatures):
    """The center cell grows with the width of the window (``exponent`` 1) or shrinks with it (-1); others are 0."""

    def __init__(self, exponent: int) -> None:
        self.exponent = exponent

    def preprocess(self, frame: Frame) -> Tensor:
        return torch.arange(frame.shape[1]).float().expand(1, 1, *frame.shape[:2])

    def __call__(self, images: Tensor) -> Tensor:
        center_row = images[:, 0, 260]
        features = torch.zeros(len(images), 1, 65, 65)
        features[:, 0, 32, 32] = (center_row[:, 262] - center_row[:, 258]) ** self.exponent
        return features


def track(frames: list[Frame], box: list[float], dense: Any, **options: Any) -> Floats:
    return np.stack(list(track_box(FrameList(frames), np.array(box), dense, **options)))


def bilinear_sample(image: Floats, x: float, y: float) -> Floats:
    """Sample an image (c, h, w) between the centers of its pixels; it is 0 outside."""
    left, top = math.floor(x), math.floor(y)
    value = np.zeros(len(image))
    for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, right in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                value += down * right * image[:, row, column]
    return value


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("center", [(11.3, 7.8), (0.0, 0.0), (22.0, -3.5)])
def test_crop_equals_bilinear_samples(center: tuple[float, float], corrected: bool) -> None:
    image = np.random.default_rng(0).normal(size=(2, 17, 23))
    windows, side = np.array([[9.5, 6.25], [30.0, 41.0]]), 12
    crops = crop(torch.from_numpy(image).float()[None], np.array(center), windows, side, corrected).numpy()
    assert crops.shape == (2, 2, side, side)
    for i, (width, height) in enumerate(windows):
        for row in range(side):
            for column in range(side):
                # corrected: pixels side by side; published: the first and the last sample lie on the edges
                down, right = (((k + 0.5) / side - 0.5 if corrected else k / (side - 1) - 0.5) for k in (row, column))
                expected = bilinear_sample(image, center[0] + right * width, center[1] + down * height)
                np.testing.assert_allclose(crops[i, :, row, column], expected, atol=1e-4)


def test_corrected_crop_at_the_original_scale_is_exact() -> None:
    image = torch.randn(1, 3, 30, 40)
    # pixels 10 to 17 and 5 to 12; the center is between the fourth and the fifth of them
    result = crop(image, np.array([13.5, 8.5]), np.array([[8.0, 8.0]]), 8, corrected=True)
    torch.testing.assert_close(result, image[:, :, 5:13, 10:18], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("corrected", "expected"), [(True, [77.5, 63.5]), (False, [77.0, 63.0])])
def test_first_crop_is_centered_at_the_box(
    corrected: bool, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The box contains pixels 60 to 95 and 50 to 77; the center of the first pixel is (0, 0)."""
    calls: list[Any] = []

    def recording_crop(*args: Any) -> Tensor:
        calls.append(args[1:])
        return crop(*args)

    monkeypatch.setattr("mec.evaluate.tracking.sot.crop", recording_crop)
    track(scene([(60, 50)], [(36, 28)]), [60, 50, 36, 28], ColorFeatures(), corrected=corrected)
    ((center, windows, side, is_corrected),) = calls
    np.testing.assert_allclose(center, expected)
    np.testing.assert_allclose(windows, [[4.5 * 36, 4.5 * 28]])
    assert (side, is_corrected) == (520, corrected)


def scene(corners: list[tuple[int, int]], sizes: list[tuple[int, int]]) -> list[Frame]:
    """Draw a board of random colors on a background of low contrast.

    Args:
        corners: left, top of the board in each frame.
        sizes: width, height of the board in each frame.
    """
    rng = np.random.default_rng(3)
    background = rng.integers(110, 140, (10, 14, 3))
    board = torch.from_numpy(rng.choice([0, 255], (4, 4, 3))).permute(2, 0, 1)[None].float()
    frames = []
    for (left, top), (width, height) in zip(corners, sizes, strict=True):
        frame = np.kron(background, np.ones((16, 16, 1))).astype(np.uint8)
        frame[top : top + height, left : left + width] = (
            F.interpolate(board, size=(height, width))[0].permute(1, 2, 0).numpy()
        )
        frames.append(frame)
    return frames


@pytest.mark.parametrize("tracker", ["dcf", "xcorr"])
def test_moving_target_is_tracked(tracker: str) -> None:
    corners = [(60 + 7 * step, 50 - 4 * step) for step in range(8)]
    boxes = track(scene(corners, [(36, 28)] * 8), [60, 50, 36, 28], ColorFeatures(), tracker=tracker, corrected=True)
    truth = np.array([[left, top, 36, 28] for left, top in corners], float)
    np.testing.assert_array_equal(boxes[0], truth[0])
    assert np.diag(box_iou(boxes, truth)).min() > 0.85
    baseline = np.diag(box_iou(truth[:1].repeat(8, 0), truth))
    assert baseline[-1] == 0, "a box that never moves would fail"


def test_box_grows_with_the_target() -> None:
    sizes = [(round(36 * 1.02**step), round(28 * 1.02**step)) for step in range(12)]
    corners = [(110 - width // 2, 80 - height // 2) for width, height in sizes]
    frames = scene(corners, sizes)
    boxes = track(frames, [*map(float, corners[0]), 36, 28], ColorFeatures(), tracker="dcf", corrected=True)
    assert boxes[-1, 2] == pytest.approx(sizes[-1][0], rel=0.1)
    assert sizes[-1][0] / sizes[0][0] > 1.2
    # all sizes are powers of the scale step
    steps = np.log(boxes[:, 2] / 36) / np.log(1.0275)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)
    np.testing.assert_allclose(boxes[:, 3] / boxes[:, 2], 28 / 36)


@pytest.mark.parametrize("tracker", ["dcf", "xcorr"])
def test_box_of_a_static_target_stays(tracker: str) -> None:
    frames = scene([(60, 50)] * 4, [(36, 28)] * 4)
    boxes = track(frames, [60, 50, 36, 28], ColorFeatures(), tracker=tracker, corrected=True)
    np.testing.assert_allclose(boxes, [[60, 50, 36, 28]] * 4, atol=1e-9)


def test_published_cross_correlation_drifts_from_a_static_target() -> None:
    """The peak is at 25 of 52 cells, but the code takes 26 for the center: an error of one cell, scaled by 65 / 52."""
    frames = scene([(60, 50)] * 2, [(36, 28)] * 2)
    boxes = track(frames, [60, 50, 36, 28], ColorFeatures(), tracker="xcorr")
    step = 1.25 * 4.5 / 65
    np.testing.assert_allclose(boxes[1], [60 - 36 * step, 50 - 28 * step, 36, 28], atol=1e-9)


@pytest.mark.parametrize(("corrected", "limits"), [(False, (60, 100)), (True, (100, 60))])
def test_box_is_not_larger_than_the_image(corrected: bool, limits: tuple[int, int]) -> None:
    """The published code limits its width by the height of the image, 60 pixels."""
    frames = [np.zeros((60, 100, 3), np.uint8)] * 30
    boxes = track(frames, [25, 5, 50, 50], WidthFeatures(1), tracker="dcf", corrected=corrected)
    for step in range(30):
        np.testing.assert_allclose(boxes[step, 2:], np.minimum(50 * 1.0275**step, limits))


def test_size_stays_between_a_fifth_and_five_times_the_first_and_above_four_pixels() -> None:
    frames = [np.zeros((300, 300, 3), np.uint8)] * 64
    boxes = track(frames[:12], [100, 100, 5, 30], WidthFeatures(-1), corrected=True)
    np.testing.assert_allclose(boxes[-1, 2:], [4, 30 / 1.0275**11])
    boxes = track(frames, [100, 100, 5, 6], WidthFeatures(1), corrected=True)
    np.testing.assert_allclose(boxes[-1, 2:], [25, 30])


def test_video_without_frames_has_no_boxes() -> None:
    assert list(track_box(FrameList([]), np.array([1.0, 2, 3, 4]), ColorFeatures())) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("box", [[100, 0, 5, 5], [0, 60, 5, 5], [-5, 0, 5, 5], [3, 3, 0, 5], [math.nan] * 4])
def test_box_outside_of_the_first_frame_is_rejected(box: list[float]) -> None:
    with pytest.raises(SequenceError, match=r"^the box .* is not within the first frame \(100 x 60\)$"):
        track([np.zeros((60, 100, 3), np.uint8)], box, ColorFeatures())


def test_frames_of_another_size_and_unknown_trackers_are_rejected() -> None:
    frames = [np.zeros((60, 100, 3), np.uint8), np.zeros((60, 90, 3), np.uint8)]
    with pytest.raises(SequenceError, match=r"^a frame is 90 x 60, the first 100 x 60$"):
        track(frames, [10, 10, 20, 20], ColorFeatures())
    with pytest.raises(InputError, match=r"^tracker: expected dcf or xcorr, got 'kcf'$"):
        track(frames, [10, 10, 20, 20], ColorFeatures(), tracker="kcf")
