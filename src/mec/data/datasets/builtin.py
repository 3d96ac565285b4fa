"""Sets of images that have a name: scikit-learn's digits, and those that torchvision knows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mec.data.dataset import ArrayDataset
from mec.data.datasets.folder import open_folder
from mec.data.datasets.npz import to_images
from mec.data.datasets.splits import Splits, random_split
from mec.errors import InputError


def data_home() -> Path:
    """Where named sets, frames of videos and counts of shards are kept: MEC_DATA, or ~/.cache/mec."""
    return Path(os.environ.get("MEC_DATA", "~/.cache/mec")).expanduser()


def _digits() -> Splits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    dataset = ArrayDataset("digits", images, bunch.target.astype(np.int64), [str(c) for c in bunch.target_names])
    train, test = random_split(dataset, 0.25)
    return Splits(dataset.subset(train), dataset.subset(test))


def is_torchvision_cifar(folder: Path) -> bool:
    return (folder / "cifar-10-batches-py").is_dir() or (folder / "cifar-100-python").is_dir()


def open_torchvision_cifar(folder: Path) -> Splits:
    """A folder in which torchvision has unpacked CIFAR-10 or CIFAR-100."""
    name = "cifar10" if (folder / "cifar-10-batches-py").is_dir() else "cifar100"
    return _cifar_like(TORCHVISION[name])(str(folder), False)


Build = Callable[[str, bool], Splits]


def _cifar_like(cls: str) -> Build:
    def build(root: str, download: bool) -> Splits:
        import torchvision.datasets

        def dataset(train: bool) -> ArrayDataset:
            data: Any = getattr(torchvision.datasets, cls)(root, train=train, download=download)
            labels = np.asarray(data.targets, dtype=np.int64)
            return ArrayDataset(cls, to_images(np.asarray(data.data), cls), labels, [str(c) for c in data.classes])

        return Splits(dataset(True), dataset(False))

    return build


def _stl10(root: str, download: bool) -> Splits:
    import torchvision.datasets

    def dataset(split: str) -> ArrayDataset:
        data: Any = torchvision.datasets.STL10(root, split=split, download=download)
        images = np.ascontiguousarray(data.data.transpose(0, 2, 3, 1))
        if split == "unlabeled":
            return ArrayDataset("stl10", images)
        return ArrayDataset("stl10", images, np.asarray(data.labels, dtype=np.int64), list(data.classes))

    return Splits(dataset("train"), dataset("test"), dataset("unlabeled"))


TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}


def _from_torchvision(name: str, build: Build) -> Callable[[], Splits]:
    def open_named() -> Splits:
        home = data_home()
        if (home / name / "train").is_dir():
            return open_folder(home / name)
        try:
            return build(str(home), True)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"data: {name} is not under {home} and could not be downloaded ({reason}); put torchvision's copy, "
                f"or {name}/train/<class>/*.png and {name}/test/..., there, or point MEC_DATA at the folder that has it"
            ) from error

    return open_named


NAMED: dict[str, Callable[[], Splits]] = {
    "digits": _digits,
    **{name: _from_torchvision(name, _cifar_like(cls)) for name, cls in TORCHVISION.items()},
    "stl10": _from_torchvision("stl10", _stl10),
}
