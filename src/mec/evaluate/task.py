"""Open a labeled dataset and an encoder for a classification task, with the baselines of its results table."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mec.data.dataset import DataLike, ImageDataset
from mec.data.datasets import open_dataset
from mec.distributed import SINGLE_PROCESS, ProcessGroup
from mec.embedding.extract import check_channels, in_memory, pixel_format_of
from mec.errors import InputError
from mec.models.encoder import Encoder, EncoderLike
from mec.models.io import load_encoder, untrained
from mec.results import DatasetSummary, Metric, Protocol, Result, Stopwatch

logger = logging.getLogger("mec")

MAX_IMAGES_WITH_BASELINES = 100_000
"""Train images above which baselines are off by default: each is another pass over all images."""


@dataclass(frozen=True)
class Task:
    """A classification task: an encoder, its baselines, and labeled images.

    Attributes:
        dataset: name and size of the data.
        encoder: description of the encoder.
        classes: class names, indexed by label.
        train: training images with labels.
        test: test images with labels.
        encoders: encoder of each row of the results table: "encoder" and "untrained".
        pixels: add a row for raw pixels.
        workers: loader processes; None: one per core.
        group: processes that share the images.
        clock: started when the task was opened.
    """

    dataset: DatasetSummary
    encoder: str
    classes: list[str]
    train: ImageDataset
    test: ImageDataset
    encoders: dict[str, Encoder]
    pixels: bool
    workers: int | None
    group: ProcessGroup
    clock: Stopwatch

    def identity(self) -> dict[str, Any]:
        """Return the data and weights, to compare a training with the one that it resumes."""
        images = {"train": len(self.train), "test": len(self.test), "classes": self.classes}
        return {"data": self.dataset.name, "encoder": self.encoder, **images, "rows": list(self.encoders)}

    def result(self, name: str, protocol: Protocol, rows: dict[str, list[Metric]]) -> Result:
        """Return the result of task ``name`` with the rows of rank 0, in every process of the group."""
        rows = self.group.broadcast(rows)
        return Result(name, protocol, self.dataset, self.encoder, rows, seconds=self.clock())


def open_task(
    data: DataLike,
    encoder: EncoderLike,
    baselines: bool | None = None,
    workers: int | None = None,
    labels_csv: DataLike | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Task:
    """Open the train and test images of a labeled dataset, and the encoder.

    Args:
        data: labeled dataset (see ``mec.open_dataset``).
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        baselines: also measure the untrained encoder and raw pixels; None: only if there are at most
            100,000 train images.
        workers: loader processes; None: one per core.
        labels_csv: .csv with columns path and label for the images of a folder, in place of its sub-folders.
        group: processes that share the images.

    Raises:
        InputError: no labels, fewer than two classes, a class without train or test images, an unreadable encoder, or
            images whose channels it does not take.
    """
    clock = Stopwatch()
    with group.local_rank_zero_first():
        encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
        train, test = open_dataset(data, "train", labels_csv), open_dataset(data, "test", labels_csv)
    check_classes(train, test, data)
    check_channels(train, encoder, data)
    if baselines is None:
        baselines = len(train) <= MAX_IMAGES_WITH_BASELINES
    counts = {"train": len(train), "test": len(test), "classes": len(train.classes)}
    return Task(
        dataset=DatasetSummary(str(data), counts),
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
    """Return the encoder of each table row: "encoder", and "untrained" if ``baseline``. An untrained encoder is its own
    baseline and gives one row."""
    if encoder.untrained:
        return {"untrained": encoder}
    return {"encoder": encoder, "untrained": untrained(encoder)} if baseline else {"encoder": encoder}


def check_classes(train: ImageDataset, test: ImageDataset, data: DataLike) -> None:
    """Raise InputError unless there are two classes or more, each with train and test images."""
    if train.labels is None or test.labels is None:
        raise InputError(f"data: {data} has no labels; expected a sub-folder per class, or a .csv of path and label")
    classes = train.classes
    if len(classes) < 2:
        raise InputError(f"data: {data} has one class ({classes[0]}), expected at least 2")
    for split, labels in (("train", train.labels), ("test", test.labels)):
        missing = np.setdiff1d(np.arange(len(classes)), labels)
        if len(missing):
            raise InputError(f"data: class {classes[missing[0]]!r} of {data} has no {split} images")


def log_encoder(task: Task) -> None:
    """Log which weights are measured. Call it when every argument has been checked."""
    logger.info(f"encoder: {task.encoder}")


def with_images_in_memory(task: Task) -> Task:
    """Return the task with small images decoded once, for every row of the table."""
    pixel_format = pixel_format_of(next(iter(task.encoders.values())))
    return replace(task, train=in_memory(task.train, pixel_format), test=in_memory(task.test, pixel_format))
