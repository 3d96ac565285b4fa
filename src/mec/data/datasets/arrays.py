"""Images in arrays: .npz files, and datasets opened by name: scikit-learn's digits, CIFAR, Fashion-MNIST and STL-10."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import ArrayDataset, count_skipped
from mec.data.datasets.folder import open_folder
from mec.data.pixels import MAX_CHANNELS, is_channels_first
from mec.data.splits import Splits, add_to_layout, label_names, random_split, set_labels
from mec.errors import InputError

TORCHVISION_CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST", "stl10": "STL10"}
CIFAR_FOLDERS = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}  # unpacked by torchvision
BUILTIN_DATASETS = ("digits", *TORCHVISION_CLASSES)
DIGITS_TEST_FRACTION = 0.25


def data_home() -> Path:
    """Return the folder of built-in datasets, video frames and shard labels: ``MEC_DATA``, or ~/.cache/mec."""
    return Path(os.environ.get("MEC_DATA", "~/.cache/mec")).expanduser()


def open_builtin(name: str) -> Splits:
    """Open one of ``BUILTIN_DATASETS``; those of torchvision are downloaded to ``data_home()``, or found there."""
    if name == "digits":
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
        classes = [str(c) for c in bunch.target_names]
        dataset = ArrayDataset(name, images, bunch.target.astype(np.int64), classes, "scikit-learn's digits")
        train, test = map(dataset.subset, random_split(dataset, DIGITS_TEST_FRACTION))
        return Splits(train, lambda: test)
    home = data_home()
    if (home / name / "train").is_dir():
        return open_folder(home / name)
    try:
        return open_torchvision(name, home, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"data: {name} is not in {home} and cannot be downloaded ({reason}); copy torchvision's files, or "
            f"{name}/train/<class>/*.png and {name}/test/..., to that folder, or set MEC_DATA to the folder with it"
        ) from error


def open_torchvision(name: str, root: Path, download: bool = False) -> Splits:
    """Open the dataset that torchvision has unpacked, or unpacks, in ``root``."""
    import torchvision.datasets

    class_name = TORCHVISION_CLASSES[name]

    def open_split(split_name: str, **split: Any) -> ArrayDataset:
        data: Any = getattr(torchvision.datasets, class_name)(str(root), download=download, **split)
        layout = f"torchvision's {class_name}, {split_name}"
        if name != "stl10":
            images, labels = to_nhwc(np.asarray(data.data), class_name), np.asarray(data.targets, dtype=np.int64)
            return ArrayDataset(class_name, images, labels, [str(c) for c in data.classes], layout)
        images = np.ascontiguousarray(data.data.transpose(0, 2, 3, 1))
        if split_name == "unlabeled":
            return ArrayDataset(name, images, layout=layout)
        return ArrayDataset(name, images, np.asarray(data.labels, dtype=np.int64), list(data.classes), layout)

    if name == "stl10":
        opener = {split: partial(open_split, split, split=split) for split in ("train", "test", "unlabeled")}
        return Splits(opener["train"](), opener["test"], opener["unlabeled"])
    return Splits(open_split("train", train=True), partial(open_split, "test", train=False))


def open_npz(path: Path) -> Splits:
    """Open ``images`` and ``labels``, or MedMNIST's ``train_images``, ``train_labels``, ``test_images`` ..."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise InputError(f"data: cannot read {path} as an .npz file ({error})") from error

    def open_arrays(image_keys: tuple[str, ...], label_keys: tuple[str, ...]) -> ArrayDataset | None:
        image_key, label_key = (next((k for k in keys if k in arrays), None) for keys in (image_keys, label_keys))
        if image_key is None:
            return None
        images = to_nhwc(arrays[image_key], f"{path}, {image_key}")
        layout = f"array {image_key} {arrays[image_key].dtype} {arrays[image_key].shape}"
        if arrays[image_key].ndim == 4 and images.shape != arrays[image_key].shape:
            layout += " with channels first"
        dataset = ArrayDataset(path.stem, images, layout=layout)
        used.update((image_key, label_key))
        if label_key is not None:
            add_to_layout(dataset, f"labels {label_key}")
            if len(arrays[label_key]) != len(dataset):
                got = len(arrays[label_key])
                raise InputError(f"data: {path}, {label_key}: expected {len(dataset)} labels, got {got}")
            try:
                set_labels(dataset, label_names(arrays[label_key]), train.classes or None if train else None)
            except InputError as error:
                add_to_layout(dataset, f"not used: {error}")
        return dataset

    used: set[str | None] = set()
    train = None
    train = open_arrays(("train_images", "x_train"), ("train_labels", "y_train"))
    train = train or open_arrays(("images", "x", "arr_0"), ("labels", "y", "arr_1"))
    if train is None:
        raise InputError(
            f"data: {path}: expected an array images, train_images or x_train, got {', '.join(arrays) or 'no array'}"
        )
    test = open_arrays(
        ("test_images", "x_test", "val_images", "x_val"), ("test_labels", "y_test", "val_labels", "y_val")
    )
    count_skipped(train, "other arrays", (key for key in arrays if key not in used))
    return Splits(train, (lambda: test) if test else None)


def to_nhwc(array: NDArray[Any], title: str) -> NDArray[Any]:
    """Check that an array holds images and return it as (n, height, width, channels); ``title`` names it in errors."""
    expected, actual = "numeric images (n, height, width[, channels])", f"{array.dtype} of shape {array.shape}"
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4 and is_channels_first(array.shape[1:]):
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    if array.dtype.kind not in "buif" or array.ndim != 4 or array.shape[-1] > MAX_CHANNELS or not array.size:
        raise InputError(f"data: {title}: expected {expected}, got {actual}")
    return array
