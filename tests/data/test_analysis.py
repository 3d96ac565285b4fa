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
    BYTES,
    COLORS,
    colors_and,
    difference,
    encoded,
    gray_and,
    numbers,
    threefold,
    tiff,
)


def write_all(folder: Path, **files: bytes) -> Path:
    for name, data in files.items():
        stem, kind = name.rsplit("_", 1)
        (folder / f"{stem}.{kind}").write_bytes(data)
    return folder


def five(dtype: Any = np.uint8, top: float | None = None, channels: int = 5) -> bytes:
    values = numbers((30, 40, channels), dtype, top)
    options = {"planarconfig": "contig"} if channels > 1 else {}
    return tiff(values.squeeze(), photometric="minisblack", **options)


GRAY, GRAY_AS_COLOR = Image.fromarray(BYTES), Image.fromarray(threefold(BYTES))


@pytest.mark.parametrize(
    ("files", "channels"),
    [
        ({"a_png": encoded(GRAY, "PNG"), "b_jpg": encoded(GRAY, "JPEG")}, 1),
        ({"a_png": encoded(GRAY_AS_COLOR, "PNG"), "b_jpg": encoded(GRAY_AS_COLOR, "JPEG")}, 1),
        ({"a_png": encoded(GRAY, "PNG"), "b_png": encoded(Image.fromarray(COLORS), "PNG")}, 3),
        ({"a_png": encoded(colors_and(ALPHA), "PNG"), "b_png": encoded(gray_and(ALPHA), "PNG")}, 3),
        ({"a_tif": five(), "b_tif": five(np.uint16)}, 5),
        ({"a_tif": five(), "b_png": encoded(GRAY, "PNG")}, 5),
        ({"a_tif": five(channels=2)}, 2),
    ],
    ids="gray gray-as-color mixed transparent five five-and-gray two".split(),
)
def test_channels_are_those_of_the_images(tmp_path: Path, files: dict[str, bytes], channels: int) -> None:
    images = open_dataset(write_all(tmp_path, **files))
    reading = infer_pixel_format(images)
    assert reading.channels == channels
    assert {read_image(images, i, reading).shape[2] for i in range(len(images))} == {channels}
    assert infer_pixel_format(images, 1).channels == 1


@pytest.mark.parametrize("others", [(4, 5), (3, 5), (1, 2, 4)])
def test_other_numbers_of_channels_are_named(tmp_path: Path, others: tuple[int, ...]) -> None:
    write_all(tmp_path, **{f"a{n}_tif": five(channels=n) for n in others})
    expected = ", ".join(map(str, others))
    with pytest.raises(InputError, match=f"^channels: the images have {expected} channels; choose one$"):
        infer_pixel_format(open_dataset(tmp_path))


def test_broken_images_are_passed_over_by_a_survey(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(COLORS), "PNG")
    for name, data in (("a.png", whole[:-2000]), ("b.png", whole), ("c.jpg", encoded(GRAY, "JPEG")[:-900])):
        (tmp_path / name).write_bytes(data)
    images = open_dataset(tmp_path)
    assert infer_pixel_format(images) == PixelFormat(3)
    assert channel_statistics(images, PixelFormat(3))[0] == pytest.approx(COLORS.mean((0, 1)) / 255, abs=0.02)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"^data: none of 3 images can be read; the first: .*a\.png: .*truncated"):
        infer_pixel_format(images)


