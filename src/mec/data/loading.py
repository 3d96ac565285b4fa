"""From a set of pictures to batches: small ones rest in memory, others are decoded and cropped by workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mec.data.draws import uniforms
from mec.data.geometry import Boxes, resized_crops
from mec.data.images import ArrayImages, Images, Picture, with_channels
from mec.data.views import TwoViews
from mec.errors import InputError

RESIDENT_SIDE = 96
"""Pictures up to this many pixels a side are kept in memory, decoded once."""
RESIDENT_BYTES = 4 * 2**30


class Batch(NamedTuple):
    """pictures: uint8, (n, c, h, w) whole, or (n, 2, c, s, s) the crops of two views; indices (n,) their numbers."""

    pictures: Tensor
    indices: NDArray[np.int64]
    epoch: int


def worker_count(asked: int | None) -> int:
    """Loader processes of one training process: as asked, or one per core it may use, at most 16."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(16, cores // max(1, local)))


def settle(images: Images, channels: int, progress: Callable[[int], None] | None = None) -> Images:
    """``images`` decoded into memory when all are alike, small, and fit; else as they came.

    ``progress`` is called with the number of pictures just decoded.
    """
    if isinstance(images, ArrayImages) or len(images) == 0:
        return images
    first = images.read(0, channels)
    height, width = first.shape[:2]
    if max(height, width) > RESIDENT_SIDE or first.nbytes * len(images) > RESIDENT_BYTES:
        return images
    pictures = np.empty((len(images), *first.shape), dtype=np.uint8)
    with ThreadPoolExecutor() as pool:
        for i, picture in enumerate(pool.map(lambda i: images.read(i, channels), range(len(images)))):
            if picture.shape != first.shape:
                pool.shutdown(cancel_futures=True)
                return images
            pictures[i] = picture
            if progress is not None:
                progress(1)
    return ArrayImages(images.name, pictures, images.labels, images.classes)


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index): a new order in each epoch, the same whole batches for any number of processes.

    Process r of ``processes`` gets rows r * batch ... (r + 1) * batch of each joined batch. What does not
    fill a joined batch at the end of an epoch is left out; the next epoch has another order.
    """

    def __init__(self, pictures: int, batch: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.pictures, self.batch, self.seed, self.rank, self.processes = pictures, batch, seed, rank, processes
        self.epoch = 0

    def __len__(self) -> int:
        return self.pictures // (self.batch * self.processes)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        numbers = uniforms(self.seed, self.epoch, np.arange(self.pictures), 1, stream=3)
        order = numbers[:, 0].argsort()
        joined = self.batch * self.processes
        for start in range(0, len(self) * joined, joined):
            own = start + self.rank * self.batch
            yield [(self.epoch, int(i)) for i in order[own : own + self.batch]]


class _Whole(Dataset[Batch]):
    """Pictures of one size, as one uint8 tensor (n, c, h, w) on ``device``."""

    def __init__(self, images: ArrayImages, channels: int, device: torch.device) -> None:
        pictures = with_channels(images.pictures, channels)
        self.pictures = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).to(device)

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        indices = np.array([i for _, i in keys], dtype=np.int64)
        rows = torch.from_numpy(indices).to(self.pictures.device)
        return Batch(self.pictures[rows], indices, keys[0][0])


class _Cropped(Dataset[Batch]):
    """Pictures of any size: each is decoded once and cropped twice, by a worker."""

    def __init__(self, images: Images, channels: int, views: TwoViews) -> None:
        self.images, self.channels, self.views = images, channels, views

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        indices = np.array([i for _, i in keys], dtype=np.int64)
        epoch, size = keys[0][0], self.views.size
        pictures = np.empty((len(keys), 2, size, size, self.channels), dtype=np.uint8)
        for n, index in enumerate(indices):
            picture = self.images.read(int(index), self.channels)
            for view in (0, 1):
                own = self.views.parameters_of(view, indices[n : n + 1], epoch, *picture.shape[:2])
                pictures[n, view] = crop_and_resize(picture, own.boxes[0], size, bool(own.flip[0]))
        return Batch(torch.from_numpy(pictures.transpose(0, 1, 4, 2, 3).copy()), indices, epoch)


def crop_and_resize(picture: Picture, box: Boxes, size: int, mirrored: bool = False) -> Picture:
    """uint8 (h, w, c), box (4,) = top, left, height, width -> (size, size, c), bilinear with antialiasing."""
    top, left, height, width = (int(v) for v in box)
    part = picture[top : top + height, left : left + width]
    if part.shape[2] in (1, 3):
        image = Image.fromarray(part.squeeze(2) if part.shape[2] == 1 else part)
        array = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, -1)
    else:
        x = torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1)))[None]
        whole = np.array([[0, 0, height, width]])
        y = resized_crops(x, whole, size, np.array([False]))[0]
        array = y.round_().clamp_(0, 255).to(torch.uint8).numpy().transpose(1, 2, 0)
    return array[:, ::-1] if mirrored else array


def _as_is(batch: Any) -> Any:
    """The data sets make whole batches themselves."""
    return batch


def training_loader(
    images: Images,
    views: TwoViews,
    sampler: EpochSampler,
    channels: int,
    device: torch.device,
    workers: int | None = None,
) -> DataLoader[Batch]:
    """Batches for ``views``: from memory on ``device`` where ``images`` are arrays, else from worker processes."""
    if isinstance(images, ArrayImages):
        return DataLoader(_Whole(images, channels, device), batch_size=None, sampler=sampler, collate_fn=_as_is)
    count = worker_count(workers)
    return DataLoader(
        _Cropped(images, channels, views),
        batch_size=None,  # the sampler gives whole batches of keys
        sampler=sampler,
        collate_fn=_as_is,
        num_workers=count,
        persistent_workers=count > 0,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if count else None,
    )


class _Centred(Dataset[Tensor]):
    """Pictures as they are measured: the central square of the short side, or nearly, resized to ``size``."""

    def __init__(self, images: Images, channels: int, size: int) -> None:
        self.images, self.channels, self.size = images, channels, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        picture = self.images.read(index, self.channels)
        height, width = picture.shape[:2]
        # Resize 256, CenterCrop 224: seven eighths of the short side; small pictures are taken whole
        share = 224 / 256 if self.size >= RESIDENT_SIDE else 1.0
        side = max(1, round(min(height, width) * share))
        box = np.array([(height - side) // 2, (width - side) // 2, side, side])
        array = crop_and_resize(picture, box, self.size)
        return torch.from_numpy(array.transpose(2, 0, 1).copy())


def evaluation_loader(
    images: Images, channels: int, size: int, batch: int = 256, workers: int | None = None
) -> DataLoader[Tensor]:
    """Every picture once, in order: uint8 (n, c, size, size), central crop."""
    count = 0 if isinstance(images, ArrayImages) else worker_count(workers)
    return DataLoader(_Centred(images, channels, size), batch_size=batch, num_workers=count)


def measure_colours(images: Images, channels: int, sample: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pictures in [0, 1], over an even sample of them."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(sample, len(images))).astype(int))
    pixels = np.concatenate([images.read(int(i), channels).reshape(-1, channels)[::7] for i in chosen]) / 255.0
    deviation = np.maximum(pixels.std(axis=0), 1e-3)
    return tuple(float(v) for v in pixels.mean(axis=0)), tuple(float(v) for v in deviation)


def channels_of(images: Images) -> int:
    """1 when the first pictures are all grey, else 3 for files; what they have for arrays."""
    if isinstance(images, ArrayImages):
        return int(images.pictures.shape[-1])
    if len(images) == 0:
        raise InputError("data: no picture")
    first = [images.read(int(i), 3) for i in np.unique(np.linspace(0, len(images) - 1, 16).astype(int))]
    return 1 if all((p[..., :1] == p).all() for p in first) else 3
