"""Decoding of images with more than 8 bits or any number of channels: 16-bit files, TIFF and arrays."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from mec.data.decode import open_image
from mec.data.pixels import PixelFormat
from tests.data.encoded_images import (
    EXIF_ORIENTATION,
    H,
    W,
    decode,
    decode_raw,
    encode,
    encode_npy,
    encode_tiff,
    gray_to_rgb,
    max_difference,
    random_values,
)
from tests.pairwise import pairwise


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grayscale_files_keep_all_bits(image_format: str) -> None:
    values = random_values((H, W), np.uint16)
    data = encode(Image.fromarray(values), image_format)
    assert np.array_equal(decode_raw(data)[..., 0], values)
    assert max_difference(decode(data, PixelFormat(1))[..., 0], values / 257) <= 0.5
    assert max_difference(decode(data), gray_to_rgb(values) / 257) <= 0.5
    decoded = decode(data, PixelFormat(1, (0.0, 4095.0)))
    assert decoded.dtype == np.float32
    assert max_difference(decoded[..., 0], np.clip(values / 4095, 0, 1)) < 1e-6


@pytest.mark.parametrize(
    ("channels", "dtype", "layout", "options"),
    pairwise(
        [2, 3, 4, 5],
        [np.uint8, np.uint16, np.float32],
        ["contig", "separate"],
        [{}, {"compression": "lzw"}, {"compression": "deflate", "predictor": True}],
    ),
)
def test_tiff_with_any_number_of_channels(channels: int, dtype: Any, layout: str, options: dict[str, Any]) -> None:
    values = random_values((H, W, channels), dtype)
    planes = values if layout == "contig" else np.ascontiguousarray(values.transpose(2, 0, 1))
    data = encode_tiff(planes, photometric="minisblack", planarconfig=layout, **options)
    assert np.array_equal(decode_raw(data), values)
    white = np.iinfo(dtype).max if values.dtype.kind == "u" else 1.0
    assert max_difference(decode(data, PixelFormat(channels)), values / white * 255.0) <= 0.5001


OTHER_DTYPES = [np.int8, np.int16, np.int32, np.uint32, np.float16, np.float32, np.float64]


@pytest.mark.parametrize(
    ("shape", "dtype", "compression", "options"),
    pairwise(
        [(H, W, 3), (H, W)],
        [np.uint8, np.uint16, np.float32],
        [None, "lzw", "deflate", "zstd"],
        [{}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (32, 32)}, {"rowsperstrip": 7}],
    )
    + pairwise([(H, W)], OTHER_DTYPES, [None, "lzw", "deflate"], [{}, {"byteorder": ">"}, {"tile": (16, 16)}]),
)
def test_tiff_layouts_and_compressions(
    shape: tuple[int, ...], dtype: Any, compression: str | None, options: dict[str, Any]
) -> None:
    values = random_values(shape, dtype)
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    decoded = decode_raw(encode_tiff(values, photometric=photometric, compression=compression, **options))
    assert decoded.dtype.kind == values.dtype.kind
    assert np.array_equal(decoded.reshape(shape), values)


@pytest.mark.parametrize("orientation", [1, 4, 5, 8])
def test_exif_orientation_of_a_16_bit_tiff(orientation: int) -> None:
    values = random_values((H, W, 3), np.uint16)
    data = encode_tiff(values, photometric="rgb", extratags=[(EXIF_ORIENTATION, "H", 1, orientation, True)])
    layers = [Image.fromarray(values[..., c].astype(np.int32)) for c in range(3)]
    for layer in layers:
        layer.getexif()[EXIF_ORIENTATION] = orientation
    assert np.array_equal(decode_raw(data), np.stack([np.asarray(ImageOps.exif_transpose(i)) for i in layers], axis=-1))


def test_pages_are_channels_if_their_number_matches() -> None:
    pages = random_values((5, H, W), np.uint8)
    data = encode_tiff(pages, photometric="minisblack")
    assert np.array_equal(decode(data, PixelFormat(5)), pages.transpose(1, 2, 0))
    assert np.array_equal(decode(data, PixelFormat(3)), gray_to_rgb(pages[0]))
    color_pages = random_values((3, H, W, 3), np.uint8)
    assert np.array_equal(decode(encode_tiff(color_pages, photometric="rgb")), color_pages[0])
    stack = random_values((3, 2, H, W), np.uint16)
    imagej_tiff = encode_tiff(stack, imagej=True, metadata={"axes": "ZCYX"})
    assert np.array_equal(decode_raw(imagej_tiff), stack[0].transpose(1, 2, 0))


DTYPES = [np.uint8, np.uint16, np.int16, np.int32, np.float16, np.float32, np.float64, np.bool_, ">u2"]
SHAPES = [
    ((H, W), None),
    ((H, W, 3), None),
    ((H, W, 1), None),
    ((2, 40, 3), None),
    ((1, 1, 5), None),
    ((3, H, W), (1, 2, 0)),
    ((3, 32, 32), (1, 2, 0)),
    ((1, 28, 28), (1, 2, 0)),
    ((5, 20, 48), (1, 2, 0)),
]


@pytest.mark.parametrize(
    ("shape", "axes", "dtype"), [(*shape, dtype) for shape, dtype in zip(SHAPES, DTYPES, strict=True)]
)
def test_npy_arrays(shape: tuple[int, ...], axes: tuple[int, ...] | None, dtype: Any) -> None:
    values = random_values(shape, dtype)
    expected = values[..., None] if values.ndim == 2 else values.transpose(axes or (0, 1, 2))
    decoded = decode_raw(encode_npy(values))
    assert np.array_equal(decoded, expected)
    low, high = {"b": (0, 1), "f": (0, 1), "u": (0, 2**16 - 1), "i": (-(2**15), 2**15 - 1)}[values.dtype.kind]
    low, high = (0, 255) if dtype == np.uint8 else (0, 65535) if dtype == np.int32 else (low, high)
    levels = (np.clip(expected.astype(float), low, high) - low) / (high - low) * 255
    assert max_difference(decode(encode_npy(values), PixelFormat(decoded.shape[2])), levels) <= 0.51


def test_nan_and_infinity_are_clipped() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.5], [-1e300, 1e300, 2.0, -1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(encode_npy(values), PixelFormat(1, (0.0, 1.0)))[..., 0]
    assert decoded.tolist() == [[0.0, 1.0, 0.0, 0.5], [0.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize(("extra", "channels"), [("unspecified", 4), ("unassalpha", 3)])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_fourth_band_is_a_channel_unless_it_is_transparency(
    extra: str, channels: int, compression: str | None
) -> None:
    """Aerial images have red, green, blue and infrared."""
    values = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="rgb", extrasamples=[extra], compression=compression)
    decoded = open_image(file.getvalue()).raw(PixelFormat())
    assert decoded.shape == (12, 10, channels)
    if channels == 4:
        assert np.array_equal(decoded, values)
