"""Frozen features of a source: those of an encoder, and raw pixels beside them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mec.data.dataset import ArrayDataset, ImageDataset
from mec.data.loaders import evaluation_loader, training_loader
from mec.data.pixels import PixelFormat
from mec.data.transforms.crop import Batch
from mec.data.transforms.multi_view import MultiView
from mec.data.transforms.view_settings import ViewSettings
from mec.distributed import all_gather_objects, gather_rows, get_rank, shard_range, world_size
from mec.embedding.neighbors import best_device
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.task import (
    BATCH,
    Task,
    in_memory,
    log_corrupt,
    log_encoder,
    merge_corrupt_logs,
    new_corrupt_log,
    pixel_format_of,
)
from mec.models.encoder import Encoder

CROP = ViewSettings(crop_scale=(0.08, 1.0), color_jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0)
"""RandomResizedCrop and flip, torchvision's defaults: what the published protocols train classifiers with."""
RAW_SIDE = 32
"""Raw pixels are compared at this side at most: beyond it they only grow, they do not get better."""
IN_MEMORY = 4 * 2**30
"""Bytes of features beyond which they are kept in a temporary file."""


@dataclass(frozen=True)
class Features:
    """Features (n, d) float32 and labels (n,) of the train and test images, on the CPU."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def features_of(task: Task, crops_seed: int | None = None) -> Iterator[Features]:
    """The features of each row of the table in turn: the encoder's, the untrained one's, raw pixels.

    They are of central crops; with a ``crops_seed``, those of the train images are of one random crop each, and raw
    pixels are left out. Processes that are ``together`` divide the images, and the first of them alone gets features.
    """
    log_encoder(task)
    reading = pixel_format_of(next(iter(task.encoders.values())))
    train = in_memory(task.train, reading, divided=crops_seed is None)
    test = in_memory(task.test, reading, divided=True)
    for name, encoder in task.encoders.items():
        tested = with_labels(test, *extract(test, encoder, task.workers, name))
        if crops_seed is None:
            learned = with_labels(train, *extract(train, encoder, task.workers, name))
        else:
            learned = extract_crops(train, encoder, crops_seed, task.workers, name)
        if get_rank() == 0:
            yield Features(name, *learned, *tested)
    if task.pixels and crops_seed is None:
        learned, tested = (with_labels(part, *_raw_pixels(part, reading, task.workers)) for part in (train, test))
        if get_rank() == 0:
            yield Features("raw pixels", *learned, *tested)


def with_labels(dataset: ImageDataset, features: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, d) of images ``numbers`` (m,) and their labels: in the first process those of all processes."""
    return _of_all(features, labels_of(dataset)[numbers])


