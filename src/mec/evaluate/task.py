"""A classification task: its dataset, encoder and baselines, their frozen features, and the accuracies."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from mec.data.dataset import DataLike, ImageDataset, PathLike, data_name
from mec.data.datasets import open_splits
from mec.data.loaders import evaluation_loader
from mec.data.pixels import PixelFormat
from mec.data.splits import log_splits
from mec.distributed import SINGLE_PROCESS, ProcessGroup
from mec.embedding.extract import (
    BATCH,
    apply_to_images,
    check_channels,
    extract,
    extract_crops,
    in_memory,
    pixel_format_of,
    with_labels,
    with_value_range,
)
from mec.errors import InputError
from mec.models.baseline import find_baseline
from mec.models.encoder import Encoder, EncoderLike
from mec.models.io import load_encoder
from mec.results import DatasetSummary, Metric, Protocol, Result, Stopwatch

logger = logging.getLogger("mec")

MAX_IMAGES_WITH_BASELINES = 100_000
"""Train images above which baselines are off by default: each is another pass over all images."""
MAX_RAW_SIDE = 32
"""Side of raw pixels in a comparison: larger images take more memory without better accuracy."""
TOP = 5


@dataclass(frozen=True)
class Task:
    """A classification task: an encoder, its baselines, and labeled images."""

    dataset: DatasetSummary
    encoder: str  # description
    classes: list[str]
    train: ImageDataset
    test: ImageDataset
    encoders: dict[str, Encoder]  # by row of the results table: "encoder" and "start" or "untrained"
    pixels: bool  # whether raw pixels are a row, too
    workers: int | None
    group: ProcessGroup  # processes that share the images
    clock: Stopwatch

    @property
    def pixel_format(self) -> PixelFormat:
        """Pixel format that the encoders take."""
        return pixel_format_of(next(iter(self.encoders.values())))

    def identity(self) -> dict[str, Any]:
        """Return the data and weights, to compare a training with the one that it resumes."""
        images = {"train": len(self.train), "test": len(self.test), "classes": self.classes}
        return {"data": self.dataset.name, "encoder": self.encoder, **images, "rows": list(self.encoders)}

    def with_test_in_memory(self) -> Task:
        """Return the task with small test images decoded once, for every row of the table."""
        return replace(self, test=in_memory(self.test, self.pixel_format))

    def result(self, name: str, protocol: Protocol, rows: dict[str, list[Metric]]) -> Result:
        """Return the result of task ``name`` with the rows of rank 0, in every process of the group."""
        rows = self.group.broadcast(rows)
        return Result(name, protocol, self.dataset, self.encoder, rows, seconds=self.clock())


def open_task(
    data: DataLike,
    encoder: EncoderLike,
    baselines: bool | None = None,
    workers: int | None = None,
    labels_csv: PathLike | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Task:
    """Open the train and test images of a labeled dataset, and the encoder. Arguments as in ``mec.evaluate.knn``."""
    clock = Stopwatch()
    with group.local_rank_zero_first():
        encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
        splits = open_splits(data, labels_csv)
        train, test = splits.select("train"), splits.select("test")
    log_splits(data, {"train": train, "test": test})
    check_classes(train, test, data)
    for split in (train, test):
        check_channels(split, encoder, data)
    encoder = with_value_range(encoder, train, data)
    if baselines is None:
        baselines = len(train) <= MAX_IMAGES_WITH_BASELINES
    counts = {"train": len(train), "test": len(test), "classes": len(train.classes)}
    return Task(
        dataset=DatasetSummary(data_name(data), counts),
        encoder=encoder.description,
        classes=train.classes,
        train=train,
        test=test,
        encoders=with_baseline(encoder, baselines),
        pixels=baselines,
        workers=workers,
        group=group,
        clock=clock,
    )


def with_baseline(encoder: Encoder, baseline: bool) -> dict[str, Encoder]:
    """Return the encoder of each table row: "encoder", or "untrained" if it is; then its baseline, if asked for."""
    row = "untrained" if encoder.untrained else "encoder"
    return {row: encoder} | (find_baseline(encoder) if baseline else {})


def check_classes(train: ImageDataset, test: ImageDataset, data: DataLike) -> None:
    """Raise InputError unless there are two classes or more, each with train and test images."""
    title = data_name(data)
    for name, images in (("train", train), ("test", test)):
        if images.labels is None:
            raise InputError(
                f"data: the {name} images of {title} have no labels ({images.layout}); expected a sub-folder per "
                "class, a .csv of path and label, or items (image, label)"
            )
    classes = train.classes
    if len(classes) < 2:
        raise InputError(f"data: {title} has one class ({classes[0]}), expected at least 2")
    for name, images in (("train", train), ("test", test)):
        missing = np.setdiff1d(np.arange(len(classes)), np.asarray(images.labels))
        if len(missing):
            raise InputError(f"data: class {classes[missing[0]]!r} of {title} has no {name} images")


def log_encoder(task: Task) -> None:
    """Log which weights are measured. Call it when every argument has been checked."""
    logger.info(f"encoder: {task.encoder}")


@dataclass(frozen=True)
class Features:
    """Features (n, d) float32 and labels (n,) int64 of the train and test images, on the CPU."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def features_of(task: Task, crops_seed: int | None = None) -> Iterator[Features]:
    """Yield, on rank 0, the frozen features of each row of the results table: encoder, untrained encoder, raw pixels.
    Crops are central; a ``crops_seed`` gives one random crop of each train image, and leaves raw pixels out."""
    log_encoder(task)
    group, pixel_format = task.group, task.pixel_format
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
            with_labels(split, *raw_pixels(split, pixel_format, task.workers, group), group) for split in (train, test)
        )
        if group.rank == 0:
            yield Features("raw pixels", *train_features, *test_features)


def raw_pixels(
    dataset: ImageDataset, pixel_format: PixelFormat, workers: int | None, group: ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Return the pixels (n, c * s * s) of central squares of at most 32 px, in [0, 1], and the indices (n,) of the
    readable images, as ``extract`` does."""
    side = MAX_RAW_SIDE if dataset.images is None else min(dataset.images.shape[1:3])
    sides = {s for s in group.all_gather(side if len(dataset) else None) if s is not None}
    side = min(MAX_RAW_SIDE, *sides) if len(sides) == 1 else MAX_RAW_SIDE
    loader = evaluation_loader(dataset, pixel_format, side, BATCH, workers)
    scale = 255 if pixel_format.value_range is None else 1
    return apply_to_images(dataset, loader, "raw pixels", lambda x: x.flatten(1).float() / scale, group)


def ranking(scores: Tensor) -> Tensor:
    """Return the five highest-scored classes of each row: (n, classes) -> (n, min(5, classes)), best first."""
    return scores.topk(min(TOP, scores.shape[1]), dim=1).indices


def accuracies(ranked: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Return the accuracies, fractions, of the ``ranked`` classes (n, 5 or fewer), best first, for true classes (n,).

    Keys are "top-1"; "top-5" if there are more than five classes; and "class mean", the mean over the classes with
    images of the accuracy within each class, for classes of unequal size.
    """
    correct = ranked == labels[:, None]
    result = {"top-1": float(correct[:, 0].double().mean())}
    if classes > TOP:
        result["top-5"] = float(correct.any(dim=1).double().mean())
    counts = labels.bincount(minlength=classes)
    hits = labels.bincount(weights=correct[:, 0].double(), minlength=classes)
    present = counts > 0
    result["class mean"] = float((hits[present] / counts[present]).mean())
    return result
