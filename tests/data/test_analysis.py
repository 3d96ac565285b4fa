from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from mec.data import ArrayDataset, open_dataset, read_image
from mec.data.analysis import channel_statistics, infer_pixel_format, load_into_memory
from mec.data.loaders import evaluation_loader
from mec.data.pixels import PixelFormat, convert_pixels
from mec.errors import InputError
from tests.data.encoded_images import (
    ALPHA,
    BLUE,
    COLOR_PIXELS,
    GRAY_PIXELS,
    color_with_alpha,
    encode,
    encode_tiff,
    gray_to_rgb,
    gray_with_alpha,
    max_difference,
    random_values,
)


def write_files(folder: Path, **files: bytes) -> Path:
    for name, data in files.items():
        stem, extension = name.rsplit("_", 1)
        (folder / f"{stem}.{extension}").write_bytes(data)
    return folder


def multichannel_tiff(dtype: Any = np.uint8, maximum: float | None = None, channels: int = 5) -> bytes:
    values = random_values((30, 40, channels), dtype, maximum)
    options = {"planarconfig": "contig"} if channels > 1 else {}
    return encode_tiff(values.squeeze(), photometric="minisblack", **options)


GRAY, GRAY_AS_RGB = Image.fromarray(GRAY_PIXELS), Image.fromarray(gray_to_rgb(GRAY_PIXELS))


@pytest.mark.parametrize(
    ("files", "channels"),
    [
        ({"a_png": encode(GRAY, "PNG"), "b_jpg": encode(GRAY, "JPEG")}, 1),
        ({"a_png": encode(GRAY_AS_RGB, "PNG"), "b_jpg": encode(GRAY_AS_RGB, "JPEG")}, 1),
        ({"a_png": encode(GRAY, "PNG"), "b_png": encode(Image.fromarray(COLOR_PIXELS), "PNG")}, 3),
        ({"a_png": encode(color_with_alpha(ALPHA), "PNG"), "b_png": encode(gray_with_alpha(ALPHA), "PNG")}, 3),
        ({"a_tif": multichannel_tiff(), "b_tif": multichannel_tiff(np.uint16)}, 5),
        ({"a_tif": multichannel_tiff(), "b_png": encode(GRAY, "PNG")}, 5),
        ({"a_tif": multichannel_tiff(channels=2)}, 2),
    ],
    ids="gray gray-as-rgb mixed transparent five five-and-gray two".split(),
)
def test_channels_are_inferred_from_the_images(tmp_path: Path, files: dict[str, bytes], channels: int) -> None:
    dataset = open_dataset(write_files(tmp_path, **files))
    pixel_format = infer_pixel_format(dataset)
    assert pixel_format.channels == channels
    assert {read_image(dataset, i, pixel_format).shape[2] for i in range(len(dataset))} == {channels}
    if channels in (1, 3):  # others cannot be converted
        assert infer_pixel_format(dataset, 1).channels == 1


@pytest.mark.parametrize("channels", [(4, 5), (3, 5), (1, 2, 4)])
def test_mixed_channels_raise_input_error(tmp_path: Path, channels: tuple[int, ...]) -> None:
    write_files(tmp_path, **{f"a{n}_tif": multichannel_tiff(channels=n) for n in channels})
    expected = ", ".join(map(str, channels))
    with pytest.raises(InputError, match=f"^channels: the images have {expected} channels; choose one$"):
        infer_pixel_format(open_dataset(tmp_path))


def test_analysis_ignores_corrupt_images(tmp_path: Path) -> None:
    png = encode(Image.fromarray(COLOR_PIXELS), "PNG")
    for name, data in (("a.png", png[:-2000]), ("b.png", png), ("c.jpg", encode(GRAY, "JPEG")[:-900])):
        (tmp_path / name).write_bytes(data)
    dataset = open_dataset(tmp_path)
    assert infer_pixel_format(dataset) == PixelFormat(3)
    assert channel_statistics(dataset, PixelFormat(3))[0] == pytest.approx(COLOR_PIXELS.mean((0, 1)) / 255, abs=0.02)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"^data: none of 3 images can be read; the first: .*a\.png: .*truncated"):
        infer_pixel_format(dataset)


