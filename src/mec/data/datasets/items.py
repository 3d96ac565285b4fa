"""Items of map-style datasets: how one is loaded, its image, and its label."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mec.data.dataset import read_file
from mec.data.datasets.huggingface import IMAGE_COLUMNS, TABLE_LABEL_COLUMNS
from mec.data.datasets.lists import PATH_COLUMNS, find_column
from mec.data.pixels import CorruptImageError, channels_last
from mec.data.rng import seeded_generators

NO_LABEL = object()  # the label of an item that has no place for one; None is a missing label
EXPECTED = "a PIL image, an array, a tensor, encoded bytes or a path; alone, as (image, label), or in a dict"
VIEWS_HINT = "views are made in training"

_generators = threading.RLock()
"""Held while the global random number generators have the seed of an item: all threads share them."""


def load_item(data: Any, index: int, seed: int) -> Any:
    """Return item ``index`` with the global random number generators of the CPU seeded, and restore their states.

    Raises:
        CorruptImageError: the dataset raises any exception.
    """
    with _generators, seeded_generators(seed):
        try:
            return data[index]
        except Exception as error:
            reason = " ".join(str(error).split())
            raise CorruptImageError(f"{type(error).__name__}{reason and f': {reason}'}") from error


def image_part(item: Any) -> Any:
    """Return the image of an item as the dataset gives it: the first of a tuple, a key such as "image" of a dict, or
    the item itself."""
    if isinstance(item, Mapping) and "bytes" not in item:
        position = find_column(list(map(str, item)), (*IMAGE_COLUMNS, *PATH_COLUMNS))
        return item if position is None else list(item.values())[position]
    return item[0] if isinstance(item, tuple | list) and item else item


def label_part(item: Any) -> Any:
    """Return the label of an item as the dataset gives it: the second of a tuple, a key such as "label"; NO_LABEL."""
    if isinstance(item, Mapping):
        position = find_column(list(map(str, item)), TABLE_LABEL_COLUMNS)
        return NO_LABEL if position is None else list(item.values())[position]
    return item[1] if isinstance(item, tuple | list) and len(item) > 1 else NO_LABEL


def image_of(item: Any) -> bytes | NDArray[Any] | Image.Image:
    """Return the image of an item encoded, as an array (h, w[, c]) or as a PIL image; raise CorruptImageError."""
    value = image_part(item)
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):  # an image that datasets has not decoded
        value = value.get("bytes") or value.get("path")
    if isinstance(value, Image.Image | bytes):
        return value
    if (array := as_array(value)) is not None and array.dtype.kind in "buif":
        return channels_last(array)
    if isinstance(value, str | os.PathLike):
        return read_file(Path(value))
    if isinstance(value, tuple | list) and value and isinstance(value[0], Image.Image | torch.Tensor | np.ndarray):
        raise CorruptImageError(f"expected one image, got {len(value)} views: {VIEWS_HINT}")
    keys = f" with the keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
    raise CorruptImageError(f"expected {EXPECTED}, got {describe_type(value)}{keys}")


def as_array(value: Any) -> NDArray[Any] | None:
    """Return an array or a tensor as an array; None for other objects."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # numpy has no bfloat16
        array: NDArray[Any] = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
        return array
    return value if isinstance(value, np.ndarray) else None


def plain_label(label: Any) -> Any:
    """Return a label as a number or text, a vector as a tuple of numbers; other objects as they are."""
    is_vector = isinstance(label, list) and all(isinstance(value, int | float | np.generic) for value in label)
    array = as_array(np.asarray(label) if is_vector or isinstance(label, np.generic) else label)
    if array is None:
        return label
    return array.reshape(-1)[0].item() if array.size == 1 else tuple(array.reshape(-1).tolist())


def describe_type(value: Any) -> str:
    """Return what an image or a label is, such as "PIL RGB" or "tensor float32"."""
    if isinstance(value, Image.Image):
        return f"PIL {value.mode}"
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{'tensor' if isinstance(value, torch.Tensor) else 'array'} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
