"""Frozen features of a labelled source: those of an encoder, and of the baselines it is measured against."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from mec.data.crops import Batch
from mec.data.images import ArrayImages, Images
from mec.data.loading import evaluation_loader
from mec.data.pixels import Reading
from mec.data.skipped import Skipped
from mec.data.sources import open_images
from mec.data.survey import settle
from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.models.files import load_encoder, untrained

RAW_SIDE = 32
"""Raw pixels are compared at this side at most: beyond it they only grow, they do not get better."""

MAX_BROKEN = 0.05
"""Share of pictures that may be unreadable."""

EncoderLike = Encoder | str | os.PathLike[str]


@dataclass(frozen=True)
class Features:
    """Features (n, d) float32 and labels (n,) of the train and test pictures, on the CPU."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Task:
    """A labelled source opened for an encoder: the features to compare, and what to call them."""

    data: str
    encoder: str
    classes: int
    features: list[Features]


@torch.inference_mode()
def extract(
    images: Images, encoder: Encoder, workers: int | None = None, label: str = "features"
) -> tuple[Tensor, Tensor]:
    """Features (n, d) of every readable picture, float32 on the CPU, and their numbers (n,), which rise.

    Progress goes to standard error.

    Raises:
        InputError: more than a twentieth of the pictures cannot be read.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.eval().to(device)
    loader = evaluation_loader(images, reading_of(encoder), encoder.image_size, workers=workers)
    return _joined(images, loader, label, lambda x: encoder(encoder.normalise(x.to(device))).float().cpu())


def reading_of(encoder: Encoder) -> Reading:
    """How the pictures of an encoder were read when it was trained."""
    return Reading(encoder.spec.channels, encoder.spec.value_range, encoder.spec.background)


def _raw_pixels(images: Images, reading: Reading, workers: int | None) -> tuple[Tensor, Tensor]:
    side = min(images.pictures.shape[1:3]) if isinstance(images, ArrayImages) else RAW_SIDE
    loader = evaluation_loader(images, reading, min(side, RAW_SIDE), workers=workers)
    scale = 255 if reading.value_range is None else 1
    return _joined(images, loader, "raw pixels", lambda x: x.flatten(1).float() / scale)


def _joined(
    images: Images, loader: DataLoader[Batch], label: str, function: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    console = Console(stderr=True)
    skipped = Skipped(MAX_BROKEN, len(images))
    found: list[Tensor] = []
    numbers: list[Tensor] = []
    shown = track(loader, label, total=len(loader), console=console, transient=True, disable=not console.is_terminal)
    for batch in shown:
        skipped.add(batch.lost, len(batch.indices) + len(batch.lost))
        if len(batch.indices):
            found.append(function(batch.pictures))
            numbers.append(torch.from_numpy(batch.indices))
    if not found:
        raise InputError("data: no picture can be read")
    _say(skipped, console)
    joined = torch.cat(numbers)
    order = joined.argsort()
    return torch.cat(found)[order], joined[order]


def _settled(images: Images, reading: Reading) -> Images:
    """In memory where it is small; what cannot be read is counted here, for it is gone afterwards."""
    skipped = Skipped(MAX_BROKEN, len(images))
    settled, lost = settle(images, reading)
    skipped.add(lost, len(images))
    _say(skipped, Console(stderr=True))
    return settled


def _say(skipped: Skipped, console: Console) -> None:
    if len(skipped):
        title, reason = next(iter(skipped.reasons.items()))
        said = f"skipped {len(skipped):,} that could not be read; the first: {title}: {reason}"
        console.print(said, highlight=False, soft_wrap=True)


def prepare(
    data: str | os.PathLike[str],
    encoder: EncoderLike,
    baselines: bool = True,
    workers: int | None = None,
    labels: str | os.PathLike[str] | None = None,
) -> Task:
    """Open the source's train and test pictures and extract the features of the encoder and of the baselines.

    Raises:
        InputError: no labels, fewer than two classes, a class without train or test pictures, or an encoder
            that cannot be read.
    """
    name = "untrained" if isinstance(encoder, Encoder) and encoder.untrained else "encoder"
    described = encoder.spec.backbone if isinstance(encoder, Encoder) else os.fspath(encoder)
    if not isinstance(encoder, Encoder):
        encoder = load_encoder(encoder)
        if encoder.untrained:
            name, described = "untrained", f"{described} (untrained, seed 0)"
    train, test = open_images(data, "train", labels), open_images(data, "test", labels)
    numbers = _labels(train, data), _labels(test, data)
    classes = len(train.classes)
    if classes < 2:
        raise InputError(f"data: {data} has one class ({train.classes[0]}), expected at least 2")
    for part, present in zip(("train", "test"), numbers, strict=True):
        missing = np.setdiff1d(np.arange(classes), present)
        if len(missing):
            raise InputError(f"data: class {train.classes[missing[0]]!r} of {data} has no {part} pictures")

    # decoded once, for every row of the table, where they are small
    reading = reading_of(encoder)
    train, test = _settled(train, reading), _settled(test, reading)

    def features(called: str, of: Encoder) -> Features:
        return _labelled(called, train, test, extract(train, of, workers, called), extract(test, of, workers, called))

    found = [features(name, encoder)]
    if baselines:
        if name != "untrained":
            found.append(features("untrained", untrained(encoder)))
        raw = [_raw_pixels(part, reading, workers) for part in (train, test)]
        found.append(_labelled("raw pixels", train, test, *raw))
    return Task(f"{data} ({len(train):,} train, {len(test):,} test, {classes} classes)", described, classes, found)


def _labelled(
    name: str, train: Images, test: Images, of_train: tuple[Tensor, Tensor], of_test: tuple[Tensor, Tensor]
) -> Features:
    def labels(images: Images, numbers: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(images.labels)[numbers.numpy()])

    return Features(name, of_train[0], labels(train, of_train[1]), of_test[0], labels(test, of_test[1]))


def _labels(images: Images, data: str | os.PathLike[str]) -> np.ndarray:
    if images.labels is None:
        raise InputError(f"data: {data} has no labels; expected a sub-folder per class, or a .csv of path and label")
    return images.labels
