"""Appearance features against OpenCV, PyTorch's own resizing and cells computed by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.tracking.appearance import box_features, letterbox, mask_box, mask_features, masks_on_grid

Floats = NDArray[np.float64]


class FakeDense:
    """Stands in for DenseFeatures: a stride, a normalization, and the same feature map for every image."""

    def __init__(self, stride: int = 8, mean: float = 0.0, std: float = 1.0, features: Tensor | None = None) -> None:
        self.stride, self.features = stride, features
        self.mean, self.std = torch.full((1, 3, 1, 1), mean), torch.full((1, 3, 1, 1), std)

    def __call__(self, image: Tensor) -> Tensor:
        assert tuple(image.shape[2:]) == (608, 1088)
        assert self.features is not None
        return self.features


def fake_dense(*args: Any, **kwargs: Any) -> Any:
    return FakeDense(*args, **kwargs)


def area_weights(length: int, size: int) -> Floats:
    """Return (size, length): the fraction of each new pixel that each old pixel covers."""
    scale = length / size
    new, old = np.ogrid[:size, :length]
    weights: Floats = np.clip(np.minimum((new + 1) * scale, old + 1) - np.maximum(new * scale, old), 0, None) / scale
    return weights


# height and width of a frame: smaller than the letterbox, larger, wide, high, the same size
SIZES = [(288, 352), (1080, 1920), (61, 700), (333, 50), (608, 1088)]


@pytest.mark.parametrize("size", SIZES)
def test_letterbox_resizes_by_area(size: tuple[int, int]) -> None:
    height, width = size
    frame = np.random.default_rng(0).random((height, width, 3))
    x = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    boxed = letterbox((x - 0.4) / 0.2, fake_dense(mean=0.4, std=0.2))
    scale = min(608 / height, 1088 / width)
    new_height, new_width = round(height * scale), round(width * scale)
    assert boxed.scale == pytest.approx(scale)
    assert (boxed.left, boxed.top) == ((1088 - new_width) / 2, (608 - new_height) / 2)
    top, left = (608 - new_height) // 2, (1088 - new_width) // 2
    image = boxed.image[0].permute(1, 2, 0).double().numpy() * 0.2 + 0.4
    resized = image[top : top + new_height, left : left + new_width].copy()
    rows, columns = area_weights(height, new_height), area_weights(width, new_width)
    for channel in range(3):
        np.testing.assert_allclose(resized[..., channel], rows @ frame[..., channel] @ columns.T, atol=1e-5)
    image[top : top + new_height, left : left + new_width] = 128 / 255
    np.testing.assert_allclose(image, 128 / 255, atol=1e-6, err_msg="127.5, rounded as OpenCV does")


@pytest.mark.parametrize("size", SIZES)
def test_letterbox_equals_opencv(size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    frame = np.random.default_rng(0).random((*size, 3)).astype(np.float32)
    x = torch.from_numpy(frame).permute(2, 0, 1)[None]
    image = letterbox(x, fake_dense()).image[0].permute(1, 2, 0).numpy()
    scale = min(608 / size[0], 1088 / size[1])
    height, width = round(size[0] * scale), round(size[1] * scale)
    top, left = (608 - height) // 2, (1088 - width) // 2
    expected = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    # OpenCV ignores pixels that are covered by less than a thousandth
    resized = image[top : top + height, left : left + width]
    np.testing.assert_allclose(resized, expected, atol=1.5e-3)
    assert np.abs(resized - expected).mean() < 1e-5


@pytest.mark.parametrize("corrected", [False, True])
def test_cells_of_a_box_are_evenly_spaced(corrected: bool) -> None:
    """On a map whose values are the coordinates of its cells, the mean over a region is the region's center."""
    boxed = letterbox(torch.zeros(1, 3, 288, 352), fake_dense())
    rows, columns = torch.meshgrid(torch.arange(76.0), torch.arange(136.0), indexing="ij")
    boxes = np.array([[50.0, 60, 60, 128], [200, 100, 33, 47]])
    dense = fake_dense(features=torch.stack([rows, columns])[None])
    features = box_features(boxed, boxes, dense, corrected)
    assert boxed.scale == 608 / 288
    assert (boxed.left, boxed.top) == ((1088 - 743) / 2, 0)
    # the center of the first cell is half a cell from the edge of the map; the published code takes it for the edge
    row_count, column_count, offset = (10, 4, 0.5) if corrected else (4, 10, 0.0)
    for (x, y, width, height), cells in zip(boxes, features, strict=True):
        down = (y + (np.arange(row_count) + 0.5) * height / row_count) * boxed.scale / 8 - offset
        right = ((x + (np.arange(column_count) + 0.5) * width / column_count) * boxed.scale + 172.5) / 8 - offset
        expected = np.stack(np.meshgrid(down, right, indexing="ij")).reshape(2, 40)
        np.testing.assert_allclose(cells.numpy(), expected, atol=2e-4)
    assert box_features(boxed, np.zeros((0, 4)), dense, corrected) == []


