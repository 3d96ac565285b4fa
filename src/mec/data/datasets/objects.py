"""Datasets given as objects: torchvision's, torch's, Hugging Face's, a user's own, arrays, and splits of them."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from mec.data.dataset import (
    ArrayDataset,
    ImageDataset,
    Indices,
    Labels,
    data_name,
    is_image_dataset,
    label_of,
    log_progress,
    select_labels,
)
from mec.data.datasets.arrays import to_nhwc
from mec.data.datasets.huggingface import TABLE_LABEL_COLUMNS, open_table_split
from mec.data.datasets.items import (
    NO_LABEL,
    VIEWS_HINT,
    as_array,
    describe_type,
    image_of,
    image_part,
    label_part,
    load_item,
    plain_label,
)
from mec.data.datasets.lists import find_column
from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError
from mec.data.splits import (
    Splits,
    add_to_layout,
    clean_labels,
    find_split_names,
    label_names,
    open_named_splits,
    set_labels,
)
from mec.errors import InputError

LABEL_ATTRIBUTES = ("targets", "labels", "y")  # one value per item, in datasets of torchvision and others
CLASS_ATTRIBUTES = ("classes", "categories")
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
    if _is_table(data) and data.format["type"] != "custom" and len(data):
        # other formats, such as torch, change the type of an image and not its pixels
        return open_table_split(name, data.with_format(None), classes)
    index, item = _first_image(data, name)
    dataset = ObjectDataset(name, data, np.arange(len(data)), paths=_per_item(data, _paths))
    dataset.layout = f"{name}, images {describe_type(image_part(item))}{_describe_randomness(data, index)}"
    _read_labels(dataset, index, label_part(item), classes, skip_labels)
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
    _set_names(dataset, list(labels), None, classes)
    return dataset


def _is_table(data: Any) -> bool:
    datasets = sys.modules.get("datasets")  # imported already if ``data`` is one of its objects
    return datasets is not None and isinstance(data, datasets.Dataset)


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
        if np.ndim(second) > 1 and describe_type(first) == describe_type(second):  # not those of a mask
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


def _per_item(data: Any, find: Callable[[Any], list[Any] | None]) -> list[Any] | None:
    """Return the value of each item by ``find(dataset)``, through the indices of subsets and joined datasets."""
    if isinstance(data, Subset):
        values = _per_item(data.dataset, find)
        return None if values is None else [values[i] for i in data.indices]
    if isinstance(data, ConcatDataset):
        joined: list[Any] = []
        for part in data.datasets:
            if (values := _per_item(part, find)) is None:
                return None
            joined += values
        return joined
    return find(data)


def _paths(data: Any) -> list[str] | None:
    """Return the paths of a list of paths, or of torchvision's ImageFolder."""
    samples = data if isinstance(data, list) else getattr(data, "samples", None)
    if not isinstance(samples, list) or len(samples) != len(data):
        return None
    paths = [sample[0] if isinstance(sample, tuple | list) and sample else sample for sample in samples]
    return [os.fspath(path) for path in paths] if all(isinstance(path, str | os.PathLike) for path in paths) else None


def _label_attribute(data: Any) -> tuple[str, list[Any]] | None:
    """Return name and values of the attribute, or the column of a table, with the labels of all items."""
    if _is_table(data):
        position = find_column(data.column_names, TABLE_LABEL_COLUMNS)
        column = None if position is None else data.column_names[position]
        return None if column is None else (column, list(data.with_format(None)[column]))
    for name in LABEL_ATTRIBUTES:
        values: Any = getattr(data, name, None)
        if hasattr(values, "__len__") and not isinstance(values, str | Mapping) and len(values) == len(data):
            return name, list(values)
    return None


def _class_names(data: Any) -> list[str] | None:
    if isinstance(data, Subset):
        return _class_names(data.dataset)
    if isinstance(data, ConcatDataset):
        first, *others = map(_class_names, data.datasets)
        return first if all(other == first for other in others) else None
    if _is_table(data):
        position = find_column(data.column_names, TABLE_LABEL_COLUMNS)
        return None if position is None else getattr(data.features[data.column_names[position]], "names", None)
    names = next((v for name in CLASS_ATTRIBUTES if isinstance(v := getattr(data, name, None), list | tuple)), None)
    # torchvision's ImageNet has several names for a class
    return None if names is None else [", ".join(n) if isinstance(n, tuple) else str(n) for n in names]


def _read_labels(dataset: ObjectDataset, index: int, label: Any, classes: list[str] | None, skip_labels: bool) -> None:
    """Set the labels from an attribute that agrees with ``label``, that of item ``index``; else from the items."""
    data, names = dataset.data, []

    def find(part: Any) -> list[Any] | None:
        name, values = _label_attribute(part) or ("", None)
        names.append(name)
        return values

    values = _per_item(data, find)
    # a target_transform, or a dataset around another, may change the labels of the items
    if values is not None and (label is NO_LABEL or plain_label(values[index]) == plain_label(label)):
        add_to_layout(dataset, f"labels from {' and '.join(dict.fromkeys(names))}")
    elif label is NO_LABEL:
        return
    elif skip_labels:
        add_to_layout(dataset, "labels of the items not read")
        return
    else:
        add_to_layout(dataset, "labels from the items")
        values = [_item_label(data, row) for row in log_progress(range(len(data)), "reading labels")]
    _set_names(dataset, values, _class_names(data), classes)


def _item_label(data: Any, index: int) -> Any:
    try:
        label = label_part(load_item(data, index, seed=index))
    except CorruptImageError:  # counted when the image is loaded
        return None
    return None if label is NO_LABEL else label


def _set_names(
    dataset: ArrayDataset | ObjectDataset, values: list[Any], own: list[str] | None, classes: list[str] | None
) -> None:
    """Set labels from a value for each image: a class name or number, an index into the classes of its ``own`` dataset,
    or a one-hot vector. ``classes`` are those of the training split."""
    labels = [plain_label(value) for value in values]
    try:
        if other := next((v for v in labels if not isinstance(v, str | int | float | tuple | None)), None):
            raise InputError(f"expected one label per image, got {describe_type(other)}")
        if lengths := {len(label) for label in labels if isinstance(label, tuple)}:
            if len(lengths) > 1 or not all(isinstance(label, tuple) for label in labels):
                raise InputError("expected one label per image, got several of some")
            names = label_names(np.array(labels))
        else:
            names = clean_labels(labels)
    except InputError as error:
        add_to_layout(dataset, f"not used: {error}")
        return
    present = {name for name in names if name is not None}
    if own and all(name.isdigit() and int(name) < len(own) for name in present) and len({*own}) == len(own):
        names = [None if name is None else own[int(name)] for name in names]
    elif not present <= {*(own or ())}:
        own = None
    set_labels(dataset, names, classes or own)
