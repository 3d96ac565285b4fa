import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from mec.evaluate.detection.datasets.annotations import Rle
from mec.evaluate.detection.masks import decoded, pasted


def encoded(mask: NDArray[np.bool_]) -> Rle:
    rle: Rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return rle


def drawn(shares: Tensor, box: list[float], size: tuple[int, int] = (12, 16)) -> NDArray[np.uint8]:
    """One mask pasted, as pixels; read by the library that the figures of others are counted with."""
    (found,) = pasted(shares[None], np.array([box], np.float32), size)
    assert found["size"] == list(size)
    pixels: NDArray[np.uint8] = coco_mask.decode(found)
    return pixels


def pixels(size: tuple[int, int], y: slice, x: slice) -> NDArray[np.uint8]:
    whole = np.zeros(size, np.uint8)
    whole[y, x] = 1
    return whole


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", [(13, 9), (26, 18), (5, 4), (20, 9)])
def test_decoded_and_resized_by_the_nearest_pixel(size: tuple[int, int], mirrored: bool) -> None:
    """The pixel whose square the center of the new one lies in."""
    given = np.random.default_rng(0).random((3, 13, 9)) < 0.5
    found = decoded([encoded(mask) for mask in given], size, mirrored)
    assert found.dtype == torch.uint8
    rows, columns = ([int((i + 0.5) * had / n) for i in range(n)] for had, n in zip((13, 9), size, strict=True))
    expected = given[:, rows][:, :, columns]
    assert np.array_equal(found.numpy(), expected[:, :, ::-1] if mirrored else expected)


def test_decoded_without_masks() -> None:
    assert decoded([], (4, 5)).shape == (0, 4, 5)
    assert decoded([], (4, 5)).dtype == torch.uint8


def test_a_full_mask_is_the_pixels_whose_centers_are_in_the_box() -> None:
    full = torch.ones(14, 14)
    assert np.array_equal(drawn(full, [3, 2, 11, 7]), pixels((12, 16), slice(2, 7), slice(3, 11)))
    assert np.array_equal(drawn(full, [3.4, 1.6, 11.6, 7.4]), pixels((12, 16), slice(2, 7), slice(3, 12)))
    assert np.array_equal(drawn(full, [3.6, 1.4, 11.4, 7.6]), pixels((12, 16), slice(1, 8), slice(4, 11)))


def test_halves_of_a_mask() -> None:
    left, below = torch.zeros(14, 14), torch.zeros(14, 14)
    left[:, :7] = below[7:] = 1
    assert np.array_equal(drawn(left, [2, 1, 14, 11]), pixels((12, 16), slice(1, 11), slice(2, 8)))
    assert np.array_equal(drawn(below, [2, 1, 14, 11]), pixels((12, 16), slice(6, 11), slice(2, 14)))
    assert drawn(torch.full((14, 14), 0.49), [2, 1, 14, 11]).sum() == 0


def test_boxes_beyond_the_image() -> None:
    full, upper_left = torch.ones(14, 14), torch.zeros(14, 14)
    upper_left[:7, :7] = 1
    assert np.array_equal(drawn(full, [-4, -3, 5, 4]), pixels((12, 16), slice(0, 4), slice(0, 5)))
    assert np.array_equal(drawn(full, [12, 9, 40, 30]), pixels((12, 16), slice(9, 12), slice(12, 16)))
    # the half of the box that is left of 2 and above 1
    assert np.array_equal(drawn(upper_left, [-6, -5, 10, 7]), pixels((12, 16), slice(0, 1), slice(0, 2)))
    assert drawn(full, [-9, -9, -1, -1]).sum() == 0
    assert drawn(full, [16, 12, 20, 20]).sum() == 0


def test_boxes_smaller_than_a_pixel() -> None:
    full = torch.ones(14, 14)
    assert np.array_equal(drawn(full, [5.25, 4.25, 5.75, 4.75]), pixels((12, 16), slice(4, 5), slice(5, 6)))
    assert drawn(full, [5.6, 4.6, 5.9, 4.9]).sum() == 0
    assert drawn(full, [5.3, 4.3, 5.3, 4.3]).sum() == 0


def test_no_masks() -> None:
    assert pasted(torch.zeros(0, 14, 14), np.zeros((0, 4), np.float32), (12, 16)) == []


@pytest.mark.parametrize("side", [14, 28])
def test_pasted_as_interpolated_between_the_centers_of_the_cells(side: int) -> None:
    """In float64, pixel by pixel; nothing beyond the edges of the box."""
    rng = np.random.default_rng(side)
    size = (31, 42)
    low = rng.uniform(-8, 30, (25, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.5, 40, (25, 2))], 1).astype(np.float32)
    shares = torch.from_numpy(rng.random((25, side, side)).astype(np.float32))
    found = coco_mask.decode(pasted(shares, boxes, size)).transpose(2, 0, 1)
    close = 0
    for mask, share, (x1, y1, x2, y2) in zip(found, shares.double().numpy(), boxes.astype(float), strict=True):
        weights_x = weights((np.arange(size[1]) + 0.5 - x1) / (x2 - x1) * side, side)
        weights_y = weights((np.arange(size[0]) + 0.5 - y1) / (y2 - y1) * side, side)
        values = weights_y @ share @ weights_x.T
        sure = abs(values - 0.5) > 1e-4
        close += (~sure).sum()
        assert np.array_equal(mask[sure], values[sure] >= 0.5)
    assert found.any()
    assert close < 10


def weights(at: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """(n, side) of the two cells whose centers are nearest, in units of cells from the edge of the box."""
    return np.maximum(0, 1 - abs(at[:, None] - 0.5 - np.arange(side)))
