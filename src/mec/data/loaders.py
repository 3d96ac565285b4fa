"""Data loaders: small images are held in memory, others are decoded and cropped by worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mec.data.corrupt import CorruptImage
from mec.data.dataset import ImageDataset, format_as_loaded, read_image
from mec.data.decode import ignore_warnings_of_decoders
from mec.data.order import EpochSampler, ShuffledShards, StepSampler
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.data.rng import Stream, uniforms
from mec.data.transforms import ViewSettings
from mec.data.transforms.crop import MAX_SUBSTITUTES, Batch, BatchReader, Cropper, Item, crop_and_resize
from mec.data.transforms.custom import BatchTransformViews, ImageTransformViews, TransformReader
from mec.data.transforms.multi_view import MultiView, Views
from mec.errors import InputError

CROP_PCT, MIN_CROPPED_SIZE = 224 / 256, 96
"""Fraction of the shorter side in a center crop for evaluation (Resize 256, CenterCrop 224). Encoders with inputs
smaller than MIN_CROPPED_SIZE pixels get the whole shorter side."""
CENTER_CROP = ViewSettings(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0)
"""The largest central square of an image: no crop of all of its area and ratio 1 fits into another shape."""
POLL_SECONDS = 2.0  # interval at which a worker checks that its parent process is alive
HAS_SIGTIMEDWAIT = hasattr(signal, "sigtimedwait")
"""Whether the sender of a signal can be identified, as on Linux. Elsewhere SIGTERM ends a worker."""


class _InMemoryBatches(Dataset[Batch]):
    """Whole images (n, h, w, c), held as one tensor (n, c, h, w) on ``device``."""

    def __init__(self, images: NDArray[Any], device: torch.device) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        indices = np.array([i for _, i in keys], dtype=np.int64)
        rows = torch.from_numpy(indices).to(self.images.device)
        return Batch(self.images[rows], indices, keys[0][0], [], indices)


class _CroppedBatches(Dataset[Batch]):
    """Images of any size, each decoded once and cropped for all of its views by a worker."""

    def __init__(self, dataset: ImageDataset, reader: BatchReader) -> None:
        self.dataset, self.reader = dataset, reader

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        epoch = keys[0][0]
        return self.reader([self._item(i) for _, i in keys], epoch, partial(self._substitutes, epoch))

    def _item(self, index: int) -> Item:
        return Item(index, partial(self.dataset.load, index), self.dataset.title(index))

    def _substitutes(self, epoch: int, index: int) -> Iterator[Item]:
        # random by the index of the corrupt image, as its views are: the same in any batch
        u = uniforms(self.reader.seed, epoch, np.array([index]), MAX_SUBSTITUTES, Stream.SUBSTITUTE)[0]
        for i in (u * len(self.dataset)).astype(int):
            yield self._item(int(i))


def _identity(batch: Any) -> Any:
    """Collate nothing: the datasets here return whole batches."""
    return batch


def training_sampler(
    dataset: ImageDataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, drop_last: bool = True
) -> EpochSampler | StepSampler:
    """Return the sampler of a training: random order, or steps for shards; ``batch_size`` is that of one process."""
    if dataset.random_access:
        return EpochSampler(len(dataset), batch_size, seed, rank, world_size, drop_last=drop_last)
    return StepSampler(len(dataset), batch_size, seed, rank, world_size)


class QuietLoader(DataLoader[Any]):
    """A loader without PyTorch's warning of more workers than cores: the user or ``worker_count`` chose the number.

    An InputError where the data cannot be pickled for workers that are not forked, as on macOS.
    """

    def check_worker_number_rationality(self) -> None:
        pass

    def __iter__(self) -> Any:
        self.check_picklable()
        return super().__iter__()

    def check_picklable(self) -> None:
        """Raise InputError if there are workers that are not forked, and the data cannot be pickled for them."""
        if not self.num_workers or multiprocessing.get_start_method() == "fork":
            return
        try:
            pickled = pickle.dumps(self.dataset)
            if not hasattr(sys.modules["__main__"], "__file__") and b"__main__" in pickled:
                raise pickle.PicklingError("a class or function is defined in a notebook or an interactive session")
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                "workers: the data, or its transform, cannot be passed to loader processes, which are not forked here "
                f"({reason}): define its classes and functions at the top level of a module, or use no workers (0)"
            ) from error


class TrainingLoader(QuietLoader):
    """Loads batches, each of which is joined from ``num_slices`` slices that the workers load.

    An epoch starts when its first batch is requested, not at ``iter``: Lightning sets the epoch in between. Then
    ``start_epoch`` is called, before workers start.
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        num_slices: int = 1,
        pin_memory: bool = False,
        start_epoch: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        super().__init__(
            dataset, batch_size=None, collate_fn=_identity, pin_memory=pin_memory and num_slices == 1, **options
        )
        self.num_slices, self.pin_joined, self.start_epoch = num_slices, pin_memory, start_epoch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.start_epoch()
        with block_signals():
            slices = super().__iter__()
        for first in slices:
            rest = list(islice(slices, self.num_slices - 1))
            yield _join([first, *rest], self.pin_joined) if rest else first


