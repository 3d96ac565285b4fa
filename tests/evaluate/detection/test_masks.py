import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from mec.evaluate.detection.datasets.annotations import Rle
from mec.evaluate.detection.detectors import paste_masks
from mec.evaluate.detection.loaders import decode_masks


def encode(mask: NDArray[np.bool_]) -> Rle:
    rle: Rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return rle


def paste(probabilities: Tensor, box: list[float], size: tuple[int, int] = (12, 16)) -> NDArray[np.uint8]:
    """Paste one mask and decode it with pycocotools, the library of published results."""
    (mask,) = paste_masks(probabilities[None], np.array([box], np.float32), size)
    assert mask["size"] == list(size)
    pixels: NDArray[np.uint8] = coco_mask.decode(mask)
    return pixels


def rectangle(rows: slice, columns: slice, size: tuple[int, int] = (12, 16)) -> NDArray[np.uint8]:
    mask = np.zeros(size, np.uint8)
    mask[rows, columns] = 1
    return mask


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(13, 9), (26, 18), (5, 4), (20, 9)])
def test_decoded_masks_are_resized_by_the_nearest_pixel(size: tuple[int, int], flip: bool) -> None:
    """The value is that of the pixel in which the center of the new pixel lies."""
    masks = np.random.default_rng(0).random((3, 13, 9)) < 0.5
    decoded = decode_masks([encode(mask) for mask in masks], size, flip)
    assert decoded.dtype == torch.uint8
    rows, columns = ([int((i + 0.5) * old / new) for i in range(new)] for old, new in zip((13, 9), size, strict=True))
    expected = masks[:, rows][:, :, columns]
    assert np.array_equal(decoded.numpy(), expected[:, :, ::-1] if flip else expected)


def test_no_masks() -> None:
    assert decode_masks([], (4, 5)).shape == (0, 4, 5)
    assert decode_masks([], (4, 5)).dtype == torch.uint8
    assert paste_masks(torch.zeros(0, 14, 14), np.zeros((0, 4), np.float32), (12, 16)) == []


def test_a_full_mask_covers_the_pixels_whose_centers_are_in_the_box() -> None:
    full = torch.ones(14, 14)
    assert np.array_equal(paste(full, [3, 2, 11, 7]), rectangle(slice(2, 7), slice(3, 11)))
    assert np.array_equal(paste(full, [3.4, 1.6, 11.6, 7.4]), rectangle(slice(2, 7), slice(3, 12)))
    assert np.array_equal(paste(full, [3.6, 1.4, 11.4, 7.6]), rectangle(slice(1, 8), slice(4, 11)))


def test_masks_beyond_the_image_and_smaller_than_a_pixel() -> None:
    full, upper_left = torch.ones(14, 14), torch.zeros(14, 14)
    upper_left[:7, :7] = 1
    assert np.array_equal(paste(full, [12, 9, 40, 30]), rectangle(slice(9, 12), slice(12, 16)))
    # the quarter of the box to the left of 2 and above 1
    assert np.array_equal(paste(upper_left, [-6, -5, 10, 7]), rectangle(slice(0, 1), slice(0, 2)))
    assert np.array_equal(paste(full, [5.25, 4.25, 5.75, 4.75]), rectangle(slice(4, 5), slice(5, 6)))
    assert paste(torch.full((14, 14), 0.49), [2, 1, 14, 11]).sum() == 0
    for empty in ([-9, -9, -1, -1], [16, 12, 20, 20], [5.6, 4.6, 5.9, 4.9], [5.3, 4.3, 5.3, 4.3]):
        assert paste(full, empty).sum() == 0


@pytest.mark.parametrize("mask_size", [14, 28])
def test_pasted_masks_match_a_float64_interpolation(mask_size: int) -> None:
    """Bilinear interpolation between the centers of the cells, and zero beyond the edges of the box."""
    rng = np.random.default_rng(mask_size)
    size = (31, 42)
    corners = rng.uniform(-8, 30, (25, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.5, 40, (25, 2))], 1).astype(np.float32)
    probabilities = torch.from_numpy(rng.random((25, mask_size, mask_size)).astype(np.float32))
    masks = coco_mask.decode(paste_masks(probabilities, boxes, size)).transpose(2, 0, 1)
    num_uncertain = 0
    for mask, p, (x1, y1, x2, y2) in zip(masks, probabilities.double().numpy(), boxes.astype(float), strict=True):
        weights_x = linear_weights((np.arange(size[1]) + 0.5 - x1) / (x2 - x1) * mask_size, mask_size)
        weights_y = linear_weights((np.arange(size[0]) + 0.5 - y1) / (y2 - y1) * mask_size, mask_size)
        values = weights_y @ p @ weights_x.T
        certain = abs(values - 0.5) > 1e-4
        num_uncertain += (~certain).sum()
        assert np.array_equal(mask[certain], values[certain] >= 0.5)
    assert masks.any()
    assert num_uncertain < 10


def linear_weights(positions: NDArray[np.float64], num_cells: int) -> NDArray[np.float64]:
    """Return the weights (n, num_cells) of the two nearest cells; positions are in cells from the edge of the box."""
    return np.maximum(0, 1 - abs(positions[:, None] - 0.5 - np.arange(num_cells)))
