"""Folders of photographs, some of which are corrupt, each for a different reason."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mec.data import FileDataset, open_dataset
from mec.data.analysis import IN_MEMORY_MAX_SIDE
from tests.data.encoded_images import image_claiming_size

LARGE, SMALL = (IN_MEMORY_MAX_SIDE + 14, IN_MEMORY_MAX_SIDE + 34), (32, 32)
BATCH = 25


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("404 Not Found\n")


CORRUPT_WHEN_OPENED: dict[Callable[[Path], object], str] = {
    truncate: "truncated",
    empty: "the file is empty",
    write_text: "not an image in a supported format",
    lambda path: path.write_bytes(image_claiming_size("PNG", 60_000, 60_000)): "bomb",
    lambda path: (path.unlink(), path.symlink_to(path.with_name("missing"))): "No such file or directory",
}
CORRUPT_LATER: dict[Callable[[Path], object], str] = {
    Path.unlink: "No such file or directory",
    lambda path: (path.unlink(), path.mkdir()): "Is a directory",
}
REASONS = CORRUPT_WHEN_OPENED | CORRUPT_LATER
NUM_IMAGES = 25 * len(REASONS)
"""Of these, 4% are corrupt, one for each reason."""
CORRUPT_INDICES = dict(zip(REASONS, np.linspace(0, NUM_IMAGES - 1, len(REASONS)).astype(int).tolist(), strict=True))


def write_photographs(folder: Path, count: int = NUM_IMAGES, size: tuple[int, int] = LARGE) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(folder / f"{i:03}.jpg")
    return folder


def corrupt_images_in(folder: Path, reasons: dict[Callable[[Path], object], str]) -> None:
    for make_corrupt in reasons:
        make_corrupt(folder / f"{CORRUPT_INDICES[make_corrupt]:03}.jpg")


def open_and_corrupt(folder: Path) -> FileDataset:
    """Open a folder in which some images are corrupt; corrupt others after it is opened."""
    corrupt_images_in(folder, CORRUPT_WHEN_OPENED)
    dataset = open_dataset(folder)
    assert isinstance(dataset, FileDataset)
    assert len(dataset) == NUM_IMAGES
    corrupt_images_in(folder, CORRUPT_LATER)
    return dataset


def expected_reasons(folder: Path) -> dict[str, str]:
    return {str(folder / f"{index:03}.jpg"): REASONS[make_corrupt] for make_corrupt, index in CORRUPT_INDICES.items()}


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))
