"""Images with their targets for training, and images alone for testing, as loader processes make them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mec.data.corrupt import CorruptImage
from mec.data.dataset import ImageDataset
from mec.data.decode import SHRINK_FACTORS, OpenedImage, open_image
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.data.workers import worker_count
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset
from mec.evaluate.detection.masks import decoded
from mec.evaluate.detection.schedules import Schedule

SUBSTITUTES = 100
"""How many other images are tried in place of one that cannot be read."""

Key = tuple[int, int]
"""The number of an image, and how often all were shown before."""


class TrainingBatch(NamedTuple):
    """A batch for training: images (c, h, w) of their own sizes, targets as torchvision has them."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    lost: list[CorruptImage]


class TestingBatch(NamedTuple):
    """A batch for testing: numbers of the images, and their sizes (height, width) in the file."""

    images: list[Tensor]
    numbers: list[int]
    sizes: list[tuple[int, int]]
    lost: list[CorruptImage]


class Order(Sampler[list[Key]]):
    """The batches of a training that goes on and on, in stretches of ``period`` steps, which are lightning's epochs.

    All images in a new order each time; those wider than high, and the others, fill batches of their own, so that
    little of a batch is padding (detectron2's aspect ratio grouping). The batches are the same for any number of
    processes, each of which gets its part.

    Args:
        wide: (n,) whether each image is wider than high.
        batch: images in a step of all processes.
        period: steps in a stretch.
        seed: of the order.
        rank, processes: which part is taken.
    """

    def __init__(
        self, wide: NDArray[np.bool_], batch: int, period: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.wide, self.batch, self.period, self.seed = wide, batch, period, seed
        each = batch // processes
        self.own = slice(rank * each, (rank + 1) * each)
        self.epoch = self.at = 0
        self.stream = self._all()

    def __len__(self) -> int:
        return self.period

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Key]]:
        if self.at != self.epoch * self.period:  # resumed, or begun again: the order up to there is gone through
            self.stream, self.at = self._all(), self.epoch * self.period
            next(islice(self.stream, self.at, self.at), None)
        for batch in islice(self.stream, self.period):
            self.at += 1
            yield batch[self.own]

    def _all(self) -> Iterator[list[Key]]:
        waiting: tuple[list[Key], list[Key]] = ([], [])
        for turn in count():
            for image in np.random.default_rng((self.seed, turn)).permutation(len(self.wide)).tolist():
                group = waiting[int(self.wide[image])]
                group.append((image, turn))
                if len(group) == self.batch:
                    yield group.copy()
                    group.clear()


class _Training(Dataset[TrainingBatch]):
    def __init__(self, annotated: AnnotatedDataset, reading: PixelFormat, schedule: Schedule, seed: int) -> None:
        self.annotated, self.reading, self.schedule, self.seed = annotated, reading, schedule, seed

    def __getitem__(self, keys: list[Key]) -> TrainingBatch:
        shown = TrainingBatch([], [], [])
        for key in keys:
            image, targets = self._readable(key, shown.lost)
            shown.images.append(image)
            shown.targets.append(targets)
        return shown

    def _readable(self, key: Key, lost: list[CorruptImage]) -> tuple[Tensor, dict[str, Tensor]]:
        """The image asked for, or the next that can be read."""
        number, turn = key
        for other in range(number, number + SUBSTITUTES):
            index = other % len(self.annotated)
            try:
                return self._drawn(index, turn)
            except CorruptImageError as error:
                lost.append(CorruptImage(self.annotated.images.title(index), str(error)))
        raise InputError(f"data: no image could be read; the last tried: {lost[-1].title}: {lost[-1].reason}")

    def _drawn(self, index: int, turn: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Resized to one of the sides, mirrored or not; the draw depends on nothing but the seed and the key."""
        draw = np.random.default_rng((self.seed, turn, index))
        side, mirrored = int(draw.choice(self.schedule.sides)), bool(draw.random() < 0.5)
        opened = open_image(self.annotated.images.load(index))
        height, width = self.annotated.sizes[index].tolist()
        if (opened.height, opened.width) != (height, width):
            raise CorruptImageError(
                f"{opened.width} x {opened.height} pixels, but {width} x {height} in the annotations"
            )
        image = resized(opened, self.reading, side, self.schedule.longest)
        size = (image.shape[1], image.shape[2])
        found = self.annotated.targets(index)
        boxes = torch.from_numpy(found.boxes) * torch.tensor([size[1] / width, size[0] / height]).repeat(2)
        if mirrored:
            image = image.flip(2)
            boxes = torch.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], 1)
        targets = {"boxes": boxes, "labels": torch.from_numpy(found.labels) + 1}
        if found.masks is not None:
            targets["masks"] = decoded(found.masks, size, mirrored)
        return image, targets


class _Testing(Dataset[TestingBatch]):
    def __init__(self, dataset: ImageDataset, reading: PixelFormat, schedule: Schedule) -> None:
        self.dataset, self.reading, self.schedule = dataset, reading, schedule

    def __getitem__(self, number: int) -> TestingBatch:
        try:
            opened = open_image(self.dataset.load(number))
            image = resized(opened, self.reading, self.schedule.side_at_test, self.schedule.longest)
        except CorruptImageError as error:
            return TestingBatch([], [], [], [CorruptImage(self.dataset.title(number), str(error))])
        return TestingBatch([image], [number], [(opened.height, opened.width)], [])


def resized(opened: OpenedImage, reading: PixelFormat, side: int, longest: int) -> Tensor:
    """(c, h, w) with a short side of ``side``, or less where the long one would pass ``longest``."""
    height, width = size_for(opened.height, opened.width, side, longest)
    shrink = next((f for f in SHRINK_FACTORS if opened.height >= f * height and opened.width >= f * width), 1)
    image = torch.from_numpy(opened.decode(reading, shrink).copy()).permute(2, 0, 1)
    # PIL's way, as detectron2; what is made smaller is antialiased
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def size_for(height: int, width: int, side: int, longest: int) -> tuple[int, int]:
    """Detectron2's ResizeShortestEdge."""
    scale = min(side / min(height, width), longest / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _as_is(batch: Any) -> Any:
    return batch


def training_batches(
    annotated: AnnotatedDataset,
    order: Order,
    reading: PixelFormat,
    schedule: Schedule,
    pinned: bool,
    workers: int | None,
) -> DataLoader[TrainingBatch]:
    """Batches in the order given; small images are enlarged, every draw depends on the seed of the order alone."""
    processes = worker_count(workers)
    return DataLoader(
        _Training(annotated, reading, schedule, order.seed),
        batch_size=None,
        sampler=order,
        collate_fn=_as_is,
        num_workers=processes,
        persistent_workers=processes > 0,
        pin_memory=pinned,
    )


def testing_batches(
    dataset: ImageDataset, reading: PixelFormat, schedule: Schedule, rank: int, processes: int, workers: int | None
) -> DataLoader[TestingBatch]:
    """Every image once, one at a time, this process's share of them."""
    numbers = range(rank, len(dataset), processes)
    return DataLoader(
        _Testing(dataset, reading, schedule),
        batch_size=None,
        sampler=numbers,
        collate_fn=_as_is,
        num_workers=worker_count(workers),
    )
