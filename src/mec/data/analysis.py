"""Inference of the pixel format and color statistics of a dataset, and loading of small images into memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.data.corrupt import CorruptImage
from mec.data.dataset import (
    ArrayDataset,
    ImageDataset,
    Labels,
    count_skipped,
    evenly_spaced,
    format_as_loaded,
    read_image,
)
from mec.data.decode import OpenedImage, open_image
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat, convert_pixels
from mec.errors import InputError

IN_MEMORY_MAX_SIDE = 96  # pixels; images up to this size are decoded once and held in memory
IN_MEMORY_MAX_BYTES = 4 * 2**30
FORMAT_SAMPLE_SIZE = 64  # images from which channels and value range are inferred
STATISTICS_SAMPLE_SIZE = 1000  # images from which mean and standard deviation are computed
BIT_DEPTHS = (8, 10, 12, 14, 16)


def infer_pixel_format(dataset: ImageDataset, channels: int | None = None, background: str = "white") -> PixelFormat:
    """Infer the pixel format of a dataset from an evenly spaced sample of its images.

    Images of more than 8 bits get a value_range: for unsigned integers, that of the smallest bit depth that holds
    their values; for other types within [0, 1], this range, for whole numbers within [0, 255], that of 8 bits; else
    the 0.1 and 99.9 percentiles. The default of ``channels`` is 1 where all images are gray, 3 where any is in color,
    else their own number; if it varies, an InputError, as for ``channels`` that most images cannot be converted to.
    """
    raw_format = PixelFormat(channels or 3, None, background)
    if len(dataset) == 0:
        raise InputError("data: no image")
    found_channels: Counter[int] = Counter()
    deep_pixels: list[NDArray[Any]] = []
    maximum = 0.0
    for values in sample_images(dataset, FORMAT_SAMPLE_SIZE, lambda opened: opened.raw(raw_format)):
        is_gray = values.shape[2] == 3 and (values[..., :1] == values).all()
        found_channels[1 if is_gray else values.shape[2]] += 1
        if values.dtype.kind in "uif" and values.dtype != np.uint8:
            deep_pixels.append(_sample_pixels(values, 10_000 // values.shape[2]).copy())
            maximum = max(maximum, float(values.max()))  # of all pixels: a few bright ones decide the bit depth
    if channels is None:
        channels = max(found_channels)
        if found_channels.keys() - {1, channels}:
            numbers = ", ".join(map(str, sorted(found_channels)))
            raise InputError(f"channels: the images have {numbers} channels; choose one")
    convertible = {1, channels} | ({3} if channels == 1 else set())
    for other, count in found_channels.items():
        if other not in convertible and 2 * count > found_channels.total():  # a few are counted as corrupt
            sampled = f"{count} of {found_channels.total()} sampled images have {other}"
            raise InputError(f"channels: expected {channels}, but {sampled}")
    return PixelFormat(channels, _infer_value_range(deep_pixels, maximum) if deep_pixels else None, background)


def sample_images(
    dataset: ImageDataset, count: int, extract: Callable[[OpenedImage], NDArray[Any]]
) -> Iterator[NDArray[Any]]:
    """Yield ``extract(image)`` for about ``count`` evenly spaced images; an InputError if none of them can be read."""
    num_readable, first_reason = 0, ""
    for index in evenly_spaced(dataset, count).tolist():
        try:
            values = extract(open_image(dataset.load(index)))
        except CorruptImageError as error:
            first_reason = first_reason or f"{dataset.title(index)}: {error}"
            continue
        num_readable += 1
        yield values
    if not num_readable:
        raise InputError(f"data: none of {min(count, len(dataset))} images can be read; the first: {first_reason}")


def _sample_pixels(image: NDArray[Any], count: int, min_step: int = 1) -> NDArray[Any]:
    """Return about ``count`` pixels (n, c) of an image (h, w, c) at a regular step that covers all columns equally."""
    height, width, channels = image.shape
    step = max(min_step, height * width // max(1, count))
    while math.gcd(step, width) > 1:
        step += 1
    return image.reshape(-1, channels)[::step]


def _infer_value_range(deep_pixels: list[NDArray[Any]], maximum: float) -> tuple[float, float]:
    values = np.concatenate([v.reshape(-1).astype(np.float64) for v in deep_pixels])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    if all(v.dtype.kind == "u" for v in deep_pixels):
        return 0.0, next((2.0**bits - 1 for bits in BIT_DEPTHS if maximum < 2**bits), maximum)
    if values.min() >= 0 and values.max() <= 1:
        return 0.0, 1.0
    if values.min() >= 0 and values.max() <= 255 and (values == np.rint(values)).all():
        return 0.0, 255.0  # 8-bit images in another type
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    return low, high if high > low else low + 1.0


def load_into_memory(dataset: ImageDataset, pixel_format: PixelFormat) -> tuple[ImageDataset, list[CorruptImage]]:
    """Return small images of one size decoded in memory, and the corrupt ones among them; or the dataset unchanged."""
    if dataset.decoded:
        return dataset, []
    if dataset.images is not None:
        images = np.stack([convert_pixels(p, pixel_format) for p in dataset.images])
        return _decoded(dataset, images, dataset.labels), []
    first = next(sample_images(dataset, 16, lambda opened: opened.decode(pixel_format)))
    if max(first.shape[:2]) > IN_MEMORY_MAX_SIDE or first.nbytes * len(dataset) > IN_MEMORY_MAX_BYTES:
        return dataset, []

    def decode(index: int) -> ImageArray | CorruptImage:
        try:
            return read_image(dataset, index, pixel_format)
        except CorruptImageError as error:
            return CorruptImage(dataset.title(index), str(error))

    images = np.empty((len(dataset), *first.shape), dtype=first.dtype)
    readable: list[int] = []
    corrupt: list[CorruptImage] = []
    with ThreadPoolExecutor(None if dataset.random_access else 1) as pool:
        for index, result in enumerate(pool.map(decode, range(len(dataset)))):
            if isinstance(result, CorruptImage):
                corrupt.append(result)
            elif result.shape != first.shape:
                pool.shutdown(cancel_futures=True)
                return dataset, []
            else:
                images[len(readable)] = result
                readable.append(index)
    labels = None if dataset.labels is None else dataset.labels[readable]
    in_memory = _decoded(dataset, images[: len(readable)], labels)
    count_skipped(in_memory, "corrupt images", (image.title for image in corrupt))
    return in_memory, corrupt


def _decoded(dataset: ImageDataset, images: NDArray[Any], labels: Labels | None) -> ArrayDataset:
    return ArrayDataset(dataset.name, images, labels, dataset.classes, dataset.layout, dataset.skipped, decoded=True)


def channel_statistics(dataset: ImageDataset, pixel_format: PixelFormat) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in [0, 1], over an evenly spaced sample of images."""
    pixels, loaded_format = [], format_as_loaded(dataset, pixel_format)
    for image in sample_images(dataset, STATISTICS_SAMPLE_SIZE, lambda opened: opened.decode(loaded_format)):
        scale = 255.0 if image.dtype == np.uint8 else 1.0
        pixels.append(_sample_pixels(image, 4096, 7) / scale)
    joined = np.concatenate(pixels)
    std = np.maximum(joined.std(axis=0), 1e-3)
    return tuple(float(v) for v in joined.mean(axis=0)), tuple(float(v) for v in std)
