"""Folders of photographs of which some are broken, each in a way of its own."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mec.data import FileDataset, open_dataset
from mec.data.analysis import RESIDENT_SIDE
from tests.data.encoded_images import claiming

LARGE, SMALL = (RESIDENT_SIDE + 14, RESIDENT_SIDE + 34), (32, 32)
BATCH = 25


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("404 Not FrameObjects\n")


def bomb(path: Path) -> None:
    path.write_bytes(claiming("PNG", 60_000, 60_000))


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def vanished(path: Path) -> None:
    path.unlink()


def became_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BEFORE: dict[Callable[[Path], None], str] = {
    cut_off: "truncated",
    emptied: "the file is empty",
    text: "not an image in a format that is read",
    bomb: "bomb",
    link_to_nowhere: "No such file or directory",
}
LATER: dict[Callable[[Path], None], str] = {
    vanished: "No such file or directory",
    became_a_folder: "Is a directory",
}
WAYS = BEFORE | LATER
IMAGES = 25 * len(WAYS)
"""Of which 4 % are broken, one in each way."""
BROKEN = dict(zip(WAYS, np.linspace(0, IMAGES - 1, len(WAYS)).astype(int).tolist(), strict=True))


def photographs(folder: Path, count: int = IMAGES, size: tuple[int, int] = LARGE) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(folder / f"{i:03}.jpg")
    return folder


def break_in(folder: Path, ways: dict[Callable[[Path], None], str]) -> None:
    for way in ways:
        way(folder / f"{BROKEN[way]:03}.jpg")


def opened_and_broken(folder: Path) -> FileDataset:
    """Images of which some are broken already, others break once they are listed."""
    break_in(folder, BEFORE)
    images = open_dataset(folder)
    assert isinstance(images, FileDataset)
    assert len(images) == IMAGES
    break_in(folder, LATER)
    return images


def expected_reasons(folder: Path) -> dict[str, str]:
    return {str(folder / f"{number:03}.jpg"): WAYS[way] for way, number in BROKEN.items()}


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))
