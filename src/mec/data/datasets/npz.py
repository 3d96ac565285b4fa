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


def to_nhwc(array: NDArray[Any], title: str) -> NDArray[Any]:
    """Check that an array holds images and return it as (n, height, width, channels).

    Args:
        array: (n, height, width) or (n, height, width, channels), numbers of any type.
        title: name of the array in errors.
    """
    if array.dtype.kind not in "buif":
        raise InputError(f"data: {title}: expected numeric images, got {array.dtype}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] > MAX_CHANNELS or not array.size:
        raise InputError(f"data: {title}: expected images (n, height, width[, channels]), got shape {array.shape}")
    return array


def open_npz(path: Path) -> Splits:
    """Open ``images`` and ``labels``, or MedMNIST's ``train_images``, ``train_labels``, ``test_images`` ..."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise InputError(f"data: cannot read {path} as an .npz file ({error})") from error

    def open_split(image_keys: tuple[str, ...], label_keys: tuple[str, ...]) -> ArrayDataset | None:
        image_key = next((k for k in image_keys if k in arrays), None)
        if image_key is None:
            return None
        dataset = ArrayDataset(path.stem, to_nhwc(arrays[image_key], f"{path}, {image_key}"))
        label_key = next((k for k in label_keys if k in arrays), None)
        if label_key is not None:
            values = arrays[label_key].reshape(len(arrays[label_key]), -1)[:, 0]
            if len(values) != len(dataset):
                raise InputError(f"data: {path}, {label_key}: expected {len(dataset)} labels, got {len(values)}")
            dataset.labels, dataset.classes = encode_labels([str(v) for v in values])
        return dataset

    unsplit = open_split(("images", "x", "arr_0"), ("labels", "y", "arr_1"))
    train = open_split(("train_images", "x_train"), ("train_labels", "y_train")) or unsplit
    if train is None:
        raise InputError(
            f"data: {path}: expected an array images, train_images or x_train, got {', '.join(arrays) or 'no array'}"
        )
    test = open_split(("test_images", "x_test"), ("test_labels", "y_test"))
    if test is not None and test.classes != train.classes:
        raise InputError(f"data: {path}: expected the same classes in the training and test labels")
    return Splits(train, test)
