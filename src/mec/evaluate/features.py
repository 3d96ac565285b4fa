"""Frozen features of a labeled dataset: those of the encoder, of the untrained encoder, and raw pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mec.data.dataset import ImageDataset
from mec.data.loaders import evaluation_loader
from mec.data.pixels import PixelFormat
from mec.distributed import SINGLE_PROCESS, ProcessGroup
from mec.embedding.extract import (
    BATCH,
    apply_to_images,
    extract,
    extract_crops,
    in_memory,
    pixel_format_of,
    with_labels,
)
from mec.evaluate.task import Task, log_encoder

MAX_RAW_SIDE = 32
"""Side of raw pixels in a comparison: larger images take more memory without better accuracy."""


@dataclass(frozen=True)
class Features:
    """Features (n, d) float32 and labels (n,) int64 of the train and test images, on the CPU."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def features_of(task: Task, crops_seed: int | None = None) -> Iterator[Features]:
    """Yield the features of each row of the results table: the encoder, the untrained encoder, raw pixels.

    Features are those of central crops. With a ``crops_seed`` each train image gives one random crop, and raw pixels
    are left out. The processes of a group share the images; only rank 0 yields features.
    """
    log_encoder(task)
    group = task.group
    pixel_format = pixel_format_of(next(iter(task.encoders.values())))
    train = in_memory(task.train, pixel_format, group if crops_seed is None else SINGLE_PROCESS)
    test = in_memory(task.test, pixel_format, group)
    for name, encoder in task.encoders.items():
        test_features = with_labels(test, *extract(test, encoder, task.workers, name, group=group), group)
        if crops_seed is None:
            train_features = with_labels(train, *extract(train, encoder, task.workers, name, group=group), group)
        else:
            train_features = extract_crops(train, encoder, crops_seed, task.workers, name, group)
        if group.rank == 0:
            yield Features(name, *train_features, *test_features)
    if task.pixels and crops_seed is None:
        train_features, test_features = (
            with_labels(split, *_raw_pixels(split, pixel_format, task.workers, group), group) for split in (train, test)
        )
        if group.rank == 0:
            yield Features("raw pixels", *train_features, *test_features)


def _raw_pixels(
    dataset: ImageDataset, pixel_format: PixelFormat, workers: int | None, group: ProcessGroup
) -> tuple[Tensor, Tensor]:
    side = MAX_RAW_SIDE if dataset.images is None else min(dataset.images.shape[1:3])
    sides = {s for s in group.all_gather(side if len(dataset) else None) if s is not None}
    side = min(MAX_RAW_SIDE, *sides) if len(sides) == 1 else MAX_RAW_SIDE
    loader = evaluation_loader(dataset, pixel_format, side, BATCH, workers)
    scale = 255 if pixel_format.value_range is None else 1
    return apply_to_images(dataset, loader, "raw pixels", lambda x: x.flatten(1).float() / scale, group)