@pytest.mark.parametrize(
    ("dtype", "maximum", "expected"),
    [
        (np.uint8, 200, None),
        (np.uint16, 200, (0, 255)),
        (np.uint16, 1000, (0, 1023)),
        (np.uint16, 4095, (0, 4095)),
        (np.uint16, 4096, (0, 2**14 - 1)),
        (np.uint16, 65535, (0, 65535)),
        (np.uint32, 10**6, (0, 10**6)),
        (np.float32, None, (0, 1)),
        (np.float64, None, (0, 1)),
        (np.bool_, None, None),
    ],
)
def test_value_range_follows_dtype_and_values(
    dtype: Any, maximum: float | None, expected: tuple[float, float] | None
) -> None:
    values = random_values((3, 30, 40, 1), dtype, maximum)
    if maximum is not None:
        values[0, 0, 0] = maximum
    assert infer_pixel_format(ArrayDataset("a", values)).value_range == expected


def test_value_range_of_signed_integers_is_given_by_percentiles() -> None:
    ct_scan = np.random.default_rng(0).normal(100, 400, (20, 90, 100, 1)).clip(-1024, 3071).astype(np.int16)
    ct_scan[:, 0, 0] = 3071  # metal in the scan
    low, high = np.percentile(ct_scan, (0.1, 99.9))
    pixel_format = infer_pixel_format(ArrayDataset("a", ct_scan))
    assert pixel_format.value_range == pytest.approx((low, high))
    converted = convert_pixels(ct_scan[3], pixel_format)
    assert max_difference(converted, np.clip((ct_scan[3] - low) / (high - low), 0, 1)) < 1e-6


def test_unusual_values_have_a_valid_value_range() -> None:
    assert infer_pixel_format(ArrayDataset("a", np.full((2, 8, 8, 1), np.nan))).value_range == (0, 1)
    assert infer_pixel_format(ArrayDataset("a", np.full((2, 8, 8, 1), -7.0))).value_range == (-7, -6)
    # a few bright pixels decide the bit depth
    cells = random_values((4, 700, 800, 1), np.uint16, 900)
    cells[2, 333, 77] = 4000
    assert infer_pixel_format(ArrayDataset("a", cells)).value_range == (0, 4095)


def test_value_range_samples_every_channel() -> None:
    """Of 500 x 500 x 5 values, every 125th would belong to the same channel."""
    values = np.random.default_rng(0).normal(0, 1, (2, 500, 500, 5)) * [1, 1, 1, 1, 50]
    low, high = infer_pixel_format(ArrayDataset("a", values)).value_range or (0, 0)
    assert (low, high) == pytest.approx(np.percentile(values, (0.1, 99.9)), rel=0.1)


def test_12_bit_values_stay_distinct() -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64, 1)
    pixel_format = infer_pixel_format(ArrayDataset("a", values[None]))
    converted = convert_pixels(values, pixel_format)
    assert converted.dtype == np.float32
    assert (np.diff(converted.ravel()) > 0).all()
    assert max_difference(converted, values / 4095) < 1e-7


def test_8_bit_images_among_16_bit_images_are_scaled_by_255(tmp_path: Path) -> None:
    write_files(tmp_path, a_tif=multichannel_tiff(np.uint16, 4095), b_tif=multichannel_tiff())
    dataset = open_dataset(tmp_path)
    pixel_format = infer_pixel_format(dataset)
    assert pixel_format.value_range == (0, 4095)
    assert max_difference(read_image(dataset, 1, pixel_format), random_values((30, 40, 5), np.uint8) / 255) < 1e-6


