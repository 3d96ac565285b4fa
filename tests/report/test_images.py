import numpy as np
import pytest
from PIL import Image

from mec.data.pixels import pad_to_square, resize_longer_side, to_pil
from mec.report.images import image, printable, sprites
from tests.report.runs import cell, decoded, noisy


def test_sprites_are_the_images_in_their_order() -> None:
    squares = [noisy(i, 16, 16) for i in range(7)]
    sheet = sprites([Image.fromarray(square) for square in squares], 16)
    assert (sheet.columns, sheet.cell) == (3, 16)
    assert decoded(sheet).shape == (48, 48, 3)
    for number in range(7):
        errors = [np.abs(cell(sheet, number) - other).mean() for other in squares]
        assert np.argmin(errors) == number
        assert errors[number] < 12
    assert sprites([Image.fromarray(squares[0])], 16).columns == 1


def test_a_image_says_its_size_and_what_it_shows() -> None:
    one = image(Image.fromarray(noisy(3, 20, 50)), '<script>"&')
    assert (one.width, one.height, one.alt) == (50, 20, '<script>"&')
    assert np.abs(decoded(one) - noisy(3, 20, 50)).mean() < 12


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_is_shown(channels: int) -> None:
    values = noisy(1, 4, 6, channels)
    expected = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, axis=2)
    assert np.array_equal(np.asarray(to_pil(values)), expected)
    assert np.array_equal(np.asarray(to_pil(values.astype(np.float32) / 255)), expected)


def test_the_longer_side_fits() -> None:
    assert resize_longer_side(noisy(0, 10, 40), 20).size == (20, 5)
    assert resize_longer_side(noisy(0, 1, 400), 20).size == (20, 1)
    square = np.asarray(pad_to_square(np.zeros((10, 40, 3), np.uint8), 20))
    assert square[7:12].max() == 0  # five rows from the eighth on
    assert np.array_equal(np.unique(np.concatenate([square[:7], square[12:]])), [255])


def test_names_that_are_no_text_can_be_written() -> None:
    assert printable("köder \udcff.jpg") == "köder ?.jpg"
