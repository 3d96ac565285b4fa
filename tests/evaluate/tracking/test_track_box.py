"""Crops against a bilinear sample at each pixel; boxes against targets whose ways are known."""

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
from mec.evaluate.tracking.association import overlaps
from mec.evaluate.tracking.sequences import Frame, SequenceError
from mec.evaluate.tracking.track_box import crop, track_box

Floats = NDArray[np.float64]


class VideoWriter:
    rate = 30.0

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)


class Colors:
    """Stands for Dense: a cell is the mean color of its 8 x 8 pixels, and its squares."""

    stride = 8

    def image(self, frame: Frame) -> Tensor:
        return torch.from_numpy(frame.astype(np.float32) / 255 - 0.5).permute(2, 0, 1)[None]

    def __call__(self, images: Tensor) -> Tensor:
        cells = F.avg_pool2d(images, self.stride, ceil_mode=True)
        return torch.cat([cells, cells**2 - 0.1], dim=1)


class Spread(Colors):
    """One cell in the middle that is stronger the wider a window is (``sign`` 1), or the narrower (-1)."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def image(self, frame: Frame) -> Tensor:
        return torch.arange(frame.shape[1]).float().expand(1, 1, *frame.shape[:2])

    def __call__(self, images: Tensor) -> Tensor:
        middle = images[:, 0, 260]
        found = torch.zeros(len(images), 1, 65, 65)
        found[:, 0, 32, 32] = (middle[:, 262] - middle[:, 258]) ** self.sign
        return found


def follow(frames: list[Frame], box: list[float], dense: Any, **options: Any) -> Floats:
    return np.stack(list(track_box(VideoWriter(frames), np.array(box), dense, **options)))


def sampled(image: Floats, x: float, y: float) -> Floats:
    """(c, h, w) at a place between the middles of its pixels, 0 outside."""
    left, top = math.floor(x), math.floor(y)
    found = np.zeros(len(image))
    for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, right in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                found += down * right * image[:, row, column]
    return found


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("center", [(11.3, 7.8), (0.0, 0.0), (22.0, -3.5)])
def test_crops_pixel_by_pixel(center: tuple[float, float], corrected: bool) -> None:
    image = np.random.default_rng(0).normal(size=(2, 17, 23))
    windows, side = np.array([[9.5, 6.25], [30.0, 41.0]]), 12
    found = crop(torch.from_numpy(image).float()[None], np.array(center), windows, side, corrected).numpy()
    assert found.shape == (2, 2, side, side)
    for number, (width, height) in enumerate(windows):
        for row in range(side):
            for column in range(side):
                # corrected: the window's pixels side by side; published: from edge to edge, both counted
                down, right = (((i + 0.5) / side - 0.5 if corrected else i / (side - 1) - 0.5) for i in (row, column))
                wanted = sampled(image, center[0] + right * width, center[1] + down * height)
                np.testing.assert_allclose(found[number, :, row, column], wanted, atol=1e-4)


def test_a_corrected_crop_of_as_many_pixels_is_the_part_itself() -> None:
    image = torch.randn(1, 3, 30, 40)
    # pixels 10 to 17 and 5 to 12, the middle is between the fourth and the fifth of them
    found = crop(image, np.array([13.5, 8.5]), np.array([[8.0, 8.0]]), 8, corrected=True)
    torch.testing.assert_close(found, image[:, :, 5:13, 10:18], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("corrected", "middle"), [(True, [77.5, 63.5]), (False, [77.0, 63.0])])
def test_where_the_first_crop_is(corrected: bool, middle: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels 60 to 95 and 50 to 77 are in the box; the middle of the first pixel is (0, 0)."""
    seen: list[Any] = []

    def noted(*given: Any) -> Tensor:
        seen.append(given[1:])
        return crop(*given)

    monkeypatch.setattr("mec.evaluate.tracking.track_box.crop", noted)
    follow(scene([(60, 50)], [(36, 28)]), [60, 50, 36, 28], Colors(), corrected=corrected)
    ((center, windows, side, exact),) = seen
    np.testing.assert_allclose(center, middle)
    np.testing.assert_allclose(windows, [[4.5 * 36, 4.5 * 28]])
    assert (side, exact) == (520, corrected)


def scene(places: list[tuple[int, int]], sides: list[tuple[int, int]]) -> list[Frame]:
    """A colored board at these places (left, top), of these sizes, on a ground of small contrast."""
    rng = np.random.default_rng(3)
    ground = rng.integers(110, 140, (10, 14, 3))
    board = torch.from_numpy(rng.choice([0, 255], (4, 4, 3))).permute(2, 0, 1)[None].float()
    frames = []
    for (left, top), (width, height) in zip(places, sides, strict=True):
        frame = np.kron(ground, np.ones((16, 16, 1))).astype(np.uint8)
        frame[top : top + height, left : left + width] = (
            F.interpolate(board, size=(height, width))[0].permute(1, 2, 0).numpy()
        )
        frames.append(frame)
    return frames


