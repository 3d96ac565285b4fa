"""Opening a source of images, whatever it is, with labels where there are any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from mec.data.dataset import ImageDataset
from mec.data.datasets.builtin import NAMED, is_torchvision_cifar, open_torchvision_cifar
from mec.data.datasets.folder import open_folder, open_list, open_table_of_labels
from mec.data.datasets.huggingface import is_table, open_table
from mec.data.datasets.npz import open_npz
from mec.data.datasets.splits import Splits
from mec.data.datasets.video import VIDEOS, is_video, open_videos
from mec.data.datasets.webdataset import is_shards, open_shards
from mec.errors import InputError

Split = Literal["train", "test", "all", "pretrain"]


def open_dataset(
    source: str | os.PathLike[str],
    split: Split = "all",
    labels: str | os.PathLike[str] | None = None,
    every: int | None = None,
) -> ImageDataset:
    """Open images, with labels where there are any.

    Args:
        source: one of

            - a folder of images, at any depth. Labels are its first-level sub-folders, if all images lie in one;
              a folder with ``train`` and ``test`` or ``val`` inside has its own split (ImageNet's layout);
            - a .txt list of paths, one a line, or a .csv of path and label; relative to the list's folder;
            - WebDataset shards: a folder of .tar files, or a pattern such as ``photos-{0000..0099}.tar``, local or
              remote (https://, s3://, gs://);
            - a .parquet file, a folder of them, a folder written by ``datasets``' save_to_disk, or ``hf:owner/name``
              on the Hugging Face hub;
            - an .npz file (``images``, ``labels``, or MedMNIST's ``train_images`` ...);
            - a video, or a folder of videos;
            - a name: digits, cifar10, cifar100, fashion-mnist, stl10.
        split: "train" or "test" of a source that has its own split; of any other, a fixed seeded division that
            keeps a fifth of each class for testing. "pretrain" is what to learn from without labels: the unlabeled
            part where there is one, else the training part, else everything. "all" is everything but a test part.
        labels: a .csv of path and label for images of a folder, in place of its sub-folders.
        every: take each n-th image of a source, or frame of a video. None: all images, one frame a second.

    Raises:
        InputError: what is wrong with the source, in one line.
    """
    if split not in ("train", "test", "all", "pretrain"):
        raise InputError(f"split: expected 'train', 'test', 'all' or 'pretrain', got {split!r}")
    if every is not None and every < 1:
        raise InputError(f"every: expected at least 1, got {every}")
    dataset = open_splits(source, labels, every, skip_labels=split == "pretrain").take(split)
    if every is None or is_video(Path(source).expanduser()):
        return dataset
    return dataset.subset(np.arange(0, len(dataset), every))


def open_splits(
    source: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    every: int | None = None,
    skip_labels: bool = False,
) -> Splits:
    """As ``open_dataset``, every part of the source. ``every``: of the frames of a video; ``skip_labels``: the labels
    of shards are not wanted."""
    path = Path(source).expanduser()
    if labels is None and is_video(path):
        return open_videos(path, every)
    return _open(source, labels, skip_labels)


def _open(source: str | os.PathLike[str], labels: str | os.PathLike[str] | None, skip_labels: bool) -> Splits:
    name, path = os.fspath(source), Path(source).expanduser()
    if labels is not None:
        if not path.is_dir():
            raise InputError(f"labels: expected {path} to be a folder of images beside them")
        return Splits(open_table_of_labels(Path(labels).expanduser(), path))
    if name.lower() in NAMED:
        return NAMED[name.lower()]()
    if is_shards(name):
        return open_shards(name, skip_labels)
    if is_table(name):
        return open_table(name)
    if path.is_dir():
        return open_torchvision_cifar(path) if is_torchvision_cifar(path) else open_folder(path)
    if not path.is_file():
        known = ", ".join(sorted(NAMED))
        raise InputError(f"data: {path} does not exist; the named sets are {known}")
    if path.suffix == ".npz":
        return open_npz(path)
    if path.suffix == ".txt":
        return Splits(open_list(path))
    if path.suffix == ".csv":
        return Splits(open_table_of_labels(path, path.parent))
    raise InputError(
        f"data: {path} is none of a folder, .txt, .csv, .npz, .tar, .parquet or a video ({', '.join(sorted(VIDEOS))})"
    )
