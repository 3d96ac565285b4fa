"""Images of other numbers than bytes, and of any channels: 16 bits, TIFF and arrays."""

import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from mec.data.pixels import PixelFormat
from tests.data.encoded_images import TURN, H, W, decoded, difference, encoded, npy, numbers, stored, threefold, tiff


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_gray(kind: str) -> None:
    values = numbers((H, W), np.uint16)
    data = encoded(Image.fromarray(values), kind)
    assert np.array_equal(stored(data)[..., 0], values)
    assert difference(decoded(data, PixelFormat(1))[..., 0], values / 257) <= 0.5
    assert difference(decoded(data), threefold(values) / 257) <= 0.5
    found = decoded(data, PixelFormat(1, (0.0, 4095.0)))
    assert found.dtype == np.float32
    assert difference(found[..., 0], np.clip(values / 4095, 0, 1)) < 1e-6


@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "deflate", "predictor": True}])
@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 3, 4, 5])
def test_tiff_of_any_channels(channels: int, dtype: Any, layout: str, options: dict[str, Any]) -> None:
    values = numbers((H, W, channels), dtype)
    planes = values if layout == "contig" else np.ascontiguousarray(values.transpose(2, 0, 1))
    data = tiff(planes, photometric="minisblack", planarconfig=layout, **options)
    assert np.array_equal(stored(data), values)
    white = np.iinfo(dtype).max if values.dtype.kind == "u" else 1.0
    assert difference(decoded(data, PixelFormat(channels)), values / white * 255.0) <= 0.5001


@pytest.mark.parametrize(
    "options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (32, 32)}, {"rowsperstrip": 7}]
)
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((H, W, 3), np.uint8), ((H, W), np.uint8), ((H, W, 3), np.uint16), ((H, W), np.uint16), ((H, W), np.float32)],
)
def test_tiff_however_written(
    shape: tuple[int, ...], dtype: Any, compression: str | None, options: dict[str, Any]
) -> None:
    values = numbers(shape, dtype)
    kind = "rgb" if len(shape) == 3 else "minisblack"
    found = stored(tiff(values, photometric=kind, compression=compression, **options))
    assert found.dtype.kind == values.dtype.kind
    assert np.array_equal(found.reshape(shape), values)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "deflate", "tile": (16, 16)}])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.float16, np.float32, np.float64])
def test_tiff_of_other_numbers(dtype: Any, options: dict[str, Any], order: str) -> None:
    values = numbers((H, W), dtype)
    found = stored(tiff(values, photometric="minisblack", byteorder=order, **options))
    assert np.array_equal(found[..., 0], values)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_deep_tiff_is_turned(turn: int) -> None:
    values = numbers((H, W, 3), np.uint16)
    data = tiff(values, photometric="rgb", extratags=[(TURN, "H", 1, turn, True)])
    layers = [Image.fromarray(values[..., c].astype(np.int32)) for c in range(3)]
    for layer in layers:
        layer.getexif()[TURN] = turn
    assert np.array_equal(stored(data), np.stack([np.asarray(ImageOps.exif_transpose(i)) for i in layers], axis=-1))


def test_pages_are_channels_where_there_are_as_many_as_asked_for() -> None:
    pages = numbers((5, H, W), np.uint8)
    data = tiff(pages, photometric="minisblack")
    assert np.array_equal(decoded(data, PixelFormat(5)), pages.transpose(1, 2, 0))
    assert np.array_equal(decoded(data, PixelFormat(3)), threefold(pages[0]))
    colored = numbers((3, H, W, 3), np.uint8)
    assert np.array_equal(decoded(tiff(colored, photometric="rgb")), colored[0])
    stack = numbers((3, 2, H, W), np.uint16)
    microscope = tiff(stack, imagej=True, metadata={"axes": "ZCYX"})
    assert np.array_equal(stored(microscope), stack[0].transpose(1, 2, 0))


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float16, np.float32, np.float64, np.bool_, ">u2"]
)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((H, W), None),
        ((H, W, 3), None),
        ((H, W, 1), None),
        ((2, 40, 3), None),
        ((1, 1, 5), None),
        ((3, H, W), (1, 2, 0)),
        ((3, 32, 32), (1, 2, 0)),
        ((1, 28, 28), (1, 2, 0)),
        ((5, 20, 48), (1, 2, 0)),
    ],
)
def test_npy(shape: tuple[int, ...], axes: tuple[int, ...] | None, dtype: Any) -> None:
    values = numbers(shape, dtype)
    expected = values[..., None] if values.ndim == 2 else values.transpose(axes or (0, 1, 2))
    found = stored(npy(values))
    assert np.array_equal(found, expected)
    low, high = {"b": (0, 1), "f": (0, 1), "u": (0, np.iinfo(np.uint16).max), "i": (-(2**15), 2**15 - 1)}[
        values.dtype.kind
    ]
    low, high = (0, 255) if dtype == np.uint8 else (0, 65535) if dtype == np.int32 else (low, high)
    levels = (np.clip(expected.astype(float), low, high) - low) / (high - low) * 255
    assert difference(decoded(npy(values), PixelFormat(found.shape[2])), levels) <= 0.51


def test_what_is_no_number_in_floats_is_clipped() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.5], [-1e300, 1e300, 2.0, -1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decoded(npy(values), PixelFormat(1, (0.0, 1.0)))[..., 0]
    assert found.tolist() == [[0.0, 1.0, 0.0, 0.5], [0.0, 1.0, 1.0, 0.0]]
