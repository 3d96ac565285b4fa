"""Train, test and unlabeled splits of a dataset, and the random split of datasets that have none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mec.data.dataset import ImageDataset, Indices, Labels
from mec.data.rng import Stream, uniforms
from mec.errors import InputError

T = TypeVar("T")

TRAIN_NAMES = ("train",)
TEST_NAMES = ("test", "val", "valid", "validation")
TEST_FRACTION = 0.2
"""Fraction of each class in the test split of a dataset without its own splits."""


@dataclass(frozen=True)
class Splits:
    """Training images and, where the dataset has them, test images and unlabeled images."""

    train: ImageDataset
    test: ImageDataset | None = None
    unlabeled: ImageDataset | None = None

    def select(self, split: str) -> ImageDataset:
        """Return the split "train", "test", "all" or "pretrain" (see ``open_dataset``)."""
        if split == "pretrain":
            return self.unlabeled or self.train
        if split == "all":
            return self.train
        if self.test is not None:
            return self.train if split == "train" else self.test
        train, test = random_split(self.train, TEST_FRACTION)
        return self.train.subset(train if split == "train" else test)


def open_train_and_test(open_split: Callable[[T, list[str] | None], ImageDataset], train: T, test: T | None) -> Splits:
    """Open both splits by ``open_split(split, classes)``; the test split gets the classes of the training split."""
    train_split = open_split(train, None)
    return Splits(train_split, open_split(test, train_split.classes or None) if test is not None else None)


def random_split(dataset: ImageDataset, fraction: float) -> tuple[Indices, Indices]:
    """Split a dataset at random, stratified by class, the same way in every call; images without labels are one class.

    Returns:
        Sorted indices of the first part, and of the second part with a ``fraction`` of each class: at least one image
        of a class with several.
    """
    order = uniforms(0, 0, np.arange(len(dataset)), 1, Stream.TRAIN_TEST_SPLIT)[:, 0].argsort()
    labels = np.zeros(len(dataset), dtype=np.int64) if dataset.labels is None else dataset.labels
    selected: list[Indices] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        selected.append(members[: max(1, round(fraction * len(members)))] if len(members) > 1 else members[:0])
    second = np.sort(np.concatenate(selected))
    return np.setdiff1d(np.arange(len(dataset)), second), second


def encode_labels(names: list[str], classes: list[str] | None = None) -> tuple[Labels, list[str]]:
    """Return indices (n,) of the class names of images in ``classes``, and the classes.

    Without ``classes``, those of the training split, they are the distinct names: sorted as integers if all of them are
    integers, else alphabetically. A name that is missing from ``classes`` raises an InputError.
    """
    if classes is None:
        distinct = set(names)
        are_integers = all(re.fullmatch(r"-?[0-9]+", name) for name in distinct)
        classes = sorted(distinct, key=int) if are_integers else sorted(distinct)
    elif unknown := sorted(set(names) - set(classes)):
        raise InputError(f"data: the test split has classes that the training split lacks: {', '.join(unknown[:5])}")
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[name] for name in names], dtype=np.int64), classes
