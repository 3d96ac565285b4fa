"""Datasets of images: a protocol, and its implementations for files and arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat

DataLike = str | os.PathLike[str]
"""Path or name of a dataset, as ``mec.open_dataset`` takes it."""
Labels = NDArray[np.int64]
Self = TypeVar("Self", bound="ImageDataset")

MAX_SAMPLED_SHARDS = 8
"""Shards that an evenly spaced sample comes from; each is read from its start."""


class ImageDataset(Protocol):
    """A map-style dataset of images, with labels or without.

    Attributes:
        name: name of the dataset in logs and results.
        labels: (n,) indices into ``classes``, or None.
        classes: names of the classes.
        ignored_files: number of files that are not part of the dataset because they are no images or unreadable; for
            shards, the number of shards that could be read only in part.
    """

    name: str
    labels: Labels | None
    classes: list[str]
    ignored_files: int

    def __len__(self) -> int: ...

    def load(self, index: int) -> bytes | NDArray[Any]:
        """Return image ``index``, encoded or as an array.

        Raises:
            CorruptImageError: the image cannot be read.
        """

    def title(self, index: int) -> str:
        """Return the path of image ``index``, or another description of its origin."""

    def subset(self: Self, indices: NDArray[np.int64]) -> Self:
        """Return a dataset of the images ``indices`` (n,)."""


@dataclass
class FileDataset:
    """Images in files. ``names[i]`` is the path of image i relative to ``root``."""

    name: str
    root: Path
    names: list[str]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    ignored_files: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> bytes:
        try:
            return (self.root / self.names[index]).read_bytes()
        except OSError as error:
            raise CorruptImageError(error.strerror or str(error)) from error

    def title(self, index: int) -> str:
        return str(self.root / self.names[index])

    def subset(self, indices: NDArray[np.int64]) -> FileDataset:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, names=[self.names[i] for i in indices], labels=labels)


@dataclass
class ArrayDataset:
    """Images of one size in memory, an array (n, height, width, channels) of any numeric type.

    ``decoded``: the images are already converted to a PixelFormat (see ``load_into_memory``); ``read_image`` returns
    them unchanged, so that their values are not scaled twice.
    """

    name: str
    images: NDArray[Any]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    ignored_files: int = 0
    decoded: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> NDArray[Any]:
        return np.asarray(self.images[index])

    def title(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def subset(self, indices: NDArray[np.int64]) -> ArrayDataset:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, images=self.images[indices], labels=labels)


def read_image(dataset: ImageDataset, index: int, pixel_format: PixelFormat | None = None) -> ImageArray:
    """Load and decode an image.

    Args:
        dataset: the dataset.
        index: index of the image.
        pixel_format: channels and value range of the result; None: 8-bit RGB.

    Returns:
        (height, width, channels) pixels.

    Raises:
        CorruptImageError: the image cannot be read or decoded.
    """
    if isinstance(dataset, ArrayDataset) and dataset.decoded:
        decoded: ImageArray = dataset.images[index]
        return decoded
    return open_image(dataset.load(index)).decode(pixel_format or PixelFormat())


def evenly_spaced(dataset: ImageDataset, count: int) -> NDArray[np.int64]:
    """Return sorted indices of about ``count`` images that are spread over the dataset.

    Shards are read sequentially, so their sample is the first images of up to ``MAX_SAMPLED_SHARDS`` shards.
    """
    shard_ranges = getattr(dataset, "shard_ranges", None)
    if shard_ranges is None:
        return np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(np.int64))
    num_shards = min(MAX_SAMPLED_SHARDS, len(shard_ranges))
    shards = np.unique(np.linspace(0, len(shard_ranges) - 1, num_shards).astype(int))
    per_shard = -(-count // len(shards))
    starts_and_ends = [shard_ranges[shard] for shard in shards]
    return np.concatenate([np.arange(start, min(start + per_shard, end)) for start, end in starts_and_ends])[:count]


def describe(dataset: ImageDataset) -> str:
    """Return a summary such as "3,969 images, 101 classes, 3 skipped"."""
    num_classes = len(dataset.classes)
    counts = [f"{len(dataset):,} image{'s' if len(dataset) != 1 else ''}"]
    counts.append(
        f"{num_classes} class{'es' if num_classes != 1 else ''}" if dataset.labels is not None else "no labels"
    )
    if dataset.ignored_files:
        counts.append(f"{dataset.ignored_files:,} skipped")
    return ", ".join(counts)
