"""Data loaders of detection: images with targets for training, images alone for testing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mec.data.corrupt import CorruptImage
from mec.data.dataset import ImageDataset
from mec.data.decode import SHRINK_FACTORS, OpenedImage, open_image
from mec.data.loaders import QuietLoader, worker_count
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Rle
from mec.evaluate.detection.schedules import Schedule

MAX_REPLACEMENTS = 100  # images that are tried in place of a corrupt one, itself included
SampleKey = tuple[int, int]  # index of an image, and the number of the pass over the dataset


class TrainBatch(NamedTuple):
    """Images (c, h, w) of different sizes, torchvision's detection targets, and the corrupt images replaced."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    corrupt: list[CorruptImage]


class TestBatch(NamedTuple):
    """At most one image (c, h, w), its index and its original size (height, width), or a corrupt image."""

    images: list[Tensor]
    indices: list[int]
    sizes: list[tuple[int, int]]
    corrupt: list[CorruptImage]


class AspectRatioBatchSampler(Sampler[list[SampleKey]]):
    """``num_batches`` random batches, the same for any number of processes; each takes its slice of every batch.

    Landscape images (``is_landscape``: (n,) bool) and the others are batched separately to reduce padding, as in
    detectron2's aspect ratio grouping.
    """

    def __init__(
        self,
        is_landscape: NDArray[np.bool_],
        batch_size: int,
        num_batches: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.is_landscape, self.batch_size, self.seed = is_landscape, batch_size, seed
        self.num_batches = num_batches
        per_process = batch_size // world_size
        self.rank_slice = slice(rank * per_process, (rank + 1) * per_process)
        self.first_batch = 0

    def __len__(self) -> int:
        return self.num_batches

    def resume_at(self, batch: int) -> None:
        """Start the next iteration at a batch; later iterations start at 0 again."""
        self.first_batch = batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        first, self.first_batch = self.first_batch, 0
        for batch in islice(self._batches(), first, self.num_batches):
            yield batch[self.rank_slice]

    def _batches(self) -> Iterator[list[SampleKey]]:
        groups: tuple[list[SampleKey], list[SampleKey]] = ([], [])
        for data_pass in count():
            for image in np.random.default_rng((self.seed, data_pass)).permutation(len(self.is_landscape)).tolist():
                group = groups[int(self.is_landscape[image])]
                group.append((image, data_pass))
                if len(group) == self.batch_size:
                    yield group.copy()
                    group.clear()


class _TrainDataset(Dataset[TrainBatch]):
    def __init__(self, dataset: AnnotatedDataset, pixel_format: PixelFormat, schedule: Schedule, seed: int) -> None:
        self.dataset, self.pixel_format, self.schedule, self.seed = dataset, pixel_format, schedule, seed

    def __getitem__(self, keys: list[SampleKey]) -> TrainBatch:
        batch = TrainBatch([], [], [])
        for first, data_pass in keys:
            for candidate in range(first, first + MAX_REPLACEMENTS):  # the image, or the next that can be read
                index = candidate % len(self.dataset)
                try:
                    image, targets = self._load(index, data_pass)
                except CorruptImageError as error:
                    batch.corrupt.append(CorruptImage(self.dataset.images.title(index), str(error)))
                else:
                    batch.images.append(image)
                    batch.targets.append(targets)
                    break
            else:
                last = batch.corrupt[-1]
                raise InputError(f"data: no image could be read; the last tried: {last.title}: {last.reason}")
        return batch

    def _load(self, index: int, data_pass: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Load an image, resized and flipped at random. The random numbers depend on the seed and the key only."""
        rng = np.random.default_rng((self.seed, data_pass, index))
        short_side, flip = int(rng.choice(self.schedule.train_short_sides)), bool(rng.random() < 0.5)
        opened = self.dataset.open_image(index)
        image = resize(opened, self.pixel_format, short_side, self.schedule.max_long_side)
        (height, width), (_, new_height, new_width) = self.dataset.sizes[index].tolist(), image.shape
        annotated = self.dataset.targets(index)
        boxes = torch.from_numpy(annotated.boxes) * torch.tensor([new_width / width, new_height / height]).repeat(2)
        if flip:
            image = image.flip(2)
            boxes = torch.stack([new_width - boxes[:, 2], boxes[:, 1], new_width - boxes[:, 0], boxes[:, 3]], 1)
        targets = {"boxes": boxes, "labels": torch.from_numpy(annotated.labels) + 1}
        if annotated.masks is not None:
            targets["masks"] = decode_masks(annotated.masks, (new_height, new_width), flip)
        return image, targets


class _TestDataset(Dataset[TestBatch]):
    def __init__(self, dataset: ImageDataset | AnnotatedDataset, pixel_format: PixelFormat, schedule: Schedule) -> None:
        self.dataset, self.pixel_format, self.schedule = dataset, pixel_format, schedule
        self.images = dataset.images if isinstance(dataset, AnnotatedDataset) else dataset

    def _open(self, index: int) -> OpenedImage:
        if isinstance(self.dataset, AnnotatedDataset):
            return self.dataset.open_image(index)
        return open_image(self.images.load(index))

    def __getitem__(self, index: int) -> TestBatch:
        try:
            opened = self._open(index)
            image = resize(opened, self.pixel_format, self.schedule.test_short_side, self.schedule.max_long_side)
        except CorruptImageError as error:
            return TestBatch([], [], [], [CorruptImage(self.images.title(index), str(error))])
        return TestBatch([image], [index], [(opened.height, opened.width)], [])


def resize(opened: OpenedImage, pixel_format: PixelFormat, short_side: int, max_long_side: int) -> Tensor:
    """Decode an image and resize it to ``resized_size``; (c, h, w)."""
    height, width = resized_size(opened.height, opened.width, short_side, max_long_side)
    shrink = next((f for f in SHRINK_FACTORS if opened.height >= f * height and opened.width >= f * width), 1)
    image = torch.from_numpy(opened.decode(pixel_format, shrink).copy()).permute(2, 0, 1)
    # antialiased like PIL's resize, which detectron2 uses
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def resized_size(height: int, width: int, short_side: int, max_long_side: int) -> tuple[int, int]:
    """Return the height and width after detectron2's ResizeShortestEdge."""
    scale = min(short_side / min(height, width), max_long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def decode_masks(masks: list[Rle], size: tuple[int, int], flip: bool = False) -> Tensor:
    """Decode masks to (k, height, width) uint8 of 0 and 1, resized to ``size`` by the nearest pixel."""
    if not masks:
        return torch.zeros(0, *size, dtype=torch.uint8)
    # RLE is in column-major order
    decoded = torch.from_numpy(np.ascontiguousarray(coco_mask.decode(masks).transpose(2, 0, 1)))
    resized = F.interpolate(decoded[None], size, mode="nearest-exact")[0]
    return resized.flip(2) if flip else resized


def _identity(batch: Any) -> Any:
    return batch


def make_train_loader(
    dataset: AnnotatedDataset,
    sampler: AspectRatioBatchSampler,
    pixel_format: PixelFormat,
    schedule: Schedule,
    pin_memory: bool,
    workers: int | None,
) -> DataLoader[TrainBatch]:
    """Create the loader of training batches. Augmentation uses the seed of the sampler."""
    num_workers = worker_count(workers)
    return QuietLoader(
        _TrainDataset(dataset, pixel_format, schedule, sampler.seed),
        batch_size=None,
        sampler=sampler,
        collate_fn=_identity,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


def make_test_loader(
    dataset: ImageDataset | AnnotatedDataset,
    pixel_format: PixelFormat,
    schedule: Schedule,
    rank: int,
    world_size: int,
    workers: int | None,
) -> DataLoader[TestBatch]:
    """Create the loader of every ``world_size``-th image from ``rank`` on, one image per batch. Those of an
    AnnotatedDataset must have the annotated sizes."""
    test_dataset, indices = _TestDataset(dataset, pixel_format, schedule), range(rank, len(dataset), world_size)
    return QuietLoader(
        test_dataset, batch_size=None, sampler=indices, collate_fn=_identity, num_workers=worker_count(workers)
    )
