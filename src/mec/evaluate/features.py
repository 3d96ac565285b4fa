"""Frozen features of a labelled source: those of an encoder, and of the baselines it is measured against."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mec.data.images import ArrayImages, Images
from mec.data.loading import evaluation_loader, settle
from mec.data.sources import open_images
from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.models.files import load_encoder, untrained

RAW_SIDE = 32
"""Raw pixels are compared at this side at most: beyond it they only grow, they do not get better."""

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
def extract(images: Images, encoder: Encoder, workers: int | None = None, label: str = "features") -> Tensor:
    """Features (n, d) of every picture, in order, float32 on the CPU, with progress on standard error."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.eval().to(device)
    loader = evaluation_loader(images, encoder.spec.channels, encoder.image_size, workers=workers)
    found = [encoder(encoder.normalise(batch.to(device))).float().cpu() for batch in _shown(loader, label, len(loader))]
    return torch.cat(found)


def _raw_pixels(images: Images, channels: int, workers: int | None) -> Tensor:
    side = min(images.read(0, channels).shape[:2]) if isinstance(images, ArrayImages) else RAW_SIDE
    loader = evaluation_loader(images, channels, min(side, RAW_SIDE), workers=workers)
    return torch.cat([b.flatten(1).float() / 255 for b in _shown(loader, "raw pixels", len(loader))])


def _shown(loader: Iterable[Tensor], label: str, total: int) -> Iterable[Tensor]:
    console = Console(stderr=True)
    return track(loader, label, total=total, console=console, transient=True, disable=not console.is_terminal)


def prepare(
    data: str | os.PathLike[str], encoder: EncoderLike, baselines: bool = True, workers: int | None = None
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
    train, test = open_images(data, "train"), open_images(data, "test")
    train_labels, test_labels = _labels(train, data), _labels(test, data)
    classes = len(train.classes)
    if classes < 2:
        raise InputError(f"data: {data} has one class ({train.classes[0]}), expected at least 2")
    for part, labels in (("train", train_labels), ("test", test_labels)):
        missing = np.setdiff1d(np.arange(classes), labels)
        if len(missing):
            raise InputError(f"data: class {train.classes[missing[0]]!r} of {data} has no {part} pictures")

    # decoded once, for every row of the table, where they are small
    channels = encoder.spec.channels
    train, test = settle(train, channels), settle(test, channels)

    def features(called: str, of: Encoder) -> Features:
        a, b = extract(train, of, workers, called), extract(test, of, workers, called)
        return Features(called, a, torch.from_numpy(train_labels), b, torch.from_numpy(test_labels))

    found = [features(name, encoder)]
    if baselines:
        if name != "untrained":
            found.append(features("untrained", untrained(encoder)))
        a, b = _raw_pixels(train, channels, workers), _raw_pixels(test, channels, workers)
        found.append(Features("raw pixels", a, torch.from_numpy(train_labels), b, torch.from_numpy(test_labels)))
    return Task(f"{data} ({len(train):,} train, {len(test):,} test, {classes} classes)", described, classes, found)


def _labels(images: Images, data: str | os.PathLike[str]) -> np.ndarray:
    if images.labels is None:
        raise InputError(f"data: {data} has no labels; pictures must lie in one sub-folder per class")
    return images.labels
