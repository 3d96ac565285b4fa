"""From a set of images to batches: small ones rest in memory, others are decoded and cropped by workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mec.data.corrupt import CorruptImage
from mec.data.dataset import ArrayDataset, ImageDataset, read_image
from mec.data.datasets.webdataset import ShardDataset
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.data.rng import uniforms
from mec.data.samplers import EpochSampler, SlicedSampler, StepSampler
from mec.data.streaming import ShuffledShards
from mec.data.transforms.crop import SUBSTITUTES, Batch, Cropper, Item, crop_and_resize
from mec.data.transforms.multi_view import Views
from mec.data.transforms.torchvision_reference import ReferenceCropper, ReferenceViews
from mec.data.workers import outlive_signals, signals_wait, worker_count

REPLACING = 9
"""Stream of random numbers."""
CENTER, WHOLE_BELOW = 224 / 256, 96
"""Share of the short side that is measured on (Resize 256, CenterCrop 224); encoders of fewer pixels see it whole."""


class _Whole(Dataset[Batch]):
    """Images of one size, as one tensor (n, c, h, w) on ``device``."""

    def __init__(self, dataset: ArrayDataset, device: torch.device) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(dataset.images.transpose(0, 3, 1, 2))).to(device)

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        indices = np.array([i for _, i in keys], dtype=np.int64)
        rows = torch.from_numpy(indices).to(self.images.device)
        return Batch(self.images[rows], indices, keys[0][0], [], indices)


class _Cropped(Dataset[Batch]):
    """Images of any size: each is decoded once and cropped twice, by a worker."""

    def __init__(self, dataset: ImageDataset, cropper: Cropper) -> None:
        self.dataset, self.cropper = dataset, cropper

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        epoch = keys[0][0]
        return self.cropper([self._item(i) for _, i in keys], epoch, partial(self._others, epoch))

    def _item(self, index: int) -> Item:
        return Item(index, partial(self.dataset.load, index), self.dataset.title(index))

    def _others(self, epoch: int, index: int) -> Iterator[Item]:
        # drawn by the image's number, as its views are: the same in any batch
        numbers = uniforms(self.cropper.views.seed, epoch, np.array([index]), SUBSTITUTES, REPLACING)[0]
        for i in (numbers * len(self.dataset)).astype(int):
            yield self._item(int(i))


def _as_is(batch: Any) -> Any:
    """The data sets make whole batches themselves."""
    return batch


def training_sampler(
    dataset: ImageDataset, batch: int, seed: int, rank: int = 0, processes: int = 1, whole: bool = False
) -> EpochSampler | StepSampler:
    """The order of training: any for what is loaded by number, shard by shard for what is streamed.

    ``whole``: an epoch ends with a smaller batch of what is left, where the source can be read in any order.
    """
    if isinstance(dataset, ShardDataset):
        return StepSampler(len(dataset), batch, seed, rank, processes)
    return EpochSampler(len(dataset), batch, seed, rank, processes, whole)


class TrainingLoader(DataLoader[Batch]):
    """Batches, each joined from the ``slices`` that its workers load. An epoch is begun when its first batch is asked
    for, not by ``iter``: the sampler may be told in between which epoch it is, and where it resumes."""

    def __init__(self, dataset: Dataset[Batch], slices: int = 1, pinned: bool = False, **options: Any) -> None:
        # a data set makes whole batches, or slices of them, itself
        super().__init__(dataset, batch_size=None, collate_fn=_as_is, pin_memory=pinned and slices == 1, **options)
        self.slices, self.pinned = slices, pinned

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        with signals_wait():
            loaded = super().__iter__()
        for first in loaded:
            yield _joined([first, *islice(loaded, self.slices - 1)], self.pinned) if self.slices > 1 else first


def _joined(slices: Sequence[Batch], pinned: bool) -> Batch:
    # croppers write channels last, which is kept: it is copied at once
    parts = [s.images.permute(0, 1, 3, 4, 2) for s in slices]
    shape = (sum(len(p) for p in parts), *parts[0].shape[1:])
    images = torch.cat(parts, out=torch.empty(shape, dtype=parts[0].dtype, pin_memory=pinned))
    indices, shown = (np.concatenate(each) for each in zip(*((s.indices, s.shown) for s in slices), strict=True))
    lost = [lost for s in slices for lost in s.lost]
    return Batch(images.permute(0, 1, 4, 2, 3), indices, slices[0].epoch, lost, shown)


def training_loader(
    dataset: ImageDataset,
    views: Views,
    sampler: EpochSampler | StepSampler | Sequence[Sequence[tuple[int, int]]],
    reading: PixelFormat,
    device: torch.device,
    workers: int | None = None,
    local_processes: int | None = None,
) -> TrainingLoader:
    """Batches for ``views``: from memory on ``device`` where ``images`` are arrays, else from worker processes.

    ``local_processes`` of training share the cores of this machine; None asks the environment.
    """
    if isinstance(dataset, ArrayDataset) and not isinstance(views, ReferenceViews):
        return TrainingLoader(_Whole(dataset, device), sampler=sampler)
    count = worker_count(workers, local_processes)
    crop = ReferenceCropper(views, reading) if isinstance(views, ReferenceViews) else Cropper(views, reading)
    batches: Dataset[Batch] = _Cropped(dataset, crop)
    slices = 1
    keys: Iterable[Any] = sampler
    if isinstance(dataset, ShardDataset) and isinstance(sampler, StepSampler):
        batches = shards = ShuffledShards(dataset, crop, sampler, max(1, count))
        slices = shards.slices
        count = min(count, slices)  # the loader then gives a slice to the same worker at every step
        keys = SlicedSampler(sampler, slices)
    return TrainingLoader(
        batches,
        slices,
        pinned=device.type == "cuda",
        sampler=keys,
        num_workers=count,
        persistent_workers=count > 0,
        prefetch_factor=4 if count else None,
        worker_init_fn=outlive_signals,
    )


class _Centered(Dataset[Batch]):
    """Images as they are measured: the central square of the short side, or nearly, resized to ``size``."""

    def __init__(self, dataset: ImageDataset, reading: PixelFormat, size: int) -> None:
        self.dataset, self.reading, self.size = dataset, reading, size

    def __getitem__(self, keys: range) -> Batch:
        lost: list[CorruptImage] = []
        found: dict[int, torch.Tensor] = {}
        for index in keys:
            try:
                found[index] = torch.from_numpy(self._central(read_image(self.dataset, index, self.reading)))
            except CorruptImageError as error:
                lost.append(CorruptImage(self.dataset.title(index), str(error)))
        c, size = self.reading.channels, self.size
        images = torch.stack(list(found.values())).permute(0, 3, 1, 2) if found else torch.empty(0, c, size, size)
        numbers = np.array(list(found), dtype=np.int64)
        return Batch(images, numbers, 0, lost, numbers)

    def _central(self, image: Any) -> Any:
        height, width = image.shape[:2]
        share = CENTER if self.size >= WHOLE_BELOW else 1.0
        side = max(1, round(min(height, width) * share))
        box = np.array([(height - side) // 2, (width - side) // 2, side, side])
        return crop_and_resize(image, box, self.size)


def evaluation_loader(
    dataset: ImageDataset, reading: PixelFormat, size: int, batch: int = 256, workers: int | None = None
) -> DataLoader[Batch]:
    """Every readable image once, central crops (n, c, size, size), with their numbers; in any order."""
    count = 0 if isinstance(dataset, ArrayDataset) else worker_count(workers)
    chunks = [range(start, min(start + batch, len(dataset))) for start in range(0, len(dataset), batch)]
    if count:
        # worker w is asked for chunks w, w + count ...: each then reads a stretch of neighbors
        each = -(-len(chunks) // count)
        chunks = [chunks[i] for turn in range(each) for i in range(turn, len(chunks), each)]
    return DataLoader(
        _Centered(dataset, reading, size), batch_size=None, sampler=chunks, collate_fn=_as_is, num_workers=count
    )
