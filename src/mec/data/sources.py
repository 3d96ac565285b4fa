"""Opening a source of pictures: a folder, an .npz file or a named set, with labels where there are any."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mec.data.draws import uniforms
from mec.data.images import ArrayImages, FileImages, Images, Picture
from mec.errors import InputError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
TRAIN_FOLDERS = ("train",)
TEST_FOLDERS = ("test", "val", "valid", "validation")
HELD_OUT = 0.2
"""Share of each class kept for testing where the source itself says nothing."""

Split = Literal["train", "test", "all"]


def open_images(source: str | os.PathLike[str], split: Split = "all") -> Images:
    """Open pictures, with labels where there are any.

    Args:
        source: a folder of pictures (labels are its first-level sub-folders, if it has any; a folder with ``train``
            and ``test`` or ``val`` inside has its own split), an .npz file (``images``, ``labels``, or MedMNIST's
            ``train_images`` ...), or a name: digits, cifar10, fashion-mnist.
        split: "train" or "test" of a source that has its own split; of any other, a fixed seeded division that
            keeps a fifth of each class for testing. "all" is everything there is.

    Raises:
        InputError: what is wrong with the source, in one line.
    """
    if split not in ("train", "test", "all"):
        raise InputError(f"split: expected 'train', 'test' or 'all', got {split!r}")
    path = Path(source).expanduser()
    if str(source).lower() in NAMED:
        parts = NAMED[str(source).lower()]()
    elif path.is_dir():
        parts = _open_folder(path)
    elif path.is_file() and path.suffix == ".npz":
        parts = _open_npz(path)
    elif path.exists():
        raise InputError(f"data: {path} is neither a folder of pictures nor an .npz file")
    else:
        raise InputError(f"data: {path} does not exist; the named sets are {', '.join(sorted(NAMED))}")
    return parts.take(split)


def has_own_split(source: str | os.PathLike[str]) -> bool:
    """Whether the source says itself which pictures are for training."""
    path = Path(source).expanduser()
    if str(source).lower() in NAMED:
        return True
    if path.is_dir():
        return bool(_subfolder(path, TRAIN_FOLDERS) and _subfolder(path, TEST_FOLDERS)) or _torchvision_copy(path)
    if path.suffix == ".npz" and path.is_file():
        with np.load(path, allow_pickle=False) as arrays:
            return any(key.startswith("test_") or key.endswith("_test") for key in arrays.files)
    return False


@dataclass
class _Parts:
    """What a source holds: its training pictures and, where it says so, its test pictures."""

    train: Images
    test: Images | None = None

    def take(self, split: Split) -> Images:
        if self.test is not None:
            return {"train": self.train, "test": self.test, "all": self.train}[split]
        if split == "all":
            return self.train
        train, test = divide(self.train, HELD_OUT)
        return self.train.subset(train if split == "train" else test)


def divide(images: Images, share: float, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of a fixed random division, (kept, held out), with ``share`` of each class held out (at least one)."""
    order = uniforms(seed, 0, np.arange(len(images)), 1, stream=7)[:, 0].argsort()
    labels = np.zeros(len(images), dtype=np.int64) if images.labels is None else images.labels
    held: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        held.append(members[: max(1, round(share * len(members)))] if len(members) > 1 else members[:0])
    test = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(images)), test), test


def _subfolder(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if (path / name).is_dir()), None)


def _pictures_below(folder: Path) -> list[str]:
    """Relative paths of the pictures at any depth, sorted; a folder is visited once, however many links lead there."""
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [
            os.path.relpath(os.path.join(parent, f), folder)
            for f in files
            if not f.startswith(".") and os.path.splitext(f)[1].lower() in EXTENSIONS
        ]
    return sorted(found)


def _list_folder(folder: Path, name: str, classes: list[str] | None = None) -> FileImages:
    names = _pictures_below(folder)
    if not names:
        raise InputError(f"data: no picture in {folder} ({', '.join(sorted(EXTENSIONS))}, at any depth)")
    heads = [Path(n).parts[0] if len(Path(n).parts) > 1 else None for n in names]
    if None in heads:
        return FileImages(name, folder, names)
    found = sorted({str(h) for h in heads})
    if classes is None:
        classes = found
    elif unknown := sorted(set(found) - set(classes)):
        raise InputError(f"data: {folder} has classes that the training pictures lack: {', '.join(unknown[:5])}")
    number = {c: i for i, c in enumerate(classes)}
    return FileImages(name, folder, names, np.array([number[str(h)] for h in heads], dtype=np.int64), classes)


