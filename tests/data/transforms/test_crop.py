import io
from pathlib import Path

import numpy as np
import pytest
import torchvision.transforms.functional as TF
from PIL import Image

from mec.data import PixelFormat
from mec.data.decode import open_image
from mec.data.transforms.crop import crop_and_resize, shrink_for, shrunk
from tests.data.transforms.test_geometry import photograph


def jpeg(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.mark.parametrize(
    ("sides", "size", "expected"),
    [((223, 900), 224, 1), ((447, 900), 224, 1), ((448, 900), 224, 2), ((896, 896), 224, 4), ((5000, 5000), 224, 8)],
)
def test_crops_still_fill_a_view_after_shrinking(sides: tuple[int, int], size: int, expected: int) -> None:
    boxes = np.array([[0, 0, *sides], [3, 4, 6000, 6000]])
    assert shrink_for(boxes, size) == expected


def test_boxes_follow_the_decoded_size() -> None:
    assert shrunk(np.array([10, 21, 100, 200]), (401, 601), (201, 301)).tolist() == [5, 11, 50, 100]
    whole = shrunk(np.array([0, 0, 401, 601]), (401, 601), (201, 301))
    assert whole.tolist() == [0, 0, 201, 301]


def sharpness(array: np.ndarray) -> float:
    return float(np.abs(np.diff(array.astype(float), axis=1)).mean())


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_crops_of_a_smaller_decode_are_as_sharp_as_pils(shrink: int) -> None:
    """Against a full decode and PIL's resize of the same crop: the same image, a twentieth less sharp at most."""
    size, image = 48, photograph(48 * 10, 48 * 12)
    encoded = jpeg(image)
    full, opened = Image.open(io.BytesIO(encoded)).convert("RGB"), open_image(encoded)
    decoded = opened.decode(PixelFormat(), shrink)
    assert decoded.shape[:2] == (480 // shrink, 576 // shrink)
    ratios = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        side = int(min(480, size * shrink * rng.uniform(1, 2)))
        top, left = int(rng.integers(0, 481 - side)), int(rng.integers(0, 577 - side))
        # crops on the grid of the smaller image, so that only the sharpness can differ
        top, left, side = (v // shrink * shrink for v in (top, left, side))
        box = shrunk(np.array([top, left, side, side]), (480, 576), decoded.shape[:2])
        ours = crop_and_resize(decoded, box, size)
        theirs = np.asarray(TF.resized_crop(full, top, left, side, side, [size, size]))
        assert np.abs(ours.astype(float) - theirs).mean() < 4
        ratios.append(sharpness(ours) / sharpness(theirs))
    assert np.mean(ratios) > 0.95


def test_real_photographs_decode_smaller_as_sharp(real_data: Path) -> None:
    ratios = []
    for path in sorted((real_data / "davis16-subset").rglob("*.jpg"))[::60]:
        encoded = path.read_bytes()
        opened, full = open_image(encoded), Image.open(path).convert("RGB")
        decoded = opened.decode(PixelFormat(), 2)
        side = min(opened.height, opened.width) // 2 * 2
        ours = crop_and_resize(decoded, np.array([0, 0, side // 2, side // 2]), 200)
        theirs = np.asarray(TF.resized_crop(full, 0, 0, side, side, [200, 200]))
        ratios.append(sharpness(ours) / sharpness(theirs))
    assert np.mean(ratios) > 0.95
