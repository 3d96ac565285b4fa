from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec import contact_sheet
from mec.data.image_grid import GAP, LINE, MARGIN, row_height
from mec.errors import InputError
from mec.pretraining import Recipe
from mec.pretraining.contact_sheet import training_views
from tests.data.transforms.test_geometry import photograph


def test_each_readable_image_has_a_row_and_the_seed_sets_its_views(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(5):
        Image.fromarray(photograph(100 + 9 * i, 140)).save(data / f"{i}.jpg")
    (data / "corrupt.jpg").write_bytes(b"")
    out = contact_sheet(data, tmp_path / "sheet.png", Recipe(image_size=32), images=3, pairs=2)
    sheet = np.asarray(Image.open(out))
    assert sheet.shape[0] == 2 * MARGIN + 3 * row_height(96)
    assert sheet.shape[1] > 5 * 96
    for row in range(3):
        top = MARGIN + LINE + row * row_height(96)
        assert sheet[top : top + 96].std() > 20
    again = contact_sheet(data, tmp_path / "again.png", Recipe(image_size=32), images=3, pairs=2)
    assert np.array_equal(np.asarray(Image.open(again)), sheet)
    other = contact_sheet(data, tmp_path / "other.png", Recipe(image_size=32, seed=1), images=3, pairs=2)
    assert not np.array_equal(np.asarray(Image.open(other)), sheet)


@pytest.mark.parametrize(("size", "factor"), [(16, 6), (40, 3), (97, 1)])
def test_views_are_drawn_pixel_by_pixel(size: int, factor: int, tmp_path: Path) -> None:
    recipe = Recipe(image_size=size)
    (sample,) = training_views("digits", recipe, images=1, pairs=1)
    sheet = np.asarray(Image.open(contact_sheet("digits", tmp_path / "sheet.png", recipe, images=1, pairs=1)))
    side = factor * size
    left, top = MARGIN + side + 4 * GAP, MARGIN + LINE
    for view in sample.pairs[0]:
        drawn = sheet[top : top + side, left : left + side, 0].reshape(size, factor, size, factor)
        assert np.ptp(drawn, axis=(1, 3)).max() == 0
        np.testing.assert_allclose(drawn[:, 0, :, 0], 255 * view[0].numpy(), atol=1)
        left += side + GAP


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_any_number_of_channels_are_drawn(tmp_path: Path, channels: int) -> None:
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).random((4, 20, 30, channels)).astype(np.float32))
    out = contact_sheet(tmp_path / "a.npz", tmp_path / "sheet.jpg", Recipe(image_size=16), images=9, pairs=1)
    assert Image.open(out).format == "JPEG"


def test_invalid_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out: expected the suffix of an image format"):
        contact_sheet("digits", tmp_path / "sheet")
    with pytest.raises(InputError, match="images, pairs: expected at least 1 each"):
        contact_sheet("digits", tmp_path / "sheet.png", pairs=0)
    assert not list(tmp_path.iterdir())
