"""A set of pictures: files or arrays, loaded by number, with labels where there are any."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mec.data.decode import open_picture
from mec.data.pixels import BrokenPictureError, ImageArray, Reading

Labels = NDArray[np.int64]
Self = TypeVar("Self", bound="Images")


class Images(Protocol):
    """A source of pictures.

    Attributes:
        name: of the source, for people.
        labels: (n,) indices into ``classes``, or None.
        classes: names of the labels.
        left_out: how many files were found beside the pictures.
    """

    name: str
    labels: Labels | None
    classes: list[str]
    left_out: int

    def __len__(self) -> int: ...

    def load(self, index: int) -> bytes | NDArray[Any]:
        """Picture ``index``, encoded or as an array; raises BrokenPictureError when it cannot be had."""

    def title(self, index: int) -> str:
        """Where picture ``index`` comes from."""

    def subset(self: Self, indices: NDArray[np.int64]) -> Self: ...


@dataclass
class FileImages:
    """Pictures in files. ``names[i]`` is the path of picture i within ``root``."""

    name: str
    root: Path
    names: list[str]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> bytes:
        try:
            return (self.root / self.names[index]).read_bytes()
        except OSError as error:
            raise BrokenPictureError(error.strerror or str(error)) from error

    def title(self, index: int) -> str:
        return str(self.root / self.names[index])

    def subset(self, indices: NDArray[np.int64]) -> FileImages:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, names=[self.names[i] for i in indices], labels=labels)


@dataclass
class ArrayImages:
    """Pictures of one size in memory: (n, height, width, channels), numbers of any type.

    ``settled``: they are already as a Reading asked (mec.data.analysis.settle), not to be scaled once more.
    """

    name: str
    pictures: NDArray[Any]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    left_out: int = 0
    settled: bool = False

    def __len__(self) -> int:
        return len(self.pictures)

    def load(self, index: int) -> NDArray[Any]:
        return np.asarray(self.pictures[index])

    def title(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def subset(self, indices: NDArray[np.int64]) -> ArrayImages:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, pictures=self.pictures[indices], labels=labels)


def read(dataset: Images, index: int, reading: Reading | None = None) -> ImageArray:
    """Picture ``index`` as (height, width, channels); raises BrokenPictureError when it cannot be decoded."""
    if isinstance(dataset, ArrayImages) and dataset.settled:
        settled: ImageArray = dataset.pictures[index]
        return settled
    return open_picture(dataset.load(index)).decode(reading or Reading())


def spread(dataset: Images, count: int) -> NDArray[np.int64]:
    """Numbers of about ``count`` pictures from all over a source, rising; of streamed ones, those soonest reached."""
    starts = getattr(dataset, "stretches", None)
    if starts is None:
        return np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(np.int64))
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(8, len(starts))).astype(int))
    each = -(-count // len(chosen))
    numbers = np.concatenate([np.arange(starts[s][0], min(starts[s][0] + each, starts[s][1])) for s in chosen])
    return numbers[:count]


def summary(dataset: Images) -> str:
    """3,969 pictures, 101 classes, 3 skipped"""
    classes = len(dataset.classes)
    parts = [f"{len(dataset):,} picture{'s' if len(dataset) != 1 else ''}"]
    parts.append(f"{classes} class{'es' if classes != 1 else ''}" if dataset.labels is not None else "no labels")
    if dataset.left_out:
        parts.append(f"{dataset.left_out:,} skipped")
    return ", ".join(parts)
