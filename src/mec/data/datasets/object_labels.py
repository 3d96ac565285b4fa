"""Labels, class names and paths of all items of a dataset that is an object, where possible without loading them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from mec.data.dataset import ArrayDataset, log_progress
from mec.data.datasets.huggingface import TABLE_LABEL_COLUMNS
from mec.data.datasets.items import NO_LABEL, describe_type, label_part, load_item, plain_label
from mec.data.datasets.lists import find_column
from mec.data.pixels import CorruptImageError
from mec.data.splits import add_to_layout, clean_labels, label_names, set_labels
from mec.errors import InputError

if TYPE_CHECKING:
    from mec.data.datasets.objects import ObjectDataset

LABEL_ATTRIBUTES = ("targets", "labels", "y")  # one value per item, in datasets of torchvision and others
CLASS_ATTRIBUTES = ("classes", "categories")


def is_table(data: Any) -> bool:
    """Return whether an object is a ``datasets.Dataset``."""
    datasets = sys.modules.get("datasets")  # imported already if ``data`` is one of its objects
    return datasets is not None and isinstance(data, datasets.Dataset)


def per_item(data: Any, find: Callable[[Any], list[Any] | None]) -> list[Any] | None:
    """Return the value of each item by ``find(dataset)``, through the indices of subsets and joined datasets."""
    if isinstance(data, Subset):
        values = per_item(data.dataset, find)
        return None if values is None else [values[i] for i in data.indices]
    if isinstance(data, ConcatDataset):
        joined: list[Any] = []
        for part in data.datasets:
            if (values := per_item(part, find)) is None:
                return None
            joined += values
        return joined
    return find(data)


def paths_of(data: Any) -> list[str] | None:
    """Return the paths of all items of a list of paths, or of torchvision's ImageFolder."""
    samples = data if isinstance(data, list) else getattr(data, "samples", None)
    if not isinstance(samples, list) or len(samples) != len(data):
        return None
    paths = [sample[0] if isinstance(sample, tuple | list) and sample else sample for sample in samples]
    return [os.fspath(path) for path in paths] if all(isinstance(path, str | os.PathLike) for path in paths) else None


def _label_attribute(data: Any) -> tuple[str, list[Any]] | None:
    """Return name and values of the attribute, or the column of a table, with the labels of all items."""
    if is_table(data):
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
    if is_table(data):
        position = find_column(data.column_names, TABLE_LABEL_COLUMNS)
        return None if position is None else getattr(data.features[data.column_names[position]], "names", None)
    names = next((v for name in CLASS_ATTRIBUTES if isinstance(v := getattr(data, name, None), list | tuple)), None)
    # torchvision's ImageNet has several names for a class
    return None if names is None else [", ".join(n) if isinstance(n, tuple) else str(n) for n in names]


def read_labels(dataset: ObjectDataset, index: int, label: Any, classes: list[str] | None, skip_labels: bool) -> None:
    """Set the labels from an attribute that agrees with ``label``, that of item ``index``; else from the items."""
    data, names = dataset.data, []

    def find(part: Any) -> list[Any] | None:
        name, values = _label_attribute(part) or ("", None)
        names.append(name)
        return values

    values = per_item(data, find)
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
    set_names(dataset, values, _class_names(data), classes)


def _item_label(data: Any, index: int) -> Any:
    try:
        label = label_part(load_item(data, index, seed=index))
    except CorruptImageError:  # counted when the image is loaded
        return None
    return None if label is NO_LABEL else label


def set_names(
    dataset: ArrayDataset | ObjectDataset, values: list[Any], own: list[str] | None, classes: list[str] | None
) -> None:
    """Set labels from a value for each image: a class name or number, an index into the classes of its ``own`` dataset,
    or a one-hot vector. ``classes`` are those of the training split."""
    labels = [plain_label(value) for value in values]
    try:
        if others := [label for label in labels if not isinstance(label, str | int | float | tuple | None)]:
            raise InputError(f"expected one label per image, got {describe_type(others[0])}")
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
