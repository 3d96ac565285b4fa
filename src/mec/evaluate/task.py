"""A labeled source opened for an encoder, with the baselines it is measured against."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from mec.data.analysis import load_into_memory, sampled
from mec.data.corrupt import CorruptImage, CorruptLog
from mec.data.dataset import ImageDataset
from mec.data.datasets import open_dataset
from mec.data.pixels import PixelFormat
from mec.distributed import all_gather_objects, local_rank_zero_first, shard_range, world_size
from mec.engine.progress import log
from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.models.io import load_encoder, untrained
from mec.results import DatasetSummary

MAX_CORRUPT = 0.05
"""Share of images that may be unreadable."""
BATCH = 256
"""Images embedded at once."""
BASELINES_UP_TO = 100_000
"""Train images beyond which the baselines are measured only when asked for: each is another pass over all."""

EncoderLike = Encoder | str | os.PathLike[str]
Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Task:
    """What is measured on what.

    Attributes:
        dataset: name and size of the data.
        encoder: description of what is measured.
        classes: their names, in the order of their numbers.
        train: training images with labels.
        test: test images with labels.
        encoders: a row of the table each: "encoder", and the same one "untrained".
        pixels: whether raw pixels are a row too.
        workers: loader processes; None is one per core.
    """

    dataset: DatasetSummary
    encoder: str
    classes: list[str]
    train: ImageDataset
    test: ImageDataset
    encoders: dict[str, Encoder]
    pixels: bool
    workers: int | None


def open_task(
    data: Source,
    encoder: EncoderLike,
    baselines: bool | None = None,
    workers: int | None = None,
    labels_csv: Source | None = None,
) -> Task:
    """Open the train and test images of a source, and the encoder.

    Args:
        data: a labeled source (see ``mec.data.open_dataset``).
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        baselines: measure the untrained encoder and raw pixels too; None: up to 100,000 train images.
        workers: loader processes; None is one per core.
        labels_csv: .csv with columns path and label for the images of a folder, in place of its sub-folders.

    Raises:
        InputError: no labels, fewer than two classes, a class without train or test images, an encoder
            that cannot be read, or images that it cannot take.
    """
    with local_rank_zero_first():
        encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
        train, test = open_dataset(data, "train", labels_csv), open_dataset(data, "test", labels_csv)
    check_classes(train, test, data)
    check_channels(train, encoder, data)
    if baselines is None:
        baselines = len(train) <= BASELINES_UP_TO
    encoders = with_baseline(encoder, baselines)
    counts = {"train": len(train), "test": len(test), "classes": len(train.classes)}
    return Task(
        DatasetSummary(str(data), counts), encoder.description, train.classes, train, test, encoders, baselines, workers
    )


def with_baseline(encoder: Encoder, baseline: bool) -> dict[str, Encoder]:
    """A row of the table each: "encoder", and with the baseline the same one "untrained", of which there is but one."""
    if encoder.untrained:
        return {"untrained": encoder}
    return {"encoder": encoder, "untrained": untrained(encoder)} if baseline else {"encoder": encoder}


def check_classes(train: ImageDataset, test: ImageDataset, data: Source) -> None:
    """Refuse what cannot be classified: two classes at least, each with train and test images."""
    if train.labels is None or test.labels is None:
        raise InputError(f"data: {data} has no labels; expected a sub-folder per class, or a .csv of path and label")
    classes = train.classes
    if len(classes) < 2:
        raise InputError(f"data: {data} has one class ({classes[0]}), expected at least 2")
    for part, labels in (("train", train.labels), ("test", test.labels)):
        missing = np.setdiff1d(np.arange(len(classes)), labels)
        if len(missing):
            raise InputError(f"data: class {classes[missing[0]]!r} of {data} has no {part} images")


def check_channels(dataset: ImageDataset, encoder: Encoder, data: Source) -> None:
    """Refuse images that cannot be given the channels of the encoder."""
    takes = encoder.spec.channels
    have = next(sampled(dataset, 8, lambda opened: opened.raw(pixel_format_of(encoder)))).shape[2]
    if have not in (takes, 1) and (have, takes) != (3, 1):  # color can be made gray, and gray color
        raise InputError(f"encoder: {encoder.description} takes {takes} channels, the images of {data} have {have}")


def pixel_format_of(encoder: Encoder) -> PixelFormat:
    """How the images of an encoder were read when it was trained."""
    return PixelFormat(encoder.spec.channels, encoder.spec.value_range, encoder.spec.background)


def log_encoder(task: Task) -> None:
    """Say on standard error whose weights are measured, once nothing about the call is wrong any more."""
    log(f"encoder: {task.encoder}")


def with_images_in_memory(task: Task) -> Task:
    """Its images decoded once, for every row of the table, where they are small."""
    reading = pixel_format_of(next(iter(task.encoders.values())))
    return replace(task, train=in_memory(task.train, reading), test=in_memory(task.test, reading))


def in_memory(dataset: ImageDataset, reading: PixelFormat, divided: bool = False) -> ImageDataset:
    """Decoded where they are small; what cannot be read is counted here, for it is gone afterwards.

    ``divided``: this process's share of them.
    """
    skipped = new_corrupt_log(len(dataset))
    if divided and world_size() > 1:
        dataset = dataset.subset(np.arange(len(dataset))[shard_range(len(dataset), BATCH)])
    try:
        with_images_in_memory, lost = load_into_memory(dataset, reading) if len(dataset) else (dataset, [])
    except InputError:  # none of them can be read
        if not divided or world_size() == 1:
            raise
        with_images_in_memory, lost = dataset, []
    skipped.add(lost, len(dataset))
    log_corrupt(merge_corrupt_logs(skipped) if divided else skipped)
    return with_images_in_memory


def new_corrupt_log(images: int) -> CorruptLog:
    """To count in, in one process or in each of those that divide so many images among them."""
    skipped = CorruptLog(MAX_CORRUPT, images)
    if world_size() > 1:
        skipped.num_seen = images  # broken ones may all be in one share: what it lets pass is a share of all images
    return skipped


def merge_corrupt_logs(skipped: CorruptLog) -> CorruptLog:
    """What all processes have skipped. InputError: too many together."""
    if world_size() == 1:
        return skipped
    whole = CorruptLog(skipped.max_fraction, skipped.num_images)
    for reasons in all_gather_objects(skipped.reasons):
        whole.add([CorruptImage(*item) for item in reasons.items()], whole.num_images)
    return whole


def log_corrupt(skipped: CorruptLog) -> None:
    if len(skipped):
        title, reason = next(iter(skipped.reasons.items()))
        log(f"skipped {len(skipped):,} that could not be read; the first: {title}: {reason}")
