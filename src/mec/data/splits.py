"""Splits of a dataset for training and testing, and the labels of their images."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import (
    UNLABELED,
    DataLike,
    ImageDataset,
    Indices,
    Labels,
    count_skipped,
    data_name,
    describe,
    describe_skipped,
)
from mec.data.rng import Stream, uniforms
from mec.errors import InputError

logger = logging.getLogger("mec")

T = TypeVar("T")

TRAIN_NAMES = ("train", "training", "trn")
TEST_NAMES = ("test", "testing", "tst", "val", "valid", "validation", "dev", "eval")
UNLABELED_NAMES = ("unlabeled", "unsupervised")
"""Names of splits, in any case, also followed by "set", "data" or "images" (Training_Set). The first of the test splits
that has labels is used."""
PART_NAMES = frozenset("images imgs jpegimages masks annotations labels segmentation query gallery holdout".split())
PART_PATTERN = re.compile(r"(fold|split|part)[ _-]?\d+")
"""Class names that are rather names of splits, or of files of a dataset."""
TEST_FRACTION = 0.2  # of each class, in the test split of a dataset without its own splits
MAX_NAMED_CLASSES = 5  # in a message


class Splits:
    """Training images and, where the dataset has them, test images and unlabeled images. The latter two are opened when
    they are used, so that a split that is not used cannot refuse a run."""

    def __init__(
        self,
        train: ImageDataset,
        open_test: Callable[[], ImageDataset] | None = None,
        open_unlabeled: Callable[[], ImageDataset] | None = None,
    ) -> None:
        self.train, self._open_test, self._open_unlabeled = train, open_test, open_unlabeled

    @cached_property
    def test(self) -> ImageDataset | None:
        return self._open_test() if self._open_test else None

    @cached_property
    def unlabeled(self) -> ImageDataset | None:
        return self._open_unlabeled() if self._open_unlabeled else None

    @property
    def all(self) -> dict[str, ImageDataset]:
        """Every split by name: train and, where the dataset has them, test and unlabeled."""
        named = {"train": self.train, "test": self.test, "unlabeled": self.unlabeled}
        return {name: dataset for name, dataset in named.items() if dataset is not None}

    def select(self, split: str) -> ImageDataset:
        """Return the split "train", "test", "all" or "pretrain" (see ``open_dataset``)."""
        if split == "pretrain":
            return self.unlabeled or self.train
        if split == "all":
            return self.train
        if self.test is not None:
            return _labeled(self.train if split == "train" else self.test)
        dataset = _labeled(self.train)
        train, test = random_split(dataset, TEST_FRACTION)
        part = dataset.subset(train if split == "train" else test)
        add_to_layout(part, f"{'without a' if split == 'train' else 'a'} random {TEST_FRACTION:.0%} of each class")
        return part


def log_splits(data: DataLike, splits: dict[str, ImageDataset]) -> None:
    """Log how each split was read: counts, layout, and what was skipped."""
    title, lines = data_name(data), [f"{name} {describe(dataset)}".strip() for name, dataset in splits.items()]
    first = describe_skipped(next(iter(splits.values())))
    if first:  # both parts of a random split skip the same
        lines[1:] = [line.removesuffix(f"; {first}") for line in lines[1:]]
    logger.info(f"{title}: {' | '.join(lines)}")
    for dataset in splits.values():
        if names := doubtful_classes(dataset):
            logger.warning(f"{title}: CLASSES LOOK LIKE PARTS OF A DATASET: {', '.join(names)}")
            break


def doubtful_classes(dataset: ImageDataset) -> list[str]:
    """Return the classes whose names are rather those of splits, or of folders of annotations."""
    words = [name.lower() for name in dataset.classes]
    known = {*TRAIN_NAMES, *TEST_NAMES, *UNLABELED_NAMES} if len(words) < 4 else set()  # a train may be a class
    return [
        name
        for name, word in zip(dataset.classes, words, strict=True)
        if word in PART_NAMES or PART_PATTERN.fullmatch(word) or split_word(word) in known
    ]


def split_word(name: str) -> str:
    """Return the word that names a split: "training" for "Training_Set"."""
    return re.sub(r"[ _-]?(set|data|images|imgs)$", "", name.lower()).replace("lled", "led")  # British spelling


def find_split_names(names: Iterable[str]) -> tuple[str | None, list[str], str | None]:
    """Return the names of the training split, the test splits in order of preference, and the unlabeled split."""
    by_name: dict[str, str] = {}
    for name in sorted(names):
        by_name.setdefault(split_word(name), name)
    train, test, unlabeled = (
        [by_name[name] for name in group if name in by_name] for group in (TRAIN_NAMES, TEST_NAMES, UNLABELED_NAMES)
    )
    return next(iter(train), None), test, next(iter(unlabeled), None)


def open_named_splits(open_split: Callable[[T, list[str] | None], ImageDataset], sources: dict[str, T]) -> Splits:
    """Open the splits in ``sources`` (name -> argument of ``open_split``) by ``open_split(source, classes)``.

    The training split is the one with such a name, or else the first. The test split gets its classes; of several test
    splits, it is the first with labels. Splits that are not used are counted as skipped.
    """
    train_name, test_names, unlabeled_name = find_split_names(sources)
    train_name = train_name or next(iter(sources))
    test_names = [name for name in test_names if name != train_name]
    train = open_split(sources[train_name], None)

    def open_test() -> ImageDataset:
        opened = {}
        for name in test_names:
            opened[name] = open_split(sources[name], train.classes or None)
            if train.labels is None or opened[name].labels is not None:
                break
        labeled = [name for name, dataset in opened.items() if dataset.labels is not None]
        chosen = labeled[0] if labeled else test_names[0]
        count_skipped(opened[chosen], "other splits", (name for name in test_names if name != chosen))
        return opened[chosen]

    used = {train_name, *test_names, unlabeled_name}
    count_skipped(train, "other splits", (name for name in sources if name not in used))
    return Splits(
        train,
        open_test if test_names else None,
        None if unlabeled_name is None else lambda: open_split(sources[unlabeled_name], None),
    )


def random_split(dataset: ImageDataset, fraction: float) -> tuple[Indices, Indices]:
    """Split a dataset at random, stratified by class, the same way in every call.

    Return sorted indices of both parts. The second has ``fraction`` of each class, at least one image of a class with
    several. Images without labels are one class.
    """
    order = uniforms(0, 0, np.arange(len(dataset)), 1, Stream.TRAIN_TEST_SPLIT)[:, 0].argsort()
    labels = np.zeros(len(dataset), dtype=np.int64) if dataset.labels is None else dataset.labels
    selected: list[Indices] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        selected.append(members[: max(1, round(fraction * len(members)))] if len(members) > 1 else members[:0])
    second = np.sort(np.concatenate(selected))
    return np.setdiff1d(np.arange(len(dataset)), second), second


def _labeled(dataset: ImageDataset) -> ImageDataset:
    """Return the images with labels of a dataset, or all if none has one."""
    if dataset.labels is None or (dataset.labels != UNLABELED).all():
        return dataset
    unlabeled = np.flatnonzero(dataset.labels == UNLABELED)
    labeled = dataset.subset(np.flatnonzero(dataset.labels != UNLABELED))
    count_skipped(labeled, "images without label", map(dataset.title, unlabeled.tolist()))
    return labeled


def clean_labels(names: Iterable[Any]) -> list[str | None]:
    """Return the class names in a column of labels, as text: None where one is missing (None, NaN, "").

    A single negative number, -1, among non-negative integers marks a missing label, too. Whole numbers are written
    without decimals: a column with missing numbers has floats.
    """
    cleaned = [
        None if name is None or str(name).strip().lower() in ("", "nan") else str(name).strip() for name in names
    ]
    present = {name for name in cleaned if name is not None}
    if all(re.fullmatch(r"-?[0-9]+(\.0+)?", name) for name in present):
        cleaned = [name and name.partition(".")[0] for name in cleaned]
        if {name for name in cleaned if name and name.startswith("-")} == {"-1"}:
            cleaned = [None if name == "-1" else name for name in cleaned]
    return cleaned


def set_labels(dataset: ImageDataset, names: Sequence[str | None], classes: list[str] | None = None) -> None:
    """Set labels and classes of a dataset from the class name of each image; None or "" for an image without label.

    ``classes`` are those of the training split. The labels of a test split with a class that they lack are not used:
    only an evaluation needs them, and refuses them by the layout.
    """
    names = [name or None for name in names]
    if unknown := sorted({name for name in names if name is not None} - set(classes or [])) if classes else []:
        shown = ", ".join(unknown[:MAX_NAMED_CLASSES]) + (", ..." if len(unknown) > MAX_NAMED_CLASSES else "")
        add_to_layout(dataset, f"labels not used: the training split lacks {len(unknown)} of its classes ({shown})")
    elif any(name is not None for name in names):
        dataset.labels, dataset.classes = encode_labels(names, classes)


def add_to_layout(dataset: ImageDataset, description: str) -> None:
    dataset.layout = ", ".join(filter(None, [dataset.layout, description]))


def encode_labels(names: Sequence[str | None], classes: list[str] | None = None) -> tuple[Labels, list[str]]:
    """Return indices (n,) of the class names of images in ``classes``, -1 for None, and the classes.

    Without ``classes`` they are the distinct names: sorted as integers if all are integers, else alphabetically.
    """
    if classes is None:
        distinct = {name for name in names if name is not None}
        are_integers = all(re.fullmatch(r"-?[0-9]+", name) for name in distinct)
        classes = sorted(distinct, key=int) if are_integers else sorted(distinct)
    index: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    return np.array([UNLABELED if name is None else index[name] for name in names], dtype=np.int64), classes


def label_names(values: NDArray[Any]) -> list[str | None]:
    """Return the class name of each image from an array of labels: (n,), (n, 1), or one-hot (n, classes).

    Missing values (NaN, "") are None. Raises InputError for other shapes, such as several labels per image.
    """
    values = values.reshape(len(values), -1)
    if values.shape[1] > 1:
        is_one_hot = values.dtype.kind in "buif" and ((values == 0) | (values == 1)).all()
        if not is_one_hot or not (values.sum(axis=1, dtype=np.int64) == 1).all():
            raise InputError(f"expected one label per image or one-hot labels, got {values.shape[1]} columns")
        values = values.argmax(axis=1)[:, None]
    column = values[:, 0]
    return clean_labels(np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column)
