"""A set of images: files or arrays, loaded by number, with labels where there are any."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat

Labels = NDArray[np.int64]
Self = TypeVar("Self", bound="ImageDataset")


class ImageDataset(Protocol):
    """A source of images.

    Attributes:
        name: of the source, for people.
        labels: (n,) indices into ``classes``, or None.
        classes: names of the labels.
        ignored_files: how many files were found beside the images.
    """

    name: str
    labels: Labels | None
    classes: list[str]
    ignored_files: int

    def __len__(self) -> int: ...

    def load(self, index: int) -> bytes | NDArray[Any]:
        """Image ``index``, encoded or as an array; raises CorruptImageError when it cannot be had."""

    def title(self, index: int) -> str:
        """Where image ``index`` comes from."""

    def subset(self: Self, indices: NDArray[np.int64]) -> Self: ...


@dataclass
class FileDataset:
    """Images in files. ``names[i]`` is the path of image i within ``root``."""

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
    """Images of one size in memory: (n, height, width, channels), numbers of any type.

    ``settled``: they are already as a PixelFormat asked (mec.data.analysis.settle), not to be scaled once more.
    """

    name: str
    images: NDArray[Any]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    ignored_files: int = 0
    settled: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> NDArray[Any]:
        return np.asarray(self.images[index])

    def title(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def subset(self, indices: NDArray[np.int64]) -> ArrayDataset:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, images=self.images[indices], labels=labels)


def read_image(dataset: ImageDataset, index: int, reading: PixelFormat | None = None) -> ImageArray:
    """Image ``index`` as (height, width, channels); raises CorruptImageError when it cannot be decoded."""
    if isinstance(dataset, ArrayDataset) and dataset.settled:
        settled: ImageArray = dataset.images[index]
        return settled
    return open_image(dataset.load(index)).decode(reading or PixelFormat())


def evenly_spaced(dataset: ImageDataset, count: int) -> NDArray[np.int64]:
    """Numbers of about ``count`` images from all over a source, rising; of streamed ones, those soonest reached."""
    starts = getattr(dataset, "stretches", None)
    if starts is None:
        return np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(np.int64))
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(8, len(starts))).astype(int))
    each = -(-count // len(chosen))
    numbers = np.concatenate([np.arange(starts[s][0], min(starts[s][0] + each, starts[s][1])) for s in chosen])
    return numbers[:count]


def describe(dataset: ImageDataset) -> str:
    """3,969 images, 101 classes, 3 skipped"""
    classes = len(dataset.classes)
    parts = [f"{len(dataset):,} image{'s' if len(dataset) != 1 else ''}"]
    parts.append(f"{classes} class{'es' if classes != 1 else ''}" if dataset.labels is not None else "no labels")
    if dataset.ignored_files:
        parts.append(f"{dataset.ignored_files:,} skipped")
    return ", ".join(parts)