def _open_folder(path: Path) -> _Parts:
    if _torchvision_copy(path):
        return _torchvision_cifar10(path)
    train, test = _subfolder(path, TRAIN_FOLDERS), _subfolder(path, TEST_FOLDERS)
    if train and test:
        part = _list_folder(train, path.name)
        return _Parts(part, _list_folder(test, path.name, part.classes if part.labels is not None else None))
    return _Parts(_list_folder(path, path.name))


def _to_pictures(array: NDArray[np.generic], where: str) -> Picture:
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] > 64 or not len(array):
        raise InputError(f"{where}: expected pictures (n, height, width[, channels]), got shape {array.shape}")
    if array.dtype == np.uint8:
        return np.asarray(array, dtype=np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        values = np.asarray(array, dtype=np.float32)
        if np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1:
            return np.rint(values * 255).astype(np.uint8)
        raise InputError(f"{where}: expected float pictures in [0, 1], got {values.min():g} to {values.max():g}")
    raise InputError(f"{where}: expected uint8 or float pictures, got {array.dtype}")


def _open_npz(path: Path) -> _Parts:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise InputError(f"data: {path} cannot be read as an .npz file ({error})") from error

    def part(pictures: tuple[str, ...], labels: tuple[str, ...]) -> ArrayImages | None:
        key = next((k for k in pictures if k in arrays), None)
        if key is None:
            return None
        images = ArrayImages(path.stem, _to_pictures(arrays[key], f"{path}, {key}"))
        label_key = next((k for k in labels if k in arrays), None)
        if label_key is not None:
            values, numbers = np.unique(
                arrays[label_key].reshape(len(arrays[label_key]), -1)[:, 0], return_inverse=True
            )
            if len(numbers) != len(images):
                raise InputError(f"{path}, {label_key}: expected {len(images)} labels, got {len(numbers)}")
            images.labels, images.classes = numbers.astype(np.int64), [str(v) for v in values]
        return images

    whole = part(("images", "x", "arr_0"), ("labels", "y", "arr_1"))
    train = part(("train_images", "x_train"), ("train_labels", "y_train")) or whole
    if train is None:
        raise InputError(
            f"data: {path} has none of images, train_images, x_train (it has {', '.join(arrays) or 'nothing'})"
        )
    test = part(("test_images", "x_test"), ("test_labels", "y_test"))
    if test is not None and test.classes != train.classes:
        raise InputError(f"data: {path} has other labels for testing than for training")
    return _Parts(train, test)


def _digits() -> _Parts:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pictures = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    images = ArrayImages("digits", pictures, bunch.target.astype(np.int64), [str(c) for c in bunch.target_names])
    train, test = divide(images, 0.25)
    return _Parts(images.subset(train), images.subset(test))


def _data_home() -> Path:
    return Path(os.environ.get("MEC_DATA", "~/.cache/mec")).expanduser()


def _torchvision_copy(path: Path) -> bool:
    return (path / "cifar-10-batches-py").is_dir()


def _torchvision_cifar10(root: Path) -> _Parts:
    from torchvision.datasets import CIFAR10

    return _from_torchvision("cifar10", lambda train: CIFAR10(str(root), train=train, download=False))


def _from_torchvision(name: str, build: Callable[[bool], object]) -> _Parts:
    def images(train: bool) -> ArrayImages:
        data = build(train)
        pictures = np.asarray(data.data)  # type: ignore[attr-defined]
        labels = np.asarray(data.targets, dtype=np.int64)  # type: ignore[attr-defined]
        return ArrayImages(name, _to_pictures(pictures, name), labels, [str(c) for c in data.classes])  # type: ignore[attr-defined]

    return _Parts(images(True), images(False))


def _named(name: str, torchvision_name: str) -> Callable[[], _Parts]:
    def open_named() -> _Parts:
        import torchvision.datasets

        home = _data_home()
        if (home / name / "train").is_dir():
            return _open_folder(home / name)
        dataset = getattr(torchvision.datasets, torchvision_name)
        try:
            return _from_torchvision(name, lambda train: dataset(str(home), train=train, download=True))
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"data: {name} is not under {home} and could not be downloaded ({reason}); put torchvision's copy, "
                f"or {name}/train/<class>/*.png and {name}/test/..., there, or point MEC_DATA at the folder that has it"
            ) from error

    return open_named


NAMED: dict[str, Callable[[], _Parts]] = {
    "digits": _digits,
    "cifar10": _named("cifar10", "CIFAR10"),
    "fashion-mnist": _named("fashion-mnist", "FashionMNIST"),
}
