"""What a source holds: the channels, the range and the colors of its images; small ones are taken into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.data.corrupt import CorruptImage
from mec.data.dataset import ArrayDataset, ImageDataset, evenly_spaced, read_image
from mec.data.decode import Opened, open_image
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat, convert_pixels
from mec.errors import InputError

RESIDENT_SIDE = 96
"""Images up to this many pixels a side are kept in memory, decoded once."""
RESIDENT_BYTES = 4 * 2**30
SURVEYED, MEASURED = 64, 1000
"""Images that tell channels and range, and those that tell the colors."""
BIT_DEPTHS = (8, 10, 12, 14, 16)


def infer_pixel_format(dataset: ImageDataset, channels: int | None = None, background: str = "white") -> PixelFormat:
    """How the images of a source are best read, from an even sample of them.

    Channels as asked, else 1 where all are gray, 3 where any is in color, else what they have. Images of more than
    8 bits get a value_range: the bit depth they fill for unsigned integers, [0, 1] for floats within it, else the
    0.1 and 99.9 % points.
    """
    asked = PixelFormat(channels or 3, None, background)
    if len(dataset) == 0:
        raise InputError("data: no image")
    found: set[int] = set()
    deep: list[NDArray[Any]] = []
    highest = 0.0
    for values in sampled(dataset, SURVEYED, lambda opened: opened.raw(asked)):
        gray = values.shape[2] == 3 and (values[..., :1] == values).all()
        found.add(1 if gray else values.shape[2])
        if values.dtype.kind in "uif" and values.dtype != np.uint8:
            deep.append(_pixels_of(values, 10_000 // values.shape[2]).copy())
            highest = max(highest, float(values.max()))  # a few bright pixels tell the bit depth
    if channels is None:
        several = found - {1}
        if len(several) > 1:
            raise InputError(f"channels: the images have {', '.join(map(str, sorted(found)))} channels; choose one")
        channels = several.pop() if several else 1
    return PixelFormat(channels, _range_of(deep, highest) if deep else None, background)


def sampled(dataset: ImageDataset, count: int, take: Callable[[Opened], NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """What is taken of about ``count`` images from all over the source, without the broken ones.

    Raises:
        InputError: not one of them can be read.
    """
    found, reason = False, ""
    for index in evenly_spaced(dataset, count).tolist():
        try:
            values = take(open_image(dataset.load(index)))
        except CorruptImageError as error:
            reason = reason or f"{dataset.title(index)}: {error}"
            continue
        found = True
        yield values
    if not found:
        raise InputError(f"data: none of {min(count, len(dataset))} images can be read; the first: {reason}")


def _pixels_of(image: NDArray[Any], count: int, least: int = 1) -> NDArray[Any]:
    """Every k-th pixel of (h, w, c), as (n, c): about ``count``, from all columns alike."""
    height, width, channels = image.shape
    step = max(least, height * width // max(1, count))
    while math.gcd(step, width) > 1:
        step += 1
    return image.reshape(-1, channels)[::step]


def _range_of(deep: list[NDArray[Any]], highest: float) -> tuple[float, float]:
    values = np.concatenate([v.reshape(-1).astype(np.float64) for v in deep])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    if all(v.dtype.kind == "u" for v in deep):
        return 0.0, next((2.0**bits - 1 for bits in BIT_DEPTHS if highest < 2**bits), highest)
    if values.min() >= 0 and values.max() <= 1:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    return low, high if high > low else low + 1.0


def load_into_memory(dataset: ImageDataset, reading: PixelFormat) -> tuple[ImageDataset, list[CorruptImage]]:
    """``images`` decoded into memory when all are alike, small, and fit, else as they came; and which are lost."""
    if isinstance(dataset, ArrayDataset) and dataset.settled:
        return dataset, []
    if isinstance(dataset, ArrayDataset):
        images = np.stack([convert_pixels(p, reading) for p in dataset.images])
        return ArrayDataset(dataset.name, images, dataset.labels, dataset.classes, dataset.ignored_files, True), []
    first = next(sampled(dataset, 16, lambda opened: opened.decode(reading)))
    if max(first.shape[:2]) > RESIDENT_SIDE or first.nbytes * len(dataset) > RESIDENT_BYTES:
        return dataset, []

    def image(index: int) -> ImageArray | CorruptImage:
        try:
            return read_image(dataset, index, reading)
        except CorruptImageError as error:
            return CorruptImage(dataset.title(index), str(error))

    images = np.empty((len(dataset), *first.shape), dtype=first.dtype)
    kept: list[int] = []
    lost: list[CorruptImage] = []
    # shards are read in order, files side by side
    with ThreadPoolExecutor(None if hasattr(dataset, "names") else 1) as pool:
        for index, found in enumerate(pool.map(image, range(len(dataset)))):
            if isinstance(found, CorruptImage):
                lost.append(found)
            elif found.shape != first.shape:
                pool.shutdown(cancel_futures=True)
                return dataset, []
            else:
                images[len(kept)] = found
                kept.append(index)
    labels = None if dataset.labels is None else dataset.labels[kept]
    ignored_files = dataset.ignored_files + len(lost)
    return ArrayDataset(dataset.name, images[: len(kept)], labels, dataset.classes, ignored_files, True), lost


def channel_statistics(dataset: ImageDataset, reading: PixelFormat) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of images in [0, 1], over an even sample of them."""
    pixels = []
    for image in sampled(dataset, MEASURED, lambda opened: opened.decode(reading)):
        scale = 255.0 if image.dtype == np.uint8 else 1.0
        pixels.append(_pixels_of(image, 4096, 7) / scale)
    joined = np.concatenate(pixels)
    deviation = np.maximum(joined.std(axis=0), 1e-3)
    return tuple(float(v) for v in joined.mean(axis=0)), tuple(float(v) for v in deviation)