@pytest.mark.parametrize("tracker", ["dcf", "xcorr"])
def test_a_target_that_moves_is_followed(tracker: str) -> None:
    places = [(60 + 7 * step, 50 - 4 * step) for step in range(8)]
    found = follow(scene(places, [(36, 28)] * 8), [60, 50, 36, 28], Colors(), tracker=tracker, corrected=True)
    truth = np.array([[left, top, 36, 28] for left, top in places], float)
    np.testing.assert_array_equal(found[0], truth[0])
    assert np.diag(overlaps(found, truth)).min() > 0.85
    still = np.diag(overlaps(truth[:1].repeat(8, 0), truth))
    assert still[-1] == 0, "a box that stays is not enough"


def test_a_target_that_grows_grows_its_box() -> None:
    sides = [(round(36 * 1.02**step), round(28 * 1.02**step)) for step in range(12)]
    places = [(110 - width // 2, 80 - height // 2) for width, height in sides]
    frames = scene(places, sides)
    found = follow(frames, [*map(float, places[0]), 36, 28], Colors(), tracker="dcf", corrected=True)
    assert found[-1, 2] == pytest.approx(sides[-1][0], rel=0.1)
    assert sides[-1][0] / sides[0][0] > 1.2
    # all sizes are powers of one step of scale
    steps = np.log(found[:, 2] / 36) / np.log(1.0275)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)
    np.testing.assert_allclose(found[:, 3] / found[:, 2], 28 / 36)


@pytest.mark.parametrize("tracker", ["dcf", "xcorr"])
def test_what_stands_still_keeps_its_box(tracker: str) -> None:
    frames = scene([(60, 50)] * 4, [(36, 28)] * 4)
    found = follow(frames, [60, 50, 36, 28], Colors(), tracker=tracker, corrected=True)
    np.testing.assert_allclose(found, [[60, 50, 36, 28]] * 4, atol=1e-9)


def test_published_cross_correlation_walks_off_what_stands_still() -> None:
    """The peak is at 25 of 52 cells, and 26 is taken for the middle: one cell of 52, as cells of 65 are scaled."""
    frames = scene([(60, 50)] * 2, [(36, 28)] * 2)
    found = follow(frames, [60, 50, 36, 28], Colors(), tracker="xcorr")
    step = 1.25 * 4.5 / 65
    np.testing.assert_allclose(found[1], [60 - 36 * step, 50 - 28 * step, 36, 28], atol=1e-9)


@pytest.mark.parametrize(("corrected", "limits"), [(False, (60, 100)), (True, (100, 60))])
def test_a_target_is_no_larger_than_the_image(corrected: bool, limits: tuple[int, int]) -> None:
    """Published figures compare its width with the height of the image, 60 pixels."""
    frames = [np.zeros((60, 100, 3), np.uint8)] * 30
    found = follow(frames, [25, 5, 50, 50], Spread(1), tracker="dcf", corrected=corrected)
    for step in range(30):
        np.testing.assert_allclose(found[step, 2:], np.minimum(50 * 1.0275**step, limits))


def test_a_target_stays_within_a_fifth_and_five_times_its_size_and_four_pixels() -> None:
    frames = [np.zeros((300, 300, 3), np.uint8)] * 64
    found = follow(frames[:12], [100, 100, 5, 30], Spread(-1), corrected=True)
    np.testing.assert_allclose(found[-1, 2:], [4, 30 / 1.0275**11])
    found = follow(frames, [100, 100, 5, 6], Spread(1), corrected=True)
    np.testing.assert_allclose(found[-1, 2:], [25, 30])


def test_a_video_without_frames_has_no_boxes() -> None:
    assert list(track_box(VideoWriter([]), np.array([1.0, 2, 3, 4]), Colors())) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("box", [[100, 0, 5, 5], [0, 60, 5, 5], [-5, 0, 5, 5], [3, 3, 0, 5], [math.nan] * 4])
def test_a_box_without_a_pixel_in_the_first_frame(box: list[float]) -> None:
    with pytest.raises(SequenceError, match=r"^the box .* is not within the first frame \(100 x 60\)$"):
        follow([np.zeros((60, 100, 3), np.uint8)], box, Colors())


def test_frames_of_another_size_and_trackers_of_another_name() -> None:
    frames = [np.zeros((60, 100, 3), np.uint8), np.zeros((60, 90, 3), np.uint8)]
    with pytest.raises(SequenceError, match=r"^a frame is 90 x 60, the first 100 x 60$"):
        follow(frames, [10, 10, 20, 20], Colors())
    with pytest.raises(InputError, match=r"^tracker: expected dcf or xcorr, got 'kcf'$"):
        follow(frames, [10, 10, 20, 20], Colors(), tracker="kcf")
