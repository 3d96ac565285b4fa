"""The checkpoint files of a training: their names hold step and checksum. The newest that is intact is used."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

CHECKPOINTS_FOLDER = "checkpoints"
CHECKSUM_DIGITS = 16
"""Hexadecimal digits of the SHA-256 of a checkpoint at the end of its file name."""


def checkpoint_step(path: Path) -> int:
    """Return the number of steps taken before the checkpoint, from its name."""
    return int(re.split(r"[-.=]", path.name)[1])


def checkpoint_files(folder: Path) -> list[Path]:
    """Return all checkpoint files, sorted by step, then with a checksum before without, then by modification time."""
    return sorted(folder.glob("step=*.ckpt"), key=lambda path: (path.name.partition("-")[0], path.stat().st_mtime_ns))


def sorted_by_step(folder: Path) -> list[Path]:
    """Return the last file of each step in the order of ``checkpoint_files``, the latest step last."""
    return list({re.split(r"[-.]", path.name)[0]: path for path in checkpoint_files(folder)}.values())


def newest_intact(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the intact checkpoint of the latest step in a folder, None without one, and the damaged ones after it."""
    damaged: list[Path] = []
    for path in reversed(sorted_by_step(folder)):
        if is_intact(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def is_intact(path: Path) -> bool:
    """Return whether a checkpoint matches the checksum in its name; True for a name without checksum."""
    match = re.fullmatch(r"step=\d+-([0-9a-f]+)\.ckpt", path.name)
    if match is None:  # the process was killed after the atomic write and before the checksum was added to the name
        return True
    try:
        return checksum(path) == match[1]
    except FileNotFoundError:  # another process has renamed it
        return False


def checksum(path: Path) -> str:
    """Return the first digits of the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:CHECKSUM_DIGITS]
