"""Datasets of images: a protocol, and its implementations for files and arrays."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat

if TYPE_CHECKING:
    from mec.data.splits import Splits

logger = logging.getLogger("mec")

PathLike: TypeAlias = str | os.PathLike[str]
DataLike: TypeAlias = "PathLike | ImageDataset | MapDataset | Splits"  # as ``mec.open_dataset`` takes it
Indices = NDArray[np.int64]
Labels = NDArray[np.int64]
Self = TypeVar("Self", bound="ImageDataset")
T = TypeVar("T")

MAX_SAMPLED_SHARDS = 8  # of an evenly spaced sample; each is read from its start
LOG_INTERVAL = 10.0  # seconds between two lines about the progress of opening a dataset
UNLABELED = -1  # the label of an image without one
MAX_NAMES = 3  # names of skipped files in a log line


class MapDataset(Protocol):
    """Any dataset with a length and items that are an image, (image, label), or a dict of both; a dict or a tuple of
    several is a dataset with splits."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class ImageDataset(Protocol):
    """A map-style dataset of images, with labels or without. Subclasses inherit the attributes that have a default.

    Attributes:
        name: name of the dataset in logs and results.
        labels: (n,) indices into ``classes``, -1 for an image without label, or None if no image has one.
        classes: names of the classes.
        layout: how the images and labels were read, such as "train/, a class per sub-folder".
        skipped: names of everything that was passed over, by kind: {"files that are no images": ["notes.txt"]}.
        random_access: whether images load equally fast in any order; False: in ascending order, and not in parallel.
        names: paths of images in files, relative to the folder of the dataset; None: the images are not in files.
        images: (n, height, width, channels) images of one size in memory; None: they are read by ``load``.
        decoded: whether ``images`` are already converted to a PixelFormat; ``read_image`` does not scale them again.
    """

    name: str
    labels: Labels | None
    classes: list[str]
    layout: str
    skipped: dict[str, list[str]]
    random_access: bool = True
    names: list[str] | None = None
    images: NDArray[Any] | None = None
    decoded: bool = False

    def __len__(self) -> int: ...

    @property
    def shard_bounds(self) -> Indices:
        """Boundaries of the shards (shards + 1,): shard i holds images shard_bounds[i] ... shard_bounds[i + 1] - 1."""
        return np.array([0, len(self)])

    def load(self, index: int) -> bytes | NDArray[Any] | Image.Image:
        """Return image ``index``, encoded, as an array or as a PIL image.

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
    layout: str = ""
    skipped: dict[str, list[str]] = field(default_factory=dict)

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
    layout: str = ""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    decoded: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> NDArray[Any]:
        return np.asarray(self.images[index])

    def title(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def subset(self, indices: Indices) -> ArrayDataset:
        return replace(self, images=self.images[indices], labels=select_labels(self, indices))


def is_path(data: DataLike) -> bool:
    """Return whether data is a path or a name, and not an object."""
    return isinstance(data, str | os.PathLike)


def is_image_dataset(data: Any) -> bool:
    """Return whether an object is of a subclass of ImageDataset."""
    return ImageDataset in type(data).__mro__


def data_name(data: DataLike) -> str:
    """Return the name of data in logs and results: the path or name; of an ImageDataset or Splits its name; of another
    object its class, such as torchvision.datasets.CIFAR10, or that of its first split."""
    from mec.data.splits import Splits

    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    if isinstance(data, Splits):
        return data.train.name
    if is_image_dataset(data):
        return str(data.name)  # type: ignore[union-attr]
    if isinstance(data, Mapping | tuple) and len(data):
        return data_name(data.get("train", next(iter(data.values()))) if isinstance(data, Mapping) else data[0])
    name = _public_name(type(data))
    # a part of another dataset, such as torch.utils.data.Subset
    return f"{name} of {data_name(data.dataset)}" if name == "torch.utils.data.Subset" else name  # type: ignore[union-attr]


def _public_name(kind: type) -> str:
    """Return the shortest path from which a class can be imported."""
    parts = kind.__module__.split(".")
    modules = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    public = next((m for m in modules if getattr(sys.modules.get(m), kind.__name__, None) is kind), modules[-1])
    return kind.__name__ if public in ("builtins", "__main__") else f"{public}.{kind.__name__}"


def read_file(path: Path) -> bytes:
    """Return the bytes of a file, or raise a CorruptImageError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptImageError(error.strerror or str(error)) from error


def select_labels(dataset: ImageDataset, indices: Indices) -> Labels | None:
    """Return the labels of the images ``indices`` (n,), if the dataset has labels."""
    return None if dataset.labels is None else dataset.labels[indices]


def label_of(dataset: ImageDataset, index: int) -> str | None:
    """Return the class name of image ``index``, or None without label."""
    return None if dataset.labels is None or dataset.labels[index] < 0 else dataset.classes[dataset.labels[index]]


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


def format_as_loaded(dataset: ImageDataset, pixel_format: PixelFormat) -> PixelFormat:
    """Return the format that converts what ``load`` returns to ``pixel_format``: decoded images are scaled already."""
    is_scaled = dataset.decoded and pixel_format.value_range is not None
    return replace(pixel_format, value_range=(0.0, 1.0)) if is_scaled else pixel_format


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
    """Return a summary such as "3,969 images, 101 classes; train/, a class per sub-folder; skipped ..."."""
    counts = [f"{len(dataset):,} image{'s' if len(dataset) != 1 else ''}"]
    if dataset.labels is None:
        counts.append("no labels")
    else:
        counts.append(f"{len(dataset.classes):,} class{'es' if len(dataset.classes) != 1 else ''}")
        if num_unlabeled := np.count_nonzero(dataset.labels == UNLABELED):
            counts.append(f"{num_unlabeled:,} without label")
    return "; ".join(filter(None, [", ".join(counts), dataset.layout, describe_skipped(dataset)]))


def describe_skipped(dataset: ImageDataset) -> str:
    """Return a summary such as "skipped files that are no images: 2 (a.txt, b.txt)"; "" if nothing was passed over."""
    kinds = []
    for kind, names in dataset.skipped.items():
        kinds.append(f"{kind}: {len(names):,} ({describe_names(names)})")
    return f"skipped {', '.join(kinds)}" if kinds else ""


def describe_names(names: Sequence[str]) -> str:
    """Return the first names, separated by commas."""
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")


def count_skipped(dataset: ImageDataset, kind: str, names: Iterable[str]) -> None:
    """Add the names of skipped files, samples or rows to a dataset."""
    if names := list(names):
        # not in place: subsets share the dictionary
        dataset.skipped = dataset.skipped | {kind: [*dataset.skipped.get(kind, []), *names]}


def log_progress(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield the items, and log from time to time how many are done."""
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > LOG_INTERVAL:
            last = time.monotonic()
            logger.info(f"{label}: {done:,} of {len(items):,}")
        yield item