@pytest.mark.parametrize("size", [(28, 28), (64, 96), (500, 112), (1024, 64)])
def test_channel_statistics_match_those_of_all_pixels(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    gradient = np.linspace(0, 1, size[1])[:, None] ** 3 * [200, 100, 50, 20]
    images = np.stack([rng.integers(0, 56, (*size, 4)) + gradient for _ in range(12)]).astype(np.uint8)
    mean, std = channel_statistics(ArrayDataset("a", images), PixelFormat(4))
    exact = images.astype(np.float64) / 255
    assert mean == pytest.approx(exact.mean((0, 1, 2)), abs=0.01)
    assert std == pytest.approx(exact.std((0, 1, 2)), rel=0.05)


def test_channel_statistics_of_16_bit_images_in_memory() -> None:
    images = random_values((50, 24, 24, 2), np.uint16, 4095)
    dataset, _ = load_into_memory(ArrayDataset("a", images), pixel_format := PixelFormat(2, (0.0, 4095.0)))
    assert dataset.decoded  # and scaled: not to be scaled again
    mean, std = channel_statistics(dataset, pixel_format)
    assert mean == pytest.approx((images / 4095).mean((0, 1, 2)), abs=0.02)
    assert std == pytest.approx((images / 4095).std((0, 1, 2)), abs=0.02)


def test_channel_statistics_of_16_bit_multipage_tiffs(tmp_path: Path) -> None:
    brightness = np.arange(1, 6)[:, None, None] / 5
    for i in range(6):
        pages = (random_values((5, 40, 50 + i), np.uint16, 4095) * brightness).astype(np.uint16)
        (tmp_path / f"{i}.tif").write_bytes(encode_tiff(pages, photometric="minisblack"))
    exact = np.concatenate([tifffile.imread(p).reshape(5, -1) for p in tmp_path.iterdir()], axis=1) / 4095
    mean, std = channel_statistics(open_dataset(tmp_path), PixelFormat(5, (0.0, 4095.0)))
    assert mean == pytest.approx(exact.mean(axis=1).tolist(), rel=0.05)
    assert std == pytest.approx(exact.std(axis=1).tolist(), rel=0.05)


def test_channel_statistics_include_the_background(tmp_path: Path) -> None:
    (tmp_path / "clear.png").write_bytes(encode(color_with_alpha(np.zeros_like(ALPHA)), "PNG"))
    mean, _ = channel_statistics(open_dataset(tmp_path), PixelFormat(3, None, "#204060"))
    assert mean == pytest.approx([v / 255 for v in BLUE])


def test_images_with_other_channels_count_as_corrupt(tmp_path: Path) -> None:
    color = encode(Image.fromarray(COLOR_PIXELS[:30, :40]), "PNG")
    dataset = open_dataset(write_files(tmp_path, a_tif=multichannel_tiff(), b_png=color, c_tif=multichannel_tiff()))
    in_memory, corrupt = load_into_memory(dataset, PixelFormat(3))
    assert isinstance(in_memory, ArrayDataset)
    assert np.array_equal(in_memory.images, COLOR_PIXELS[None, :30, :40])
    assert [item.title for item in corrupt] == [str(tmp_path / name) for name in ("a.tif", "c.tif")]
    assert all("expected an image with 3 channels (or 1), got 5" in item.reason for item in corrupt)


@pytest.mark.parametrize("num_gray", [0, 1])  # gray images convert to any number of channels
def test_another_number_of_channels_names_the_channels(tmp_path: Path, num_gray: int) -> None:
    color, gray = encode(Image.fromarray(COLOR_PIXELS), "PNG"), encode(GRAY, "PNG")
    dataset = open_dataset(write_files(tmp_path, a_png=gray if num_gray else color, b_png=color, c_png=color))
    with pytest.raises(InputError, match=rf"^channels: expected 4, but {3 - num_gray} of 3 .* have 3$"):
        infer_pixel_format(dataset, 4)


def test_images_in_memory_are_scaled_once(tmp_path: Path) -> None:
    """Load 12-bit images into memory once and twice, then read them for evaluation."""
    values = np.random.default_rng(0).integers(0, 4096, (6, 20, 20, 1)).astype(np.uint16)
    dataset = ArrayDataset("a", values)
    pixel_format = PixelFormat(1, (0.0, 4095.0))
    for _ in range(2):
        dataset = load_into_memory(dataset, pixel_format)[0]
        (batch,) = evaluation_loader(dataset, pixel_format, 20, workers=0)
        np.testing.assert_allclose(batch.images[:, 0], values[..., 0] / 4095, atol=1e-6)
        subset = dataset.subset(np.array([4]))
        np.testing.assert_allclose(read_image(subset, 0, pixel_format), values[4] / 4095, atol=1e-6)