def _join(slices: Sequence[Batch], pin_memory: bool) -> Batch:
    crops = [s.images for s in slices]
    shape = (sum(map(len, crops)), crops[0].shape[1])
    joined = torch.cat(crops, out=torch.empty(shape, dtype=crops[0].dtype, pin_memory=pin_memory))
    indices = np.concatenate([s.indices for s in slices])
    source_indices = np.concatenate([s.source_indices for s in slices])
    corrupt = [image for s in slices for image in s.corrupt]
    return Batch(joined, indices, slices[0].epoch, corrupt, source_indices)


def training_loader(
    dataset: ImageDataset,
    views: Views,
    sampler: EpochSampler | StepSampler | Sequence[Sequence[tuple[int, int]]],
    pixel_format: PixelFormat,
    device: torch.device,
    workers: int | None = None,
    local_world_size: int | None = None,
    size_of: Callable[[int], int] | None = None,
) -> TrainingLoader:
    """Return a loader of batches for ``views`` in the order of ``sampler``; images in memory are held on ``device``.
    The views of each epoch get the size ``size_of(epoch)``; None: their size stays."""
    num_workers = worker_count(workers, local_world_size)

    def start_epoch() -> None:
        if size_of is not None and isinstance(sampler, EpochSampler | StepSampler):
            views.size = size_of(sampler.epoch)

    if isinstance(views, ImageTransformViews):
        reader: BatchReader = TransformReader(views, format_as_loaded(dataset, pixel_format))
        if num_workers:
            _check_picklable(reader)
    elif dataset.images is not None:
        return TrainingLoader(_InMemoryBatches(dataset.images, device), start_epoch=start_epoch, sampler=sampler)
    elif isinstance(views, BatchTransformViews):
        reader = Cropper(MultiView(views.input_size, [CENTER_CROP], views.seed), pixel_format)
    else:
        assert isinstance(views, MultiView)
        reader = Cropper(views, pixel_format)
    batches: Dataset[Batch] = _CroppedBatches(dataset, reader)
    num_slices = 1
    if isinstance(sampler, StepSampler):
        batches = shards = ShuffledShards(dataset, reader, sampler, max(1, num_workers))
        num_slices = shards.num_slices
        num_workers = min(num_workers, num_slices)  # then each slice is loaded by the same worker at every step
    loader = TrainingLoader(
        batches,
        num_slices,
        pin_memory=device.type == "cuda",
        start_epoch=start_epoch,
        sampler=sampler,
        num_workers=num_workers,
        # a worker has a copy of the views: new ones start where their size may change
        persistent_workers=num_workers > 0 and size_of is None,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=start_worker,
    )
    loader.check_picklable()
    return loader


