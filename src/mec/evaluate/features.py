"""Frozen features of a source: those of an encoder, and raw pixels beside them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mec.data.transforms.crop import Batch
from mec.data.dataset import ArrayImages, Images
from mec.data.loaders import evaluation_loader, training_loader
from mec.data.transforms.view_settings import ViewSettings
from mec.data.pixels import Reading
from mec.data.transforms.multi_view import Views
from mec.errors import InputError
from mec.embedding.neighbors import best_device
from mec.engine.progress import Shown
from mec.evaluate.task import BATCH, Task, announce, in_memory, none_skipped, of_all, reading_of, say_skipped
from mec.models.encoder import Encoder
from mec.distributed import collect, count, exchange, rank, share

CROP = ViewSettings(crop_scale=(0.08, 1.0), jitter=0.0, grey=0.0, blur=0.0, solarise=0.0)
"""RandomResizedCrop and flip, torchvision's defaults: what the published protocols train classifiers with."""
RAW_SIDE = 32
"""Raw pixels are compared at this side at most: beyond it they only grow, they do not get better."""
IN_MEMORY = 4 * 2**30
"""Bytes of features beyond which they are kept in a temporary file."""


@dataclass(frozen=True)
class Features:
    """Features (n, d) float32 and labels (n,) of the train and test pictures, on the CPU."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def features_of(task: Task, crops_seed: int | None = None) -> Iterator[Features]:
    """The features of each row of the table in turn: the encoder's, the untrained one's, raw pixels.

    They are of central crops; with a ``crops_seed``, those of the train pictures are of one random crop each, and raw
    pixels are left out. Processes that are ``together`` divide the pictures, and the first of them alone gets features.
    """
    announce(task)
    reading = reading_of(next(iter(task.encoders.values())))
    train = in_memory(task.train, reading, divided=crops_seed is None)
    test = in_memory(task.test, reading, divided=True)
    for name, encoder in task.encoders.items():
        tested = with_labels(test, *extract(test, encoder, task.workers, name))
        if crops_seed is None:
            learnt = with_labels(train, *extract(train, encoder, task.workers, name))
        else:
            learnt = extract_crops(train, encoder, crops_seed, task.workers, name)
        if rank() == 0:
            yield Features(name, *learnt, *tested)
    if task.pixels and crops_seed is None:
        learnt, tested = (with_labels(part, *_raw_pixels(part, reading, task.workers)) for part in (train, test))
        if rank() == 0:
            yield Features("raw pixels", *learnt, *tested)


def with_labels(dataset: Images, features: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, d) of pictures ``numbers`` (m,) and their labels: in the first process those of all processes."""
    return _of_all(features, labels_of(dataset)[numbers])


def _of_all(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    features = collect(features, lambda n, d: feature_table(n, d, torch.float32))
    return features, collect(labels[:, None], lambda n, d: torch.empty(n, d, dtype=torch.int64))[:, 0]


def labels_of(dataset: Images) -> Tensor:
    assert dataset.labels is not None
    return torch.from_numpy(np.asarray(dataset.labels))


def extract(
    dataset: Images,
    encoder: Encoder,
    workers: int | None = None,
    label: str = "features",
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Features (n, d) of every readable picture, float32 on the CPU, and their numbers (n,), which rise.

    Of processes that are ``together`` each has pictures of its own here; ``with_labels`` joins what they found.
    Progress goes to standard error. Features of more than 4 GiB are kept in a temporary file. ``device`` None is a
    GPU where there is one.

    Raises:
        InputError: more than a twentieth of the pictures cannot be read, or the temporary file does not fit.
    """
    loader = evaluation_loader(dataset, reading_of(encoder), encoder.image_size, BATCH, workers)
    return gather(dataset, loader, label, frozen(encoder, device or best_device()))


def extract_crops(
    dataset: Images, encoder: Encoder, seed: int, workers: int | None = None, label: str = "features"
) -> tuple[Tensor, Tensor]:
    """Features (n, d) of a random crop, mirrored or not, of each labelled picture, and its label (n,).

    Processes that are ``together`` divide the pictures, and the first gets the features of all.
    """
    views, reading, device = Views(encoder.image_size, [CROP], seed), reading_of(encoder), best_device()
    features, labels, own = frozen(encoder, device), labels_of(dataset), share(len(dataset), BATCH)
    skipped = none_skipped(len(dataset))
    # by their numbers among all: the crops are the same for any number of processes
    keys = [[(0, i) for i in range(s, min(s + BATCH, own.stop))] for s in range(own.start, own.stop, BATCH)]
    loader = training_loader(dataset, views, keys, reading, device, workers)
    table = feature_table(own.stop - own.start, encoder.num_features, torch.float32)
    shown = torch.empty(len(table), dtype=torch.int64)
    with Shown(label, len(dataset)) as progress:
        for batch in loader:
            skipped.add(batch.lost, len(batch.indices))
            (x,) = views(batch.pictures, batch.indices, batch.epoch)
            rows = torch.from_numpy(batch.indices) - own.start
            table[rows], shown[rows] = features(x).cpu(), labels[torch.from_numpy(batch.shown)]
            progress.advance(len(x) * count())
    say_skipped(of_all(skipped))
    return _of_all(table, shown)


def frozen(encoder: Encoder, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The encoder on a device, in evaluation mode, as a function: pictures (n, c, s, s) -> features (n, d) float32."""
    encoder = encoder.eval().to(device).to(memory_format=torch.channels_last)  # faster there, on CPUs and GPUs

    @torch.no_grad()
    def features(pictures: Tensor) -> Tensor:
        x = encoder.normalise(pictures.to(device, non_blocking=True))
        found: Tensor = encoder(x.contiguous(memory_format=torch.channels_last))
        return found.float()

    return features


def _raw_pixels(dataset: Images, reading: Reading, workers: int | None) -> tuple[Tensor, Tensor]:
    side = min(dataset.pictures.shape[1:3]) if isinstance(dataset, ArrayImages) else RAW_SIDE
    sides = {s for s in exchange(side if len(dataset) else None) if s is not None}  # of the shares that there are
    side = min(RAW_SIDE, *sides) if len(sides) == 1 else RAW_SIDE
    loader = evaluation_loader(dataset, reading, side, BATCH, workers)
    scale = 255 if reading.value_range is None else 1
    return gather(dataset, loader, "raw pixels", lambda x: x.flatten(1).float() / scale)


@torch.no_grad()
def gather(
    dataset: Images, loader: Iterable[Batch], label: str, function: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """What ``function`` gives for the pictures (n, c, h, w) of each batch, as one table (n, ...) in the order of the
    source, on the CPU, and the numbers (n,) of the pictures that could be read."""
    skipped = none_skipped(sum(exchange(len(dataset))))
    table: Tensor | None = None
    known = torch.zeros(len(dataset), dtype=torch.bool)
    with Shown(label, skipped.pictures) as shown:
        for batch in loader:
            skipped.add(batch.lost, len(batch.indices) + len(batch.lost))
            if len(batch.indices):
                found, numbers = function(batch.pictures).cpu(), torch.from_numpy(batch.indices)
                if table is None:
                    table = feature_table(len(dataset), found.shape[1], found.dtype)
                table[numbers], known[numbers] = found, True
            shown.advance((len(batch.indices) + len(batch.lost)) * count())  # the others are about as far
    skipped = of_all(skipped)
    if len(skipped) == skipped.pictures:
        raise InputError("data: no picture can be read")
    say_skipped(skipped)
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
