"""Open a dataset of images from a path, a URL, a name or an object, with labels where the dataset has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from mec.data.dataset import DataLike, ImageDataset, data_name
from mec.data.datasets.arrays import BUILTIN_DATASETS, CIFAR_FOLDERS, open_builtin, open_npz, open_torchvision
from mec.data.datasets.folder import open_folder
from mec.data.datasets.huggingface import is_table, open_table
from mec.data.datasets.lists import open_csv, open_labels_csv, open_list
from mec.data.datasets.objects import open_object
from mec.data.datasets.video import VIDEO_EXTENSIONS, is_video, open_videos
from mec.data.datasets.webdataset import is_shard_source, open_shards
from mec.data.splits import Splits
from mec.errors import InputError

ARCHIVE_EXTENSIONS = frozenset({".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"})
Split = Literal["train", "test", "all", "pretrain"]


def open_dataset(
    source: DataLike,
    split: Split = "all",
    labels_csv: str | os.PathLike[str] | None = None,
    subsample: int | None = None,
    frame_stride: int | None = None,
) -> ImageDataset:
    """Open a dataset of images, with labels where it has them.

    Args:
        source: one of

            - a folder of images, at any depth. Labels are its first-level sub-folders, if every image lies in one;
              a folder with ``train`` and ``test`` or ``val`` inside has its own splits (ImageNet's layout);
            - a .txt list with a path on each line, or a .csv of path and label; relative to the file's folder;
            - WebDataset shards: a folder of .tar files, or a pattern such as ``photos-{0000..0099}.tar``, local or
              remote (https://, s3://, gs://);
            - a .parquet file, a folder of them, a folder written by ``datasets``' save_to_disk, or ``hf:owner/name``
              on the Hugging Face hub;
            - an .npz file (``images``, ``labels``, or MedMNIST's ``train_images`` ...);
            - a video, or a folder of videos;
            - a name: digits, cifar10, cifar100, fashion-mnist, stl10;
            - an object: an ImageDataset; a dataset of torchvision, torch or Hugging Face, or any other with ``__len__``
              and ``__getitem__``, whose items are an image (PIL, array, tensor, encoded bytes, path), (image, label) or
              a dict of both; arrays or tensors (n, h, w[, c]) or (n, c, h, w), or (images, labels); a dict
              {"train": ..., "test": ...} or a tuple (train, test) of such objects.
        split: "train" or "test": the dataset's own split, or else a fixed random split with a fifth of each class
            for testing. "pretrain": the images for pretraining without labels, which are the unlabeled split where
            there is one, else the training split, else all images. "all": everything but a test split.
        labels_csv: a .csv of path and label for the images of a folder; replaces the labels from sub-folders.
        subsample: keep every n-th image of the dataset; None: all.
        frame_stride: keep every n-th frame of a video; None: one frame per second.

    Raises:
        InputError: the dataset cannot be opened, or an argument does not fit it.
    """
    if split not in ("train", "test", "all", "pretrain"):
        raise InputError(f"split: expected 'train', 'test', 'all' or 'pretrain', got {split!r}")
    if subsample is not None and subsample < 1:
        raise InputError(f"subsample: expected at least 1, got {subsample}")
    dataset = open_splits(source, labels_csv, frame_stride, skip_labels=split == "pretrain").select(split)
    return dataset if subsample is None else dataset.subset(np.arange(0, len(dataset), subsample))


def open_splits(
    source: DataLike,
    labels_csv: str | os.PathLike[str] | None = None,
    frame_stride: int | None = None,
    skip_labels: bool = False,
) -> Splits:
    """Open all splits of a dataset, as ``open_dataset``; ``skip_labels`` opens shards by their ``sizes.json``, and does
    not load the items of an object for their labels."""
    if frame_stride is not None and frame_stride < 1:
        raise InputError(f"frame_stride: expected at least 1, got {frame_stride}")
    if not isinstance(source, str | os.PathLike):
        for name, value, expected in (
            ("labels_csv", labels_csv, "a folder of images"),
            ("frame_stride", frame_stride, "a video or a folder of videos"),
        ):
            if value is not None:
                raise InputError(f"{name}: expected {expected} as data, got an object ({data_name(source)})")
        return open_object(source, skip_labels)
    source = os.fspath(source)
    path = Path(source).expanduser()
    if labels_csv is None and is_video(path):
        return open_videos(path, frame_stride)
    is_missing_video = path.suffix.lower() in VIDEO_EXTENSIONS and not path.exists()
    if frame_stride is not None and not is_missing_video:
        raise InputError(f"frame_stride: expected a video or a folder of videos as data, got {source}")
    if labels_csv is not None:
        if not path.is_dir():
            raise InputError(f"labels_csv: expected a folder of images as data, got {path}")
        return Splits(open_labels_csv(Path(labels_csv).expanduser(), path))
    if source.lower() in BUILTIN_DATASETS:
        return open_builtin(source.lower())
    if is_shard_source(source):
        return open_shards(source, skip_labels)
    if is_table(source):
        return open_table(source)
    if path.is_dir():
        cifar = next((name for subfolder, name in CIFAR_FOLDERS.items() if (path / subfolder).is_dir()), None)
        return open_torchvision(cifar, path) if cifar else open_folder(path)
    if not path.is_file():
        names = ", ".join(sorted(BUILTIN_DATASETS))
        raise InputError(f"data: {path} does not exist; built-in datasets: {names}")
    if path.suffix == ".npz":
        return open_npz(path)
    if path.suffix == ".txt":
        return Splits(open_list(path))
    if path.suffix == ".csv":
        return Splits(open_csv(path, path.parent))
    if path.suffix.lower() in ARCHIVE_EXTENSIONS:
        raise InputError(f"data: {path} is an archive; unpack it first")
    videos = ", ".join(sorted(VIDEO_EXTENSIONS))
    raise InputError(f"data: expected a folder, .txt, .csv, .npz, .tar, .parquet or a video ({videos}), got {path}")
