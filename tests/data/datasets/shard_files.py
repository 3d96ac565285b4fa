"""Write shards of small images with known contents, and load epochs of them."""

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


def encode_image(number: int, image_format: str = "jpeg", side: int = 20) -> bytes:
    """Return an encoded image that is different for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side + number % 5, side + 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()


IMAGES = [encode_image(i) for i in range(TOTAL)]


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def class_name(number: int) -> str:
    return ("bee", "ant", "cat")[number % 3]


def sample_members(numbers: range, labeled: bool = True) -> Members:
    """Return the files of samples: an image each, and its class."""
    members = []
    for i in numbers:
        members.append((f"{i:04}.jpg", IMAGES[i]))
        if labeled:
            members.append((f"{i:04}.cls", class_name(i).encode()))
    return members


def sample_ranges() -> list[range]:
    """Return the sample numbers of each of the four shards."""
    ends = np.cumsum(SIZES).tolist()
    return [range(end - size, end) for end, size in zip(ends, SIZES, strict=True)]


def write_shards(folder: Path, pattern: str = "x-{:04}.tar", labeled: bool = True) -> Path:
    """Write four shards of different sizes."""
    for shard, numbers in enumerate(sample_ranges()):
        write_tar(folder / pattern.format(shard), sample_members(numbers, labeled))
    return folder


def load_epoch(
    dataset: ShardDataset, world_size: int = 1, workers: int = 0, batch_size: int = 4, epoch: int = 0, seed: int = 0
) -> list[list[Batch]]:
    """Return the batches of each rank."""
    batches = []
    for rank in range(world_size):
        sampler = training_sampler(dataset, batch_size, seed, rank, world_size)
        sampler.set_epoch(epoch)
        loader = training_loader(dataset, TwoViews(16, seed=3), sampler, PixelFormat(), CPU, workers)
        batches.append(list(loader))
    return batches


def indices_of(batches: list[Batch]) -> list[int]:
    return [int(i) for b in batches for i in b.indices]


def views_of(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(i): views for b in batches for i, views in zip(b.indices, b.images, strict=True)}


def corrupt_titles(batches: list[Batch]) -> set[str]:
    return {image.title for b in batches for image in b.corrupt}