def _check_picklable(reader: BatchReader) -> None:
    """Raise InputError if the platform starts loader processes by pickling, and the transforms cannot be pickled."""
    method = multiprocessing.get_start_method()
    if method == "fork":
        return
    try:
        pickle.dumps(reader)
    except Exception as error:  # pickle raises many types
        raise InputError(
            "view_transform: expected a transform that pickle can send to loader processes, which this platform starts "
            f"by {method}, got: {' '.join(str(error).split())}; define it in a module, not in a function or as a "
            "lambda, or set workers to 0"
        ) from error


class _CenterCroppedBatches(Dataset[Batch]):
    """Center crops for evaluation, resized to ``size``."""

    def __init__(self, dataset: ImageDataset, pixel_format: PixelFormat, size: int) -> None:
        self.dataset, self.pixel_format, self.size = dataset, pixel_format, size

    def __getitem__(self, keys: range) -> Batch:
        corrupt: list[CorruptImage] = []
        crops: dict[int, torch.Tensor] = {}
        for index in keys:
            try:
                image = read_image(self.dataset, index, self.pixel_format)
            except CorruptImageError as error:
                corrupt.append(CorruptImage(self.dataset.title(index), str(error)))
                continue
            height, width = image.shape[:2]
            side = max(1, round(min(height, width) * (CROP_PCT if self.size >= MIN_CROPPED_SIZE else 1.0)))
            box = np.array([(height - side) // 2, (width - side) // 2, side, side])
            crops[index] = torch.from_numpy(crop_and_resize(image, box, self.size))
        c, size = self.pixel_format.channels, self.size
        images = torch.stack(list(crops.values())).permute(0, 3, 1, 2) if crops else torch.empty(0, c, size, size)
        indices = np.array(list(crops), dtype=np.int64)
        return Batch(images, indices, 0, corrupt, indices)


def evaluation_loader(
    dataset: ImageDataset, pixel_format: PixelFormat, size: int, batch_size: int = 256, workers: int | None = None
) -> DataLoader[Batch]:
    """Return a loader of one center crop (n, c, size, size) of each readable image, with its index, in any order."""
    num_workers = worker_count(workers) if dataset.images is None else 0
    chunks = [range(start, min(start + batch_size, len(dataset))) for start in range(0, len(dataset), batch_size)]
    if num_workers:
        # worker w loads chunks w, w + num_workers ...: reorder them so that each worker reads neighboring images
        per_worker = -(-len(chunks) // num_workers)
        chunks = [chunks[i] for offset in range(per_worker) for i in range(offset, len(chunks), per_worker)]
    return QuietLoader(
        _CenterCroppedBatches(dataset, pixel_format, size),
        batch_size=None,
        sampler=chunks,
        collate_fn=_identity,
        num_workers=num_workers,
    )


def worker_count(workers: int | None, local_world_size: int | None = None) -> int:
    """Return the number of loader workers of one training process, by default one per available core, at most 16.

    Its ``local_world_size`` processes (None: torchrun's) share the cores, unless SLURM gave each its own cores.
    """
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = max(1, local_world_size or int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    tasks, cores_per_task = os.environ.get("SLURM_NTASKS_PER_NODE"), os.environ.get("SLURM_CPUS_PER_TASK")
    own_cores = min(cores, int(cores_per_task)) if cores_per_task and tasks == str(processes) else cores // processes
    return max(1, min(16, own_cores))


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Block the signals of a scheduler and of Ctrl-C, also in all threads of processes that are started inside."""
    if not HAS_SIGTIMEDWAIT:
        yield
        return
    blocked = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def start_worker(_: int) -> None:
    """Keep a worker alive until its parent ends or sends SIGTERM: the parent handles signals to the process group."""
    ignore_warnings_of_decoders()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not HAS_SIGTIMEDWAIT:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            received = signal.sigtimedwait({signal.SIGTERM}, POLL_SECONDS)
            if received is not None and received.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
