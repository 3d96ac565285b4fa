"""The parts of a source: what is for training and what for testing."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import ImageDataset
from mec.data.rng import uniforms
from mec.errors import InputError

TRAIN_NAMES = ("train",)
TEST_NAMES = ("test", "val", "valid", "validation")
DIVISION = 7
"""Stream of random numbers."""
HELD_OUT = 0.2
"""Share of each class kept for testing where the source itself says nothing."""


@dataclass(frozen=True)
class Splits:
    """Training images and, where the source has them, test images and images without labels."""

    train: ImageDataset
    test: ImageDataset | None = None
    unlabeled: ImageDataset | None = None

    def take(self, split: str) -> ImageDataset:
        if split == "pretrain":
            return self.unlabeled or self.train
        if split == "all":
            return self.train
        if self.test is not None:
            return self.train if split == "train" else self.test
        train, test = random_split(self.train, HELD_OUT)
        return self.train.subset(train if split == "train" else test)


def random_split(dataset: ImageDataset, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of a fixed random division, (kept, held out), with ``share`` of each class held out (at least one)."""
    order = uniforms(0, 0, np.arange(len(dataset)), 1, DIVISION)[:, 0].argsort()
    labels = np.zeros(len(dataset), dtype=np.int64) if dataset.labels is None else dataset.labels
    held: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        held.append(members[: max(1, round(share * len(members)))] if len(members) > 1 else members[:0])
    test = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(dataset)), test), test


def encode_labels(values: list[str], classes: list[str] | None = None) -> tuple[NDArray[np.int64], list[str]]:
    """Labels as numbers and the names of the classes, in the order of their numbers or of the alphabet.

    ``classes`` are those of the training images, where ``values`` belong to the test images.
    """
    if classes is not None and (unknown := sorted(set(values) - set(classes))):
        raise InputError(f"data: the test images have classes that the training ones lack: {', '.join(unknown[:5])}")
    if classes is None:
        found = set(values)
        whole = all(re.fullmatch(r"-?[0-9]+", v) for v in found)
        classes = sorted(found, key=int) if whole else sorted(found)
    number = {c: i for i, c in enumerate(classes)}
    return np.array([number[v] for v in values], dtype=np.int64), classes