def _of_all(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    features = gather_rows(features, lambda n, d: feature_table(n, d, torch.float32))
    return features, gather_rows(labels[:, None], lambda n, d: torch.empty(n, d, dtype=torch.int64))[:, 0]


def labels_of(dataset: ImageDataset) -> Tensor:
    assert dataset.labels is not None
    return torch.from_numpy(np.asarray(dataset.labels))


def extract(
    dataset: ImageDataset,
    encoder: Encoder,
    workers: int | None = None,
    label: str = "features",
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Features (n, d) of every readable image, float32 on the CPU, and their numbers (n,), which rise.

    Of processes that are ``together`` each has images of its own here; ``with_labels`` joins what they found.
    Progress goes to standard error. Features of more than 4 GiB are kept in a temporary file. ``device`` None is a
    GPU where there is one.

    Raises:
        InputError: more than a twentieth of the images cannot be read, or the temporary file does not fit.
    """
    loader = evaluation_loader(dataset, pixel_format_of(encoder), encoder.image_size, BATCH, workers)
    return gather(dataset, loader, label, frozen(encoder, device or best_device()))


def extract_crops(
    dataset: ImageDataset, encoder: Encoder, seed: int, workers: int | None = None, label: str = "features"
) -> tuple[Tensor, Tensor]:
    """Features (n, d) of a random crop, mirrored or not, of each labeled image, and its label (n,).

    Processes that are ``together`` divide the images, and the first gets the features of all.
    """
    views, reading, device = MultiView(encoder.image_size, [CROP], seed), pixel_format_of(encoder), best_device()
    features, labels, own = frozen(encoder, device), labels_of(dataset), shard_range(len(dataset), BATCH)
    skipped = new_corrupt_log(len(dataset))
    # by their numbers among all: the crops are the same for any number of processes
    keys = [[(0, i) for i in range(s, min(s + BATCH, own.stop))] for s in range(own.start, own.stop, BATCH)]
    loader = training_loader(dataset, views, keys, reading, device, workers)
    table = feature_table(own.stop - own.start, encoder.num_features, torch.float32)
    shown = torch.empty(len(table), dtype=torch.int64)
    with ProgressBar(label, len(dataset)) as progress:
        for batch in loader:
            skipped.add(batch.corrupt, len(batch.indices))
            (x,) = views(batch.images, batch.indices, batch.epoch)
            rows = torch.from_numpy(batch.indices) - own.start
            table[rows], shown[rows] = features(x).cpu(), labels[torch.from_numpy(batch.source_indices)]
            progress.advance(len(x) * world_size())
    log_corrupt(merge_corrupt_logs(skipped))
    return _of_all(table, shown)


def frozen(encoder: Encoder, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The encoder on a device, in evaluation mode, as a function: images (n, c, s, s) -> features (n, d) float32."""
    encoder = encoder.eval().to(device).to(memory_format=torch.channels_last)  # faster there, on CPUs and GPUs

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        x = encoder.normalize(images.to(device, non_blocking=True))
        found: Tensor = encoder(x.contiguous(memory_format=torch.channels_last))
        return found.float()

    return features


def _raw_pixels(dataset: ImageDataset, reading: PixelFormat, workers: int | None) -> tuple[Tensor, Tensor]:
    side = min(dataset.images.shape[1:3]) if isinstance(dataset, ArrayDataset) else RAW_SIDE
    sides = {
        s for s in all_gather_objects(side if len(dataset) else None) if s is not None
    }  # of the shares that there are
    side = min(RAW_SIDE, *sides) if len(sides) == 1 else RAW_SIDE
    loader = evaluation_loader(dataset, reading, side, BATCH, workers)
    scale = 255 if reading.value_range is None else 1
    return gather(dataset, loader, "raw pixels", lambda x: x.flatten(1).float() / scale)


@torch.no_grad()
def gather(
    dataset: ImageDataset, loader: Iterable[Batch], label: str, function: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """What ``function`` gives for the images (n, c, h, w) of each batch, as one table (n, ...) in the order of the
    source, on the CPU, and the numbers (n,) of the images that could be read."""
    skipped = new_corrupt_log(sum(all_gather_objects(len(dataset))))
    table: Tensor | None = None
    known = torch.zeros(len(dataset), dtype=torch.bool)
    with ProgressBar(label, skipped.num_images) as shown:
        for batch in loader:
            skipped.add(batch.corrupt, len(batch.indices) + len(batch.corrupt))
            if len(batch.indices):
                found, numbers = function(batch.images).cpu(), torch.from_numpy(batch.indices)
                if table is None:
                    table = feature_table(len(dataset), found.shape[1], found.dtype)
                table[numbers], known[numbers] = found, True
            shown.advance((len(batch.indices) + len(batch.corrupt)) * world_size())  # the others are about as far
    skipped = merge_corrupt_logs(skipped)
    if len(skipped) == skipped.num_images:
        raise InputError("data: no image can be read")
    log_corrupt(skipped)
    if table is None:  # others have some
        return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    numbers = known.nonzero()[:, 0]
    if len(numbers) < len(dataset):
        for start in range(0, len(numbers), 8192):  # what is kept moves up, in place
            rows = numbers[start : start + 8192]
            table[start : start + len(rows)] = table[rows]
    return table[: len(numbers)], numbers


def feature_table(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """(rows, width): in memory, or where large mapped from a temporary file that goes with it."""
    size = dtype.itemsize * rows * width
    if size <= IN_MEMORY or dtype != torch.float32:
        return torch.empty(rows, width, dtype=dtype)
    with tempfile.TemporaryFile(prefix="mec-") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would kill the process later
            return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(rows, width)))
        except OSError as error:
            raise InputError(
                f"TMPDIR: {tempfile.gettempdir()} has no room for {size / 2**30:.0f} GiB of features ({error.strerror})"
            ) from error
