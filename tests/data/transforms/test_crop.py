import io

import numpy as np
import pytest
import torchvision.transforms.functional as TF
from PIL import Image

from mec.data import PixelFormat
from mec.data.decode import open_image
from mec.data.transforms.crop import choose_shrink, crop_and_resize, scale_box
from tests.data.transforms.test_geometry import photograph


def encode_jpeg(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.mark.parametrize(
    ("sides", "size", "expected"),
    [((223, 900), 224, 1), ((447, 900), 224, 1), ((448, 900), 224, 2), ((896, 896), 224, 4), ((5000, 5000), 224, 8)],
)
def test_choose_shrink_keeps_crops_as_large_as_a_view(sides: tuple[int, int], size: int, expected: int) -> None:
    boxes = np.array([[0, 0, *sides], [3, 4, 6000, 6000]])
    assert choose_shrink(boxes, (size, size)) == expected


def test_scale_box_rounds_to_pixels_of_the_decoded_image() -> None:
    assert scale_box(np.array([10, 21, 100, 200]), (401, 601), (201, 301)).tolist() == [5, 11, 50, 100]
    full = scale_box(np.array([0, 0, 401, 601]), (401, 601), (201, 301))
    assert full.tolist() == [0, 0, 201, 301]


def sharpness(array: np.ndarray) -> float:
    return float(np.abs(np.diff(array.astype(float), axis=1)).mean())


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_crops_of_a_shrunk_image_are_as_sharp_as_those_of_pil(shrink: int) -> None:
    """Compared with PIL on the full image, pixels are close and sharpness is at most 5% lower."""
    size, image = 48, photograph(48 * 10, 48 * 12)
    encoded = encode_jpeg(image)
    full, opened = Image.open(io.BytesIO(encoded)).convert("RGB"), open_image(encoded)
    decoded = opened.decode(PixelFormat(), shrink)
    assert decoded.shape[:2] == (480 // shrink, 576 // shrink)
    ratios = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        side = int(min(480, size * shrink * rng.uniform(1, 2)))
        top, left = int(rng.integers(0, 481 - side)), int(rng.integers(0, 577 - side))
        # align crops to pixels of the shrunk image, so that only the sharpness can differ
        top, left, side = (v // shrink * shrink for v in (top, left, side))
        box = scale_box(np.array([top, left, side, side]), (480, 576), decoded.shape[:2])
        ours = crop_and_resize(decoded, box, size)
        theirs = np.asarray(TF.resized_crop(full, top, left, side, side, [size, size]))
        assert np.abs(ours.astype(float) - theirs).mean() < 4
        ratios.append(sharpness(ours) / sharpness(theirs))
    assert np.mean(ratios) > 0.95