def test_masks_on_grid_by_hand() -> None:
    masks = np.zeros((2, 20, 36), np.uint8)
    masks[0, 8:20, 16:25] = 1  # its upper left pixel is that of cell (1, 2); it reaches into cell (2, 3)
    masks[1, 1:8, 1:8] = 1  # contains no cell's upper left pixel
    grid = masks_on_grid(masks[:, :16, :32], fake_dense(8))
    assert np.argwhere(grid).tolist() == [[0, 1, 2], [0, 1, 3]]
    # 20 rows on 3 cells, 36 columns on 5: pixels 0, 6, 13 and 0, 7, 14, 21, 28
    grid = masks_on_grid(masks, fake_dense(8))
    assert grid.shape == (2, 3, 5)
    assert np.argwhere(grid).tolist() == [[0, 2, 3], [1, 1, 1]]
    assert masks_on_grid(np.zeros((0, 20, 36), np.uint8), fake_dense(16)).shape == (0, 2, 3)


def test_mask_box_by_hand() -> None:
    cells = np.zeros((12, 30), bool)
    cells[3:6, 10:20] = True
    # columns 10 to 19: center 14.5, mean distance 2.5; rows 3 to 5: center 4, mean distance 2/3, raised to 1
    np.testing.assert_allclose(mask_box(cells), [14.5 - 5, 4 - 2, 10, 4])
    cells[0, 0] = True
    right, down = np.array([*range(10, 20)] * 3 + [0]), np.array([3] * 10 + [4] * 10 + [5] * 10 + [0])
    reach = 2 * np.abs(right - right.mean()).mean(), 2 * max(1, np.abs(down - down.mean()).mean())
    expected = [right.mean() - reach[0], down.mean() - reach[1], 2 * reach[0], 2 * reach[1]]
    np.testing.assert_allclose(mask_box(cells), expected)
    np.testing.assert_array_equal(mask_box(np.zeros((5, 7), bool)), [0, 0, 0, 0])
    single = np.zeros((5, 7), bool)
    single[1, 6] = True
    np.testing.assert_allclose(mask_box(single), [4, -1, 4, 4])


def downsampled(features: Tensor, mask: NDArray[np.bool_], max_cells: int) -> Tensor:
    """Downsample the whole masked map and the mask with PyTorch."""
    flat = torch.from_numpy(mask)[None, None].double()
    scale = math.sqrt(max_cells / mask.sum())
    small = F.interpolate(features * flat, scale_factor=scale, mode="bilinear")
    kept = F.interpolate(flat, scale_factor=scale, mode="nearest")[0, 0] >= 0.5
    return small[0][:, kept]


@pytest.mark.parametrize("max_cells", [200, 60, 25])
def test_large_masks_are_downsampled_with_the_map(max_cells: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 31, 47, generator=generator, dtype=torch.float64)
    rows, columns = np.ogrid[:31, :47]
    disc = (rows - 14) ** 2 + (columns - 30) ** 2 < 150
    ragged = np.random.default_rng(0).random((31, 47)) < 0.6
    border = np.zeros((31, 47), bool)
    border[10:, :26] = True
    for mask in (disc, ragged, border):
        (cells,) = mask_features(features, mask[None], max_cells)
        expected = downsampled(features, mask, max_cells)
        assert cells.shape == expected.shape
        assert 0.6 * max_cells < cells.shape[1] < 1.5 * max_cells
        torch.testing.assert_close(cells, expected, atol=1e-4, rtol=0)


def test_small_masks_return_their_own_cells() -> None:
    features = torch.arange(24.0).view(1, 2, 3, 4)
    masks = np.zeros((3, 3, 4), bool)
    masks[0, 1, 1:3] = masks[1, 2, 3] = True
    two, one, none = mask_features(features, masks, 2)
    assert two.tolist() == [[5, 6], [17, 18]]
    assert one.tolist() == [[11], [23]]
    assert tuple(none.shape) == (2, 0)
    assert mask_features(features, masks[:0], 2) == []
