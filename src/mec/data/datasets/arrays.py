"""Images in arrays: .npz files, and datasets opened by name: scikit-learn's digits, CIFAR, Fashion-MNIST and STL-10."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import ArrayDataset, Splits, encode_labels, random_split
from mec.data.datasets.folder import open_folder
from mec.data.pixels import MAX_CHANNELS
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
        dataset = ArrayDataset(name, images, bunch.target.astype(np.int64), [str(c) for c in bunch.target_names])
        train, test = random_split(dataset, DIGITS_TEST_FRACTION)
        return Splits(dataset.subset(train), dataset.subset(test))
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

    def open_split(**split: Any) -> ArrayDataset:
        data: Any = getattr(torchvision.datasets, class_name)(str(root), download=download, **split)
        if name != "stl10":
            images, labels = _to_nhwc(np.asarray(data.data), class_name), np.asarray(data.targets, dtype=np.int64)
            return ArrayDataset(class_name, images, labels, [str(c) for c in data.classes])
        images = np.ascontiguousarray(data.data.transpose(0, 2, 3, 1))
        if split["split"] == "unlabeled":
            return ArrayDataset(name, images)
        return ArrayDataset(name, images, np.asarray(data.labels, dtype=np.int64), list(data.classes))

    if name == "stl10":
        return Splits(open_split(split="train"), open_split(split="test"), open_split(split="unlabeled"))
    return Splits(open_split(train=True), open_split(train=False))


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
        dataset = ArrayDataset(path.stem, _to_nhwc(arrays[image_key], f"{path}, {image_key}"))
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


def _to_nhwc(array: NDArray[Any], title: str) -> NDArray[Any]:
    """Check that an array holds images and return it as (n, height, width, channels); ``title`` names it in errors."""
    expected, actual = "numeric images (n, height, width[, channels])", f"{array.dtype} of shape {array.shape}"
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype.kind not in "buif" or array.ndim != 4 or array.shape[-1] > MAX_CHANNELS or not array.size:
        raise InputError(f"data: {title}: expected {expected}, got {actual}")
    return array