@pytest.mark.parametrize(
    ("dtype", "top", "expected"),
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
def test_the_range_is_that_of_the_numbers(dtype: Any, top: float | None, expected: tuple[float, float] | None) -> None:
    values = numbers((3, 30, 40, 1), dtype, top)
    if top is not None:
        values[0, 0, 0] = top
    assert infer_pixel_format(ArrayDataset("a", values)).value_range == expected


def test_the_range_of_signed_numbers_is_their_percentiles() -> None:
    scan = np.random.default_rng(0).normal(100, 400, (20, 90, 100, 1)).clip(-1024, 3071).astype(np.int16)
    scan[:, 0, 0] = 3071  # a piece of metal
    low, high = np.percentile(scan, (0.1, 99.9))
    reading = infer_pixel_format(ArrayDataset("a", scan))
    assert reading.value_range == pytest.approx((low, high))
    found = convert_pixels(scan[3], reading)
    assert difference(found, np.clip((scan[3] - low) / (high - low), 0, 1)) < 1e-6


def test_a_few_bright_pixels_tell_the_bit_depth() -> None:
    cells = numbers((4, 700, 800, 1), np.uint16, 900)
    cells[2, 333, 77] = 4000
    assert infer_pixel_format(ArrayDataset("a", cells)).value_range == (0, 4095)


def test_every_channel_counts_for_the_range() -> None:
    """500 x 500 x 5 numbers: every 125th is always of the same channel."""
    values = np.random.default_rng(0).normal(0, 1, (2, 500, 500, 5)) * [1, 1, 1, 1, 50]
    low, high = infer_pixel_format(ArrayDataset("a", values)).value_range or (0, 0)
    assert (low, high) == pytest.approx(np.percentile(values, (0.1, 99.9)), rel=0.1)


def test_no_number_at_all_is_some_range() -> None:
    assert infer_pixel_format(ArrayDataset("a", np.full((2, 8, 8, 1), np.nan))).value_range == (0, 1)
    assert infer_pixel_format(ArrayDataset("a", np.full((2, 8, 8, 1), -7.0))).value_range == (-7, -6)


def test_neighboring_tones_of_twelve_bits_stay_apart() -> None:
    tones = np.arange(4096, dtype=np.uint16).reshape(64, 64, 1)
    reading = infer_pixel_format(ArrayDataset("a", tones[None]))
    found = convert_pixels(tones, reading)
    assert found.dtype == np.float32
    assert (np.diff(found.ravel()) > 0).all()
    assert difference(found, tones / 4095) < 1e-7


def test_bytes_among_deeper_images_are_read_alike(tmp_path: Path) -> None:
    write_all(tmp_path, a_tif=five(np.uint16, 4095), b_tif=five())
    images = open_dataset(tmp_path)
    reading = infer_pixel_format(images)
    assert reading.value_range == (0, 4095)
    assert difference(read_image(images, 1, reading), numbers((30, 40, 5), np.uint8) / 255) < 1e-6


@pytest.mark.parametrize("size", [(28, 28), (64, 96), (120, 100), (500, 112), (4096, 64)])
def test_colors_are_those_of_all_pixels(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    across = np.linspace(0, 1, size[1])[:, None] ** 3 * [200, 100, 50, 20]
    images = np.stack([rng.integers(0, 56, (*size, 4)) + across for _ in range(12)]).astype(np.uint8)
    mean, deviation = channel_statistics(ArrayDataset("a", images), PixelFormat(4))
    exact = images.astype(np.float64) / 255
    assert mean == pytest.approx(exact.mean((0, 1, 2)), abs=0.01)
    assert deviation == pytest.approx(exact.std((0, 1, 2)), rel=0.05)


def test_colors_of_deep_images_in_pages(tmp_path: Path) -> None:
    brightness = np.arange(1, 6)[:, None, None] / 5
    for i in range(6):
        pages = (numbers((5, 40, 50 + i), np.uint16, 4095) * brightness).astype(np.uint16)
        (tmp_path / f"{i}.tif").write_bytes(tiff(pages, photometric="minisblack"))
    exact = np.concatenate([tifffile.imread(p).reshape(5, -1) for p in tmp_path.iterdir()], axis=1) / 4095
    mean, deviation = channel_statistics(open_dataset(tmp_path), PixelFormat(5, (0.0, 4095.0)))
    assert mean == pytest.approx(exact.mean(axis=1).tolist(), rel=0.05)
    assert deviation == pytest.approx(exact.std(axis=1).tolist(), rel=0.05)


def test_colors_are_measured_on_the_background(tmp_path: Path) -> None:
    (tmp_path / "clear.png").write_bytes(encoded(colors_and(np.zeros_like(ALPHA)), "PNG"))
    mean, _ = channel_statistics(open_dataset(tmp_path), PixelFormat(3, None, "#204060"))
    assert mean == pytest.approx([v / 255 for v in BLUE])


def test_images_of_other_channels_count_as_broken(tmp_path: Path) -> None:
    write_all(tmp_path, a_tif=five(), b_png=encoded(Image.fromarray(COLORS[:30, :40]), "PNG"), c_tif=five())
    images = open_dataset(tmp_path)
    settled, lost = load_into_memory(images, PixelFormat(3))
    assert isinstance(settled, ArrayDataset)
    assert np.array_equal(settled.images, COLORS[None, :30, :40])
    assert [item.title for item in lost] == [str(tmp_path / name) for name in ("a.tif", "c.tif")]
    assert all("expected an image with 3 channels (or 1), got 5" in item.reason for item in lost)


def test_images_in_memory_are_scaled_once(tmp_path: Path) -> None:
    """Small images of 12 bits, settled, then read for an evaluation and once more."""
    values = np.random.default_rng(0).integers(0, 4096, (6, 20, 20, 1)).astype(np.uint16)
    images = ArrayDataset("a", values)
    reading = PixelFormat(1, (0.0, 4095.0))
    for settled in (
        load_into_memory(images, reading)[0],
        load_into_memory(load_into_memory(images, reading)[0], reading)[0],
    ):
        (batch,) = evaluation_loader(settled, reading, 20, workers=0)
        np.testing.assert_allclose(batch.images[:, 0], values[..., 0] / 4095, atol=1e-6)
        np.testing.assert_allclose(read_image(settled.subset(np.array([4])), 0, reading), values[4] / 4095, atol=1e-6)
