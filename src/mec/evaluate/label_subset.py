"""Which train images have a label: a share or a number of each class, or those that a list names."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import ImageDataset
from mec.data.rng import uniforms
from mec.errors import InputError

CHOICE = 12
"""Stream of random numbers."""


def labeled(dataset: ImageDataset, labels: str | int | os.PathLike[str], seed: int) -> NDArray[np.int64]:
    """Numbers of the labeled images, rising.

    Args:
        dataset: train images with labels.
        labels: "1%", "10%" ...: this share of each class, at least one; 5 or "5": so many of each class; or a list
            file, an image a line, by its path or the end of it, as SimCLR's ImageNet lists have it
            (n01440764_10026.JPEG).
        seed: of the choice; the same images for any encoder, and those of 1% are among those of 10%.

    Raises:
        InputError: not a share in (0, 100] %, more than the smallest class has, or a list that names an image that
            is not there, or twice, or leaves a class without one.
    """
    assert dataset.labels is not None
    of = np.asarray(dataset.labels)
    text = str(labels).strip()
    if text.endswith("%"):
        share = _number(text[:-1])
        if share is None or not 0 < share <= 100:
            raise InputError(f"labels: expected a share above 0 and up to 100%, got {text!r}")
        counts = np.maximum(1, np.rint(np.bincount(of) * share / 100)).astype(int)
        return _of_each(of, counts, seed)
    if _number(text) is not None:
        if not text.isdigit() or int(text) < 1:
            raise InputError(f"labels: expected a whole number of images a class, at least 1, got {text!r}")
        fewest = int(np.bincount(of).min())
        if int(text) > fewest:
            raise InputError(f"labels: expected at most {fewest}, the images of the smallest class, got {text}")
        return _of_each(of, np.full(of.max() + 1, int(text)), seed)
    return _listed(dataset, Path(text).expanduser())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _of_each(of: NDArray[np.int64], counts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    order = uniforms(seed, 0, np.arange(len(of)), 1, CHOICE)[:, 0].argsort(kind="stable")
    chosen = [order[of[order] == c][:count] for c, count in enumerate(counts)]
    return np.sort(np.concatenate(chosen))


def _listed(dataset: ImageDataset, path: Path) -> NDArray[np.int64]:
    try:
        wanted = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(
            f"labels: expected 1%, 10% ..., a number of images a class or a list file, got {path} ({reason})"
        ) from error
    if not wanted:
        raise InputError(f"labels: {path} is empty")
    twice = [name for name, count in Counter(wanted).items() if count > 1]
    if twice:
        raise InputError(f"labels: {path} names {twice[0]} twice")
    longest = max(len(Path(name).parts) for name in wanted)
    found: dict[str, list[int]] = {name: [] for name in wanted}
    for index in range(len(dataset)):
        parts = Path(dataset.title(index)).parts
        for depth in range(1, min(longest, len(parts)) + 1):
            end = str(Path(*parts[-depth:]))
            if end in found:
                found[end].append(index)
    absent = [name for name, places in found.items() if not places]
    if absent:
        raise InputError(
            f"labels: {path} names {absent[0]}, which is not among the train images ({len(absent)} of {len(wanted)})"
        )
    several = next((name for name, places in found.items() if len(places) > 1), None)
    if several is not None:
        titles = " and ".join(dataset.title(i) for i in found[several][:2])
        raise InputError(f"labels: {several} in {path} may be {titles}; write more of the path")
    chosen = np.unique([places[0] for places in found.values()])
    assert dataset.labels is not None
    empty = np.setdiff1d(np.arange(len(dataset.classes)), dataset.labels[chosen])
    if len(empty):
        raise InputError(f"labels: {path} names no image of class {dataset.classes[empty[0]]!r}")
    return chosen
