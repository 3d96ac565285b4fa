"""Shards of small images with known contents, and epochs over them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mec.data import PixelFormat, TwoViews
from mec.data.datasets.webdataset import ShardDataset
from mec.data.loaders import training_loader, training_sampler
from mec.data.transforms.crop import Batch

CPU = torch.device("cpu")
SIZES = (7, 1, 13, 5)
TOTAL = sum(SIZES)
Members = list[tuple[str, bytes]]


def image(number: int, kind: str = "jpeg", side: int = 20) -> bytes:
    """An encoded image that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (side + number % 5, side + 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


IMAGES = [image(i) for i in range(TOTAL)]


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def species(number: int) -> str:
    return ("bee", "ant", "cat")[number % 3]


def samples(numbers: range, labeled: bool = True) -> Members:
    members = []
    for i in numbers:
        members.append((f"{i:04}.jpg", IMAGES[i]))
        if labeled:
            members.append((f"{i:04}.cls", species(i).encode()))
    return members


def shares() -> list[range]:
    ends = np.cumsum(SIZES).tolist()
    return [range(end - size, end) for end, size in zip(ends, SIZES, strict=True)]


def write_shards(folder: Path, pattern: str = "x-{:04}.tar", labeled: bool = True) -> Path:
    """Four shards of uneven sizes."""
    for shard, numbers in enumerate(shares()):
        write_tar(folder / pattern.format(shard), samples(numbers, labeled))
    return folder


def an_epoch(
    images: ShardDataset, ranks: int = 1, workers: int = 0, batch: int = 4, epoch: int = 0, seed: int = 0
) -> list[list[Batch]]:
    """The batches of each rank."""
    found = []
    for rank in range(ranks):
        sampler = training_sampler(images, batch, seed, rank, ranks)
        sampler.set_epoch(epoch)
        loader = training_loader(images, TwoViews(16, seed=3), sampler, PixelFormat(), CPU, workers)
        found.append(list(loader))
    return found


def numbers_of(batches: list[Batch]) -> list[int]:
    return [int(i) for b in batches for i in b.indices]


def views_of(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(i): views for b in batches for i, views in zip(b.indices, b.images, strict=True)}


def lost_of(batches: list[Batch]) -> set[str]:
    return {lost.title for b in batches for lost in b.lost}
