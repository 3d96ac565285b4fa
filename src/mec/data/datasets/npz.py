"""Images in an .npz file of arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import ArrayDataset
from mec.data.datasets.splits import Splits, encode_labels
from mec.data.pixels import MAX_CHANNELS
from mec.errors import InputError


def to_images(array: NDArray[Any], where: str) -> NDArray[Any]:
    """(n, h, w) or (n, h, w, c) numbers -> (n, h, w, c)."""
    if array.dtype.kind not in "buif":
        raise InputError(f"{where}: expected images as numbers, got {array.dtype}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] > MAX_CHANNELS or not array.size:
        raise InputError(f"{where}: expected images (n, height, width[, channels]), got shape {array.shape}")
    return array


def open_npz(path: Path) -> Splits:
    """``images`` and ``labels``; or ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` (MedMNIST)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise InputError(f"data: {path} cannot be read as an .npz file ({error})") from error

    def part(image_keys: tuple[str, ...], label_keys: tuple[str, ...]) -> ArrayDataset | None:
        key = next((k for k in image_keys if k in arrays), None)
        if key is None:
            return None
        dataset = ArrayDataset(path.stem, to_images(arrays[key], f"{path}, {key}"))
        label_key = next((k for k in label_keys if k in arrays), None)
        if label_key is not None:
            values = arrays[label_key].reshape(len(arrays[label_key]), -1)[:, 0]
            if len(values) != len(dataset):
                raise InputError(f"{path}, {label_key}: expected {len(dataset)} labels, got {len(values)}")
            dataset.labels, dataset.classes = encode_labels([str(v) for v in values])
        return dataset

    whole = part(("images", "x", "arr_0"), ("labels", "y", "arr_1"))
    train = part(("train_images", "x_train"), ("train_labels", "y_train")) or whole
    if train is None:
        raise InputError(
            f"data: {path} has none of images, train_images, x_train (it has {', '.join(arrays) or 'nothing'})"
        )
    test = part(("test_images", "x_test"), ("test_labels", "y_test"))
    if test is not None and test.classes != train.classes:
        raise InputError(f"data: {path} has other labels for testing than for training")
    return Splits(train, test)
