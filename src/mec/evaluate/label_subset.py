"""Choose the labeled train images of semi-supervised evaluation: a fraction, a number per class, or a list."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import ImageDataset
from mec.data.rng import Stream, uniforms
from mec.errors import InputError

Indices = NDArray[np.int64]


def label_subset(
    dataset: ImageDataset,
    seed: int,
    label_fraction: float | None = None,
    shots: int | None = None,
    label_list: str | os.PathLike[str] | None = None,
) -> Indices:
    """Choose the train images whose labels are used.

    Args:
        dataset: train images with labels.
        seed: seed of the choice. Every encoder sees the same images, and those of 1 % are among those of 10 %.
        label_fraction: fraction of each class, in (0, 1], at least one image.
        shots: images of each class.
        label_list: text file that names an image per line, by its path or the end of its path, such as SimCLR's
            ImageNet lists (n01440764_10026.JPEG).

    Returns:
        (k,) indices, ascending.

    Raises:
        InputError: not exactly one choice; a fraction outside (0, 1]; more shots than the smallest class has; or a
            list that names an absent image, an image twice, an ambiguous path, or no image of some class.
    """
    choices = {"label_fraction": label_fraction, "shots": shots, "label_list": label_list}
    chosen = [name for name, value in choices.items() if value is not None]
    if len(chosen) != 1:
        raise InputError(f"label_fraction, shots, label_list: expected one of the three, got {' and '.join(chosen)}")
    assert dataset.labels is not None
    labels = np.asarray(dataset.labels)
    if label_list is not None:
        return _from_list(dataset, Path(label_list).expanduser())
    class_sizes = np.bincount(labels)
    if shots is not None:
        if shots < 1:
            raise InputError(f"shots: expected at least 1, got {shots}")
        if shots > class_sizes.min():
            raise InputError(
                f"shots: expected at most {class_sizes.min()}, the size of the smallest class, got {shots}"
            )
        return _per_class(labels, np.full(len(class_sizes), shots), seed)
    assert label_fraction is not None
    if not 0 < label_fraction <= 1:
        raise InputError(f"label_fraction: expected a number above 0 and up to 1, got {label_fraction:g}")
    return _per_class(labels, np.maximum(1, np.rint(class_sizes * label_fraction)).astype(int), seed)


def _per_class(labels: Indices, counts: Indices, seed: int) -> Indices:
    order = uniforms(seed, 0, np.arange(len(labels)), 1, Stream.LABEL_SUBSET)[:, 0].argsort(kind="stable")
    return np.sort(np.concatenate([order[labels[order] == c][:count] for c, count in enumerate(counts)]))


def _from_list(dataset: ImageDataset, path: Path) -> Indices:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"label_list: expected a text file, got {path} ({reason})") from error
    if not names:
        raise InputError(f"label_list: {path} is empty")
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise InputError(f"label_list: {path} names {duplicates[0]} twice")
    max_depth = max(len(Path(name).parts) for name in names)
    matches: dict[str, list[int]] = {name: [] for name in names}
    for index in range(len(dataset)):
        parts = Path(dataset.title(index)).parts
        for depth in range(1, min(max_depth, len(parts)) + 1):
            suffix = str(Path(*parts[-depth:]))
            if suffix in matches:
                matches[suffix].append(index)
    absent = [name for name, indices in matches.items() if not indices]
    if absent:
        raise InputError(
            f"label_list: {path} names {absent[0]}, which is not among the train images "
            f"({len(absent)} of {len(names)} names)"
        )
    ambiguous = next((name for name, indices in matches.items() if len(indices) > 1), None)
    if ambiguous is not None:
        titles = " and ".join(dataset.title(i) for i in matches[ambiguous][:2])
        raise InputError(f"label_list: {ambiguous} in {path} matches {titles}; write more of the path")
    indices = np.unique([index for (index,) in matches.values()])
    assert dataset.labels is not None
    empty = np.setdiff1d(np.arange(len(dataset.classes)), dataset.labels[indices])
    if len(empty):
        raise InputError(f"label_list: {path} names no image of class {dataset.classes[empty[0]]!r}")
    return indices
