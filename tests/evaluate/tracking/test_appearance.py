"""What is taken out of a frame to compare objects by, against OpenCV, PyTorch's own resizing and hand-worked cells."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.tracking.appearance import box_looks, letterbox, mask_looks, on_map, spread_box

Floats = NDArray[np.float64]


def dense(stride: int = 8, mean: float = 0.0, std: float = 1.0, features: Tensor | None = None) -> Any:
    """Stands for Dense: its numbers, and a map that it gives of any image."""

    def told(image: Tensor) -> Tensor | None:
        assert tuple(image.shape[2:]) == (608, 1088)
        return features

    told.stride, told.mean, told.std = stride, torch.full((1, 3, 1, 1), mean), torch.full((1, 3, 1, 1), std)  # type: ignore[attr-defined]
    return told


def shares(length: int, size: int) -> Floats:
    """(size, length): how much of each old pixel is in each new one."""
    scale = length / size
    new, old = np.ogrid[:size, :length]
    found: Floats = np.clip(np.minimum((new + 1) * scale, old + 1) - np.maximum(new * scale, old), 0, None) / scale
    return found


# height and width of a frame: smaller than the letterbox, larger, wide, high, of its very size, 8 : 9 of it
SIZES = [(288, 352), (1080, 1920), (61, 700), (333, 50), (608, 1088), (684, 1224)]


@pytest.mark.parametrize("size", SIZES)
def test_letterbox_by_areas(size: tuple[int, int]) -> None:
    height, width = size
    frame = np.random.default_rng(0).random((height, width, 3))
    given = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    fitted = letterbox((given - 0.4) / 0.2, dense(mean=0.4, std=0.2))
    ratio = min(608 / height, 1088 / width)
    high, wide = round(height * ratio), round(width * ratio)
    assert fitted.ratio == pytest.approx(ratio)
    assert (fitted.left, fitted.top) == ((1088 - wide) / 2, (608 - high) / 2)
    top, left = (608 - high) // 2, (1088 - wide) // 2
    image = fitted.image[0].permute(1, 2, 0).double().numpy() * 0.2 + 0.4
    inside = image[top : top + high, left : left + wide].copy()
    down, across = shares(height, high), shares(width, wide)
    for channel in range(3):
        np.testing.assert_allclose(inside[..., channel], down @ frame[..., channel] @ across.T, atol=1e-5)
    image[top : top + high, left : left + wide] = 128 / 255
    np.testing.assert_allclose(image, 128 / 255, atol=1e-6, err_msg="127.5, as OpenCV rounds it")


@pytest.mark.parametrize("size", SIZES)
def test_letterbox_as_opencv_does(size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    frame = np.random.default_rng(0).random((*size, 3)).astype(np.float32)
    image = letterbox(torch.from_numpy(frame).permute(2, 0, 1)[None], dense()).image[0].permute(1, 2, 0).numpy()
    ratio = min(608 / size[0], 1088 / size[1])
    high, wide = round(size[0] * ratio), round(size[1] * ratio)
    top, left = (608 - high) // 2, (1088 - wide) // 2
    wanted = cv2.resize(frame, (wide, high), interpolation=cv2.INTER_AREA)
    # a pixel of which less than a thousandth is covered is left out there
    np.testing.assert_allclose(image[top : top + high, left : left + wide], wanted, atol=1.5e-3)
    assert np.abs(image[top : top + high, left : left + wide] - wanted).mean() < 1e-5


@pytest.mark.parametrize("corrected", [False, True])
def test_cells_of_a_box_lie_evenly_in_it(corrected: bool) -> None:
    """On a map whose numbers are the places of its cells, a mean over a part of the box is the middle of that part."""
    fitted = letterbox(torch.zeros(1, 3, 288, 352), dense())
    rows, columns = torch.meshgrid(torch.arange(76.0), torch.arange(136.0), indexing="ij")
    boxes = np.array([[50.0, 60, 60, 128], [200, 100, 33, 47]])
    found = box_looks(fitted, boxes, dense(features=torch.stack([rows, columns])[None]), corrected)
    assert fitted.ratio == 608 / 288
    assert (fitted.left, fitted.top) == ((1088 - 743) / 2, 0)
    # the middle of a map's first cell is half a cell from its edge; published figures take it for the edge
    high, wide, edge = (10, 4, 0.5) if corrected else (4, 10, 0.0)
    for (x, y, width, height), one in zip(boxes, found, strict=True):
        down = (y + (np.arange(high) + 0.5) * height / high) * fitted.ratio / 8 - edge
        right = ((x + (np.arange(wide) + 0.5) * width / wide) * fitted.ratio + 172.5) / 8 - edge
        wanted = np.stack(np.meshgrid(down, right, indexing="ij")).reshape(2, 40)
        np.testing.assert_allclose(one.numpy(), wanted, atol=2e-4)
    assert box_looks(fitted, np.zeros((0, 4)), dense(), corrected) == []


def test_masks_on_a_map_by_hand() -> None:
    masks = np.zeros((2, 20, 36), np.uint8)
    masks[0, 8:20, 16:25] = 1  # its upper left pixel is that of cell (1, 2); it reaches into cell (2, 3)
    masks[1, 1:8, 1:8] = 1  # no cell's first pixel
    found = on_map(masks[:, :16, :32], dense(8))
    assert np.argwhere(found).tolist() == [[0, 1, 2], [0, 1, 3]]
    # 20 rows on 3, 36 columns on 5: pixels 0, 6, 13 and 0, 7, 14, 21, 28
    found = on_map(masks, dense(8))
    assert found.shape == (2, 3, 5)
    assert np.argwhere(found).tolist() == [[0, 2, 3], [1, 1, 1]]
    assert on_map(np.zeros((0, 20, 36), np.uint8), dense(16)).shape == (0, 2, 3)


def test_the_box_of_a_mask_by_hand() -> None:
    cells = np.zeros((12, 30), bool)
    cells[3:6, 10:20] = True
    # columns 10 to 19: middle 14.5, 2.5 from it in the mean; rows 3 to 5: middle 4, 2/3 in the mean, taken for 1
    np.testing.assert_allclose(spread_box(cells), [14.5 - 5, 4 - 2, 10, 4])
    cells[0, 0] = True
    right, down = np.array([*range(10, 20)] * 3 + [0]), np.array([3] * 10 + [4] * 10 + [5] * 10 + [0])
    reach = 2 * np.abs(right - right.mean()).mean(), 2 * max(1, np.abs(down - down.mean()).mean())
    wanted = [right.mean() - reach[0], down.mean() - reach[1], 2 * reach[0], 2 * reach[1]]
    np.testing.assert_allclose(spread_box(cells), wanted)
    np.testing.assert_array_equal(spread_box(np.zeros((5, 7), bool)), [0, 0, 0, 0])
    one = np.zeros((5, 7), bool)
    one[1, 6] = True
    np.testing.assert_allclose(spread_box(one), [4, -1, 4, 4])


def resized(features: Tensor, mask: NDArray[np.bool_], most: int) -> Tensor:
    """The masked map and the mask made smaller as images are, whole."""
    flat = torch.from_numpy(mask)[None, None].double()
    scale = math.sqrt(most / mask.sum())
    small = F.interpolate(features * flat, scale_factor=scale, mode="bilinear")
    kept = F.interpolate(flat, scale_factor=scale, mode="nearest")[0, 0] >= 0.5
    return small[0][:, kept]


@pytest.mark.parametrize("most", [200, 60, 25])
def test_large_masks_are_made_smaller_with_the_map(most: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 31, 47, generator=generator, dtype=torch.float64)
    rows, columns = np.ogrid[:31, :47]
    disc = (rows - 14) ** 2 + (columns - 30) ** 2 < 150
    ragged = np.random.default_rng(0).random((31, 47)) < 0.6
    border = np.zeros((31, 47), bool)
    border[10:, :26] = True
    for mask in (disc, ragged, border):
        (found,) = mask_looks(features, mask[None], most)
        wanted = resized(features, mask, most)
        assert found.shape == wanted.shape
        assert 0.6 * most < found.shape[1] < 1.5 * most
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [4, 9, 2])
def test_a_whole_map_of_a_square_number_of_times_the_most(share: int) -> None:
    """Where cells fall on the edges between cells: the same ones are taken."""
    features = torch.randn(1, 3, 36, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = np.ones((36, 36), bool)
    (found,) = mask_looks(features, mask[None], 36 * 36 // share)
    torch.testing.assert_close(found, resized(features, mask, 36 * 36 // share), atol=1e-5, rtol=0)


def test_small_masks_give_their_own_cells() -> None:
    features = torch.arange(24.0).view(1, 2, 3, 4)
    masks = np.zeros((3, 3, 4), bool)
    masks[0, 1, 1:3] = masks[1, 2, 3] = True
    several, one, none = mask_looks(features, masks, 2)
    assert several.tolist() == [[5, 6], [17, 18]]
    assert one.tolist() == [[11], [23]]
    assert tuple(none.shape) == (2, 0)
    assert mask_looks(features, masks[:0], 2) == []
