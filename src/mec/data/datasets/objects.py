"""Datasets given as objects: torchvision's, torch's, Hugging Face's, a user's own, arrays, and splits of them."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from mec.data.dataset import (
    ArrayDataset,
    ImageDataset,
    Indices,
    Labels,
    data_name,
    is_image_dataset,
    label_of,
    select_labels,
)
from mec.data.datasets.arrays import to_nhwc
from mec.data.datasets.huggingface import open_table_split
from mec.data.datasets.items import (
    VIEWS_HINT,
    as_array,
    describe_type,
    image_of,
    image_part,
    label_part,
    load_item,
)
from mec.data.datasets.object_labels import is_table, paths_of, per_item, read_labels, set_names
from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError
from mec.data.splits import (
    Splits,
    add_to_layout,
    find_split_names,
    open_named_splits,
    set_labels,
)
from mec.errors import InputError

NUM_TRIED = 8  # items that are tried until one is an image
NUM_SEEDS = 3  # under which an item is loaded again, to see whether it is random


@dataclass
class ObjectDataset(ImageDataset):
    """The items ``rows`` (n,) of a map-style dataset. An item that is random is the same in every epoch and process:
    the generators of torch, numpy and Python are seeded by its index while it is loaded."""

    name: str
    data: Any
    rows: Indices
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    layout: str = ""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    paths: Sequence[str] | None = None  # of all items of ``data``, if they are known

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> bytes | NDArray[Any] | Image.Image:
        row = int(self.rows[index])
        return image_of(load_item(self.data, row, seed=row))

    def title(self, index: int) -> str:
        row = int(self.rows[index])
        return f"{self.name}[{row}]" if self.paths is None else self.paths[row]

    def subset(self, indices: Indices) -> ObjectDataset:
        return replace(self, rows=self.rows[indices], labels=select_labels(self, indices))


def open_object(data: Any, skip_labels: bool = False) -> Splits:
    """Open a dataset that is an object, or a dict or a tuple of several, as ``mec.open_dataset``.

    With ``skip_labels``, labels that only the items have are not read: this loads every image.
    """
    if isinstance(data, Splits):
        return data
    if isinstance(data, tuple) and _arrays(data) is None:
        if len(data) != 2:
            raise InputError(f"data: expected (train, test) or (images, labels), got a tuple of {len(data)}")
        data = {"train": data[0], "test": data[1]}
    if not isinstance(data, Mapping):
        return Splits(_open_split(data, None, skip_labels))
    train, tests, unlabeled = find_split_names(map(str, data))
    if train is None and not tests and unlabeled is None:
        raise InputError(f"data: expected a dict of splits, such as train and test, got {', '.join(map(str, data))}")
    return open_named_splits(lambda source, classes: _open_split(source, classes, skip_labels), dict(data))


def _open_split(data: Any, classes: list[str] | None, skip_labels: bool) -> ImageDataset:
    name = data_name(data)
    if is_image_dataset(data):
        return _with_classes(data, classes)
    if isinstance(data, str | os.PathLike):
        raise InputError(f"data: expected objects as splits, got the path {name}; open it with mec.open_dataset")
    if (arrays := _arrays(data)) is not None:
        return _open_arrays(name, *arrays, classes)
    if is_table(data) and data.format["type"] != "custom" and len(data):
        # other formats, such as torch, change the type of an image and not its pixels
        return open_table_split(name, data.with_format(None), classes)
    index, item = _first_image(data, name)
    dataset = ObjectDataset(name, data, np.arange(len(data)), paths=per_item(data, paths_of))
    dataset.layout = f"{name}, images {describe_type(image_part(item))}{_describe_randomness(data, index)}"
    read_labels(dataset, index, label_part(item), classes, skip_labels)
    return dataset


def _with_classes(dataset: ImageDataset, classes: list[str] | None) -> ImageDataset:
    """Return a test split with labels that are indices into the classes of the training split."""
    if classes is None or dataset.labels is None or dataset.classes == classes:
        return dataset
    names = [label_of(dataset, index) for index in range(len(dataset))]
    dataset = copy.copy(dataset)
    dataset.labels, dataset.classes = None, []
    set_labels(dataset, names, classes)
    return dataset


def _arrays(data: Any) -> tuple[NDArray[Any], NDArray[Any] | None] | None:
    """Return the images and labels, if any, of an array or a tensor, (images, labels) or a TensorDataset; None for
    other objects."""
    parts = list(data.tensors) if isinstance(data, TensorDataset) else list(data) if isinstance(data, tuple) else [data]
    images = as_array(parts[0]) if parts else None
    if images is None or images.dtype.kind not in "buif" or len(parts) > 2:
        return None
    if len(parts) == 1:
        return images, None
    labels = np.asarray(parts[1]) if isinstance(parts[1], list) else as_array(parts[1])
    if labels is not None and labels.ndim > 2 and isinstance(data, TensorDataset):
        raise InputError(f"data: expected one label per image, got {labels.shape[1:]}; {VIEWS_HINT}")
    return None if labels is None or labels.ndim > 2 else (images, labels)


def _open_arrays(
    name: str, images: NDArray[Any], labels: NDArray[Any] | None, classes: list[str] | None
) -> ArrayDataset:
    dataset = ArrayDataset(name, to_nhwc(images, name), layout=f"array {images.dtype} {images.shape}")
    if labels is None:
        return dataset
    if len(labels) != len(images):
        raise InputError(f"data: expected {len(images)} labels beside the images of {name}, got {len(labels)}")
    add_to_layout(dataset, f"labels {labels.dtype}")
    set_names(dataset, list(labels), None, classes)
    return dataset


def _first_image(data: Any, name: str) -> tuple[int, Any]:
    """Return index and content of the first item that is an image; an InputError if none is."""
    is_iterable = hasattr(data, "__iter__") and not hasattr(data, "__getitem__")
    if isinstance(data, IterableDataset) or is_iterable:
        raise InputError(
            f"data: {name} can only be read in order; expected a dataset with __len__ and __getitem__: make a list of "
            "its items, write them to a folder or to WebDataset shards, or load it without streaming"
        )
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InputError(f"data: expected a path, a name, or a dataset with __len__ and __getitem__, got {name}")
    if not len(data):
        raise InputError(f"data: {name} has length 0")
    tried = np.unique(np.linspace(0, len(data) - 1, min(NUM_TRIED, len(data))).astype(int)).tolist()
    reason = ""
    for index in tried:
        try:
            item = load_item(data, index, seed=index)
            open_image(image_of(item))
        except CorruptImageError as error:
            reason = reason or f"item {index}: {error}"
            continue
        first, second = image_part(item), label_part(item)
        is_image = isinstance(second, Image.Image) or getattr(second, "ndim", 0) > 1
        if is_image and describe_type(first) == describe_type(second):  # a mask has another type
            raise InputError(f"data: expected items with one image, got {describe_type(first)} twice: {VIEWS_HINT}")
        return index, item
    raise InputError(f"data: none of {len(tried)} items of {name} is an image; {reason}")


def _describe_randomness(data: Any, index: int) -> str:
    """Return what a user must know of items that are random, "" of others."""

    def content(seed: int) -> bytes:
        image = image_of(load_item(data, index, seed))
        return image if isinstance(image, bytes) else np.asarray(image).tobytes()

    with contextlib.suppress(CorruptImageError):
        first = content(0)
        if content(0) != first:
            return ", ITEMS ARE RANDOM and not by the generators of torch, numpy or Python: a resumed run differs"
        if any(content(seed) != first for seed in range(1, NUM_SEEDS + 1)):
            return ", random transforms of the items seeded by their index: the same in every epoch"
    return ""
