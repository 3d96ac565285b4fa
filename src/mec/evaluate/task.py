"""A labelled source opened for an encoder, with the baselines it is measured against."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from mec.data.dataset import Images
from mec.data.pixels import Reading
from mec.data.corrupt import Lost, Skipped
from mec.data.datasets import open_images
from mec.data.analysis import sampled, settle
from mec.errors import InputError
from mec.engine.progress import say
from mec.models.encoder import Encoder
from mec.models.io import load_encoder, untrained
from mec.distributed import count, exchange, in_turn, share

MAX_BROKEN = 0.05
"""Share of pictures that may be unreadable."""
BATCH = 256
"""Pictures embedded at once."""
BASELINES_UP_TO = 100_000
"""Train pictures beyond which the baselines are measured only when asked for: each is another pass over all."""

EncoderLike = Encoder | str | os.PathLike[str]
Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Task:
    """What is measured on what.

    Attributes:
        data: the source, in words.
        encoder: what is measured, in words.
        classes: their names, in the order of their numbers.
        train: training pictures with labels.
        test: test pictures with labels.
        encoders: a row of the table each: "encoder", and the same one "untrained".
        pixels: whether raw pixels are a row too.
        workers: loader processes; None is one per core.
    """

    data: str
    encoder: str
    classes: list[str]
    train: Images
    test: Images
    encoders: dict[str, Encoder]
    pixels: bool
    workers: int | None


def open_task(
    data: Source,
    encoder: EncoderLike,
    baselines: bool | None = None,
    workers: int | None = None,
    labels: Source | None = None,
) -> Task:
    """Open the train and test pictures of a source, and the encoder.

    Args:
        data: a labelled source (see ``mec.data.open_images``).
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        baselines: measure the untrained encoder and raw pixels too; None: up to 100,000 train pictures.
        workers: loader processes; None is one per core.
        labels: a .csv of path and label for pictures of a folder, in place of its sub-folders.

    Raises:
        InputError: no labels, fewer than two classes, a class without train or test pictures, an encoder
            that cannot be read, or pictures that it cannot take.
    """
    with in_turn():
        encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
        train, test = open_images(data, "train", labels), open_images(data, "test", labels)
    check_classes(train, test, data)
    check_channels(train, encoder, data)
    if baselines is None:
        baselines = len(train) <= BASELINES_UP_TO
    encoders = with_baseline(encoder, baselines)
    words = f"{data} ({len(train):,} train, {len(test):,} test, {len(train.classes)} classes)"
    return Task(words, encoder.described, train.classes, train, test, encoders, baselines, workers)


def with_baseline(encoder: Encoder, baseline: bool) -> dict[str, Encoder]:
    """A row of the table each: "encoder", and with the baseline the same one "untrained", of which there is but one."""
    if encoder.untrained:
        return {"untrained": encoder}
    return {"encoder": encoder, "untrained": untrained(encoder)} if baseline else {"encoder": encoder}


def check_classes(train: Images, test: Images, data: Source) -> None:
    """Refuse what cannot be classified: two classes at least, each with train and test pictures."""
    if train.labels is None or test.labels is None:
        raise InputError(f"data: {data} has no labels; expected a sub-folder per class, or a .csv of path and label")
    classes = train.classes
    if len(classes) < 2:
        raise InputError(f"data: {data} has one class ({classes[0]}), expected at least 2")
    for part, labels in (("train", train.labels), ("test", test.labels)):
        missing = np.setdiff1d(np.arange(len(classes)), labels)
        if len(missing):
            raise InputError(f"data: class {classes[missing[0]]!r} of {data} has no {part} pictures")


def check_channels(dataset: Images, encoder: Encoder, data: Source) -> None:
    """Refuse pictures that cannot be given the channels of the encoder."""
    takes = encoder.spec.channels
    have = next(sampled(dataset, 8, lambda opened: opened.raw(reading_of(encoder)))).shape[2]
    if have not in (takes, 1) and (have, takes) != (3, 1):  # colour can be made grey, and grey colour
        raise InputError(f"encoder: {encoder.described} takes {takes} channels, the pictures of {data} have {have}")


def reading_of(encoder: Encoder) -> Reading:
    """How the pictures of an encoder were read when it was trained."""
    return Reading(encoder.spec.channels, encoder.spec.value_range, encoder.spec.background)


def announce(task: Task) -> None:
    """Say on standard error whose weights are measured, once nothing about the call is wrong any more."""
    say(f"encoder: {task.encoder}")


def settled(task: Task) -> Task:
    """Its pictures decoded once, for every row of the table, where they are small."""
    reading = reading_of(next(iter(task.encoders.values())))
    return replace(task, train=in_memory(task.train, reading), test=in_memory(task.test, reading))


def in_memory(dataset: Images, reading: Reading, divided: bool = False) -> Images:
    """Decoded where they are small; what cannot be read is counted here, for it is gone afterwards.

    ``divided``: this process's share of them.
    """
    skipped = none_skipped(len(dataset))
    if divided and count() > 1:
        dataset = dataset.subset(np.arange(len(dataset))[share(len(dataset), BATCH)])
    try:
        settled, lost = settle(dataset, reading) if len(dataset) else (dataset, [])
    except InputError:  # none of them can be read
        if not divided or count() == 1:
            raise
        settled, lost = dataset, []
    skipped.add(lost, len(dataset))
    say_skipped(of_all(skipped) if divided else skipped)
    return settled


def none_skipped(pictures: int) -> Skipped:
    """To count in, in one process or in each of those that divide so many pictures among them."""
    skipped = Skipped(MAX_BROKEN, pictures)
    if count() > 1:
        skipped.seen = pictures  # broken ones may all be in one share: what it lets pass is a share of all pictures
    return skipped


def of_all(skipped: Skipped) -> Skipped:
    """What all processes have skipped. InputError: too many together."""
    if count() == 1:
        return skipped
    whole = Skipped(skipped.most, skipped.pictures)
    for reasons in exchange(skipped.reasons):
        whole.add([Lost(*item) for item in reasons.items()], whole.pictures)
    return whole


def say_skipped(skipped: Skipped) -> None:
    if len(skipped):
        title, reason = next(iter(skipped.reasons.items()))
        say(f"skipped {len(skipped):,} that could not be read; the first: {title}: {reason}")
