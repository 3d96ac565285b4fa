"""Embedded images and sprite sheets."""

import numpy as np
import pytest
from PIL import Image

from mec.data.pixels import pad_to_square, resize_longer_side, to_pil
from mec.report.images import embed_image, embed_sprites, printable
from tests.report.runs import decode, smooth_noise, thumbnail


def test_sprites_are_in_row_major_order() -> None:
    squares = [smooth_noise(i, 16, 16) for i in range(7)]
    sheet = embed_sprites([Image.fromarray(square) for square in squares], 16)
    assert (sheet.columns, sheet.cell_size) == (3, 16)
    assert decode(sheet).shape == (48, 48, 3)
    for index in range(7):
        errors = [np.abs(thumbnail(sheet, index) - square).mean() for square in squares]
        assert np.argmin(errors) == index
        assert errors[index] < 12
    assert embed_sprites([Image.fromarray(squares[0])], 16).columns == 1


def test_an_embedded_image_has_size_and_alt_text() -> None:
    embedded = embed_image(Image.fromarray(smooth_noise(3, 20, 50)), '<script>"&')
    assert (embedded.width, embedded.height, embedded.alt) == (50, 20, '<script>"&')
    assert np.abs(decode(embedded) - smooth_noise(3, 20, 50)).mean() < 12


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_converts_to_rgb(channels: int) -> None:
    values = smooth_noise(1, 4, 6, channels)
    expected = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, axis=2)
    assert np.array_equal(np.asarray(to_pil(values)), expected)
    assert np.array_equal(np.asarray(to_pil(values.astype(np.float32) / 255)), expected)


def test_the_longer_side_is_resized() -> None:
    assert resize_longer_side(smooth_noise(0, 10, 40), 20).size == (20, 5)
    assert resize_longer_side(smooth_noise(0, 1, 400), 20).size == (20, 1)
    square = np.asarray(pad_to_square(np.zeros((10, 40, 3), np.uint8), 20))
    assert square[7:12].max() == 0  # rows 7 to 11, centered
    assert np.array_equal(np.unique(np.concatenate([square[:7], square[12:]])), [255])


def test_names_that_are_not_utf8_are_printable() -> None:
    assert printable("köder \udcff.jpg") == "köder ?.jpg"
