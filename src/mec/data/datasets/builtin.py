"""Built-in datasets, opened by name: scikit-learn's digits and torchvision's CIFAR, Fashion-MNIST and STL-10."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mec.data.dataset import ArrayDataset
from mec.data.datasets.folder import open_folder
from mec.data.datasets.npz import to_nhwc
from mec.data.datasets.splits import Splits, random_split
from mec.errors import InputError

TORCHVISION_CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}
DIGITS_TEST_FRACTION = 0.25

OpenTorchvision = Callable[[str, bool], Splits]
"""(root, download) -> the dataset."""


def data_home() -> Path:
    """Return the folder of built-in datasets, video frames and shard labels: ``MEC_DATA``, or ~/.cache/mec."""
    return Path(os.environ.get("MEC_DATA", "~/.cache/mec")).expanduser()


def is_torchvision_cifar(folder: Path) -> bool:
    """Return whether torchvision has unpacked CIFAR-10 or CIFAR-100 in ``folder``."""
    return (folder / "cifar-10-batches-py").is_dir() or (folder / "cifar-100-python").is_dir()


def open_torchvision_cifar(folder: Path) -> Splits:
    """Open the CIFAR-10 or CIFAR-100 that torchvision has unpacked in ``folder``."""
    name = "cifar10" if (folder / "cifar-10-batches-py").is_dir() else "cifar100"
    return _torchvision_opener(TORCHVISION_CLASSES[name])(str(folder), False)


def _open_digits() -> Splits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    dataset = ArrayDataset("digits", images, bunch.target.astype(np.int64), [str(c) for c in bunch.target_names])
    train, test = random_split(dataset, DIGITS_TEST_FRACTION)
    return Splits(dataset.subset(train), dataset.subset(test))


def _torchvision_opener(class_name: str) -> OpenTorchvision:
    def open_from(root: str, download: bool) -> Splits:
        import torchvision.datasets

        def open_split(train: bool) -> ArrayDataset:
            data: Any = getattr(torchvision.datasets, class_name)(root, train=train, download=download)
            images = to_nhwc(np.asarray(data.data), class_name)
            labels = np.asarray(data.targets, dtype=np.int64)
            return ArrayDataset(class_name, images, labels, [str(c) for c in data.classes])

        return Splits(open_split(True), open_split(False))

    return open_from


def _open_stl10(root: str, download: bool) -> Splits:
    import torchvision.datasets

    def open_split(split: str) -> ArrayDataset:
        data: Any = torchvision.datasets.STL10(root, split=split, download=download)
        images = np.ascontiguousarray(data.data.transpose(0, 2, 3, 1))
        if split == "unlabeled":
            return ArrayDataset("stl10", images)
        return ArrayDataset("stl10", images, np.asarray(data.labels, dtype=np.int64), list(data.classes))

    return Splits(open_split("train"), open_split("test"), open_split("unlabeled"))


def _find_or_download(name: str, open_from: OpenTorchvision) -> Callable[[], Splits]:
    def open_builtin() -> Splits:
        home = data_home()
        if (home / name / "train").is_dir():
            return open_folder(home / name)
        try:
            return open_from(str(home), True)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"data: {name} is not in {home} and cannot be downloaded ({reason}); copy torchvision's files, or "
                f"{name}/train/<class>/*.png and {name}/test/..., to that folder, or set MEC_DATA to the folder with it"
            ) from error

    return open_builtin


BUILTIN_DATASETS: dict[str, Callable[[], Splits]] = {
    "digits": _open_digits,
    **{name: _find_or_download(name, _torchvision_opener(cls)) for name, cls in TORCHVISION_CLASSES.items()},
    "stl10": _find_or_download("stl10", _open_stl10),
}
