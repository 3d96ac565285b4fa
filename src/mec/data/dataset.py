"""Datasets of images: a protocol, its implementations for files and arrays, and splits for training and testing."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat
from mec.data.rng import Stream, uniforms
from mec.errors import InputError

logger = logging.getLogger("mec")

DataLike = str | os.PathLike[str]  # path or name of a dataset, as ``mec.open_dataset`` takes it
Indices = NDArray[np.int64]
Labels = NDArray[np.int64]
Self = TypeVar("Self", bound="ImageDataset")
T = TypeVar("T")

MAX_SAMPLED_SHARDS = 8  # of an evenly spaced sample; each is read from its start
LOG_INTERVAL = 10.0  # seconds between two lines about the progress of opening a dataset
TRAIN_NAMES = ("train",)
TEST_NAMES = ("test", "val", "valid", "validation")
TEST_FRACTION = 0.2  # of each class, in the test split of a dataset without its own splits


class ImageDataset(Protocol):
    """A map-style dataset of images, with labels or without. Subclasses inherit the attributes that have a default.

    Attributes:
        name: name of the dataset in logs and results.
        labels: (n,) indices into ``classes``, or None.
        classes: names of the classes.
        ignored_files: number of files that are not part of the dataset because they are no images or unreadable; for
            shards, the number of shards that could be read only in part.
        random_access: whether images load equally fast in any order; False: in ascending order, and not in parallel.
        names: paths of images in files, relative to the folder of the dataset; None: the images are not in files.
        images: (n, height, width, channels) images of one size in memory; None: they are read by ``load``.
        decoded: whether ``images`` are already converted to a PixelFormat; ``read_image`` does not scale them again.
    """

    name: str
    labels: Labels | None
    classes: list[str]
    ignored_files: int
    random_access: bool = True
    names: list[str] | None = None
    images: NDArray[Any] | None = None
    decoded: bool = False

    def __len__(self) -> int: ...

    @property
    def shard_bounds(self) -> Indices:
        """Boundaries of the shards (shards + 1,): shard i holds images shard_bounds[i] ... shard_bounds[i + 1] - 1."""
        return np.array([0, len(self)])

    def load(self, index: int) -> bytes | NDArray[Any]:
        """Return image ``index``, encoded or as an array.

        Raises:
            CorruptImageError: the image cannot be read.
        """

    def title(self, index: int) -> str:
        """Return the path of image ``index``, or another description of its origin."""

    def subset(self: Self, indices: Indices) -> Self:
        """Return a dataset of the images ``indices`` (n,)."""


@dataclass
class FileDataset(ImageDataset):
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
        return read_file(self.root / self.names[index])

    def title(self, index: int) -> str:
        return str(self.root / self.names[index])

    def subset(self, indices: Indices) -> FileDataset:
        return replace(self, names=[self.names[i] for i in indices], labels=select_labels(self, indices))


@dataclass
class ArrayDataset(ImageDataset):
    """Images of one size in memory, an array (n, height, width, channels) of any numeric type."""

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

    def subset(self, indices: Indices) -> ArrayDataset:
        return replace(self, images=self.images[indices], labels=select_labels(self, indices))


def read_file(path: Path) -> bytes:
    """Return the bytes of a file, or raise a CorruptImageError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptImageError(error.strerror or str(error)) from error


def select_labels(dataset: ImageDataset, indices: Indices) -> Labels | None:
    """Return the labels of the images ``indices`` (n,), if the dataset has labels."""
    return None if dataset.labels is None else dataset.labels[indices]


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
    data = dataset.load(index)
    if dataset.decoded:
        return np.asarray(data)
    return open_image(data).decode(pixel_format or PixelFormat())


def evenly_spaced(dataset: ImageDataset, count: int) -> Indices:
    """Return sorted indices of about ``count`` images all over the dataset; of shards, the first of several."""
    if dataset.random_access:
        return np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(np.int64))
    shards = [(start, end) for start, end in itertools.pairwise(dataset.shard_bounds.tolist()) if start < end]
    sampled = np.unique(np.linspace(0, len(shards) - 1, min(MAX_SAMPLED_SHARDS, len(shards))).astype(int))
    per_shard = -(-count // len(sampled))
    ranges = [np.arange(start, min(start + per_shard, end)) for start, end in (shards[shard] for shard in sampled)]
    return np.concatenate(ranges)[:count]


def describe(dataset: ImageDataset) -> str:
    """Return a summary such as "3,969 images, 101 classes, 3 skipped"."""
    num_classes = len(dataset.classes)
    classes = "no labels" if dataset.labels is None else f"{num_classes} class{'es' if num_classes != 1 else ''}"
    counts = [f"{len(dataset):,} image{'s' if len(dataset) != 1 else ''}", classes]
    if dataset.ignored_files:
        counts.append(f"{dataset.ignored_files:,} skipped")
    return ", ".join(counts)


def log_progress(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield the items, and log from time to time how many are done."""
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > LOG_INTERVAL:
            last = time.monotonic()
            logger.info(f"{label}: {done:,} of {len(items):,}")
        yield item


@dataclass(frozen=True)
class Splits:
    """Training images and, where the dataset has them, test images and unlabeled images."""

    train: ImageDataset
    test: ImageDataset | None = None
    unlabeled: ImageDataset | None = None

    def select(self, split: str) -> ImageDataset:
        """Return the split "train", "test", "all" or "pretrain" (see ``open_dataset``)."""
        if split == "pretrain":
            return self.unlabeled or self.train
        if split == "all":
            return self.train
        if self.test is not None:
            return self.train if split == "train" else self.test
        train, test = random_split(self.train, TEST_FRACTION)
        return self.train.subset(train if split == "train" else test)


def open_train_and_test(open_split: Callable[[T, list[str] | None], ImageDataset], train: T, test: T | None) -> Splits:
    """Open both splits by ``open_split(split, classes)``; the test split gets the classes of the training split."""
    train_split = open_split(train, None)
    return Splits(train_split, open_split(test, train_split.classes or None) if test is not None else None)


def random_split(dataset: ImageDataset, fraction: float) -> tuple[Indices, Indices]:
    """Split a dataset at random, stratified by class, the same way in every call.

    Return sorted indices of both parts. The second has ``fraction`` of each class, at least one image of a class with
    several. Images without labels are one class.
    """
    order = uniforms(0, 0, np.arange(len(dataset)), 1, Stream.TRAIN_TEST_SPLIT)[:, 0].argsort()
    labels = np.zeros(len(dataset), dtype=np.int64) if dataset.labels is None else dataset.labels
    selected: list[Indices] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        selected.append(members[: max(1, round(fraction * len(members)))] if len(members) > 1 else members[:0])
    second = np.sort(np.concatenate(selected))
    return np.setdiff1d(np.arange(len(dataset)), second), second


def encode_labels(names: list[str], classes: list[str] | None = None) -> tuple[Labels, list[str]]:
    """Return indices (n,) of the class names of images in ``classes``, and the classes.

    Without ``classes``, those of the training split, they are the distinct names: sorted as integers if all of them are
    integers, else alphabetically.
    """
    if classes is None:
        distinct = set(names)
        are_integers = all(re.fullmatch(r"-?[0-9]+", name) for name in distinct)
        classes = sorted(distinct, key=int) if are_integers else sorted(distinct)
    elif unknown := sorted(set(names) - set(classes)):
        raise InputError(f"data: the test split has classes that the training split lacks: {', '.join(unknown[:5])}")
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[name] for name in names], dtype=np.int64), classes
