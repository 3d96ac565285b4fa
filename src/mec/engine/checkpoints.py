"""Checkpoint files: atomic writes, checksums in their names, the last three steps, the newest intact checkpoint."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from mec.distributed import is_rank_zero
from mec.errors import InputError
from mec.files import atomic_write

logger = logging.getLogger("mec")

NUM_KEPT = 3
"""Number of steps whose checkpoints are kept."""
CHECKSUM_DIGITS = 16
"""Hexadecimal digits of the SHA-256 of a checkpoint at the end of its file name."""
TEMPORARY_FILES = ("checkpoints/.step=*", ".metrics.csv.*", ".encoder.*", ".recipe.yaml.*", ".environment.json.*")
"""Patterns of the temporary files of ``atomic_write`` in a run folder."""


class AtomicCheckpointIO(CheckpointIO):
    """Writes a temporary file, flushes it and renames it to a name with its checksum. Loads with weights_only=True."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        path = Path(path)
        try:
            with atomic_write(path) as temporary:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                checksum = _checksum(temporary)
            path.replace(path.with_name(f"{path.stem}-{checksum}{path.suffix}"))
        except (OSError, RuntimeError) as error:
            # PyTorch's RuntimeError does not include the reason
            cause = error.__context__ if isinstance(error, RuntimeError) else error
            if not isinstance(cause, OSError):
                raise
            raise InputError(
                f"out: {path} cannot be written ({cause.strerror}); earlier checkpoints are kept, continue from them "
                "with --resume"
            ) from error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            raise InputError(f"resume: {path} cannot be read ({str(error).splitlines()[0]})") from error
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


def save_checkpoint(trainer: lightning.Trainer, folder: Path) -> None:
    """Save a checkpoint of this step and delete all but the last three. All processes must call this."""
    trainer.save_checkpoint(folder / f"step={trainer.global_step:09d}.ckpt")
    if trainer.is_global_zero:
        for path in set(_checkpoint_files(folder)) - set(sorted_by_step(folder)[-NUM_KEPT:]):
            path.unlink(missing_ok=True)


def latest_checkpoint(run: Path) -> Path | None:
    """Return the intact checkpoint of the latest step in a run folder; None if the folder has no checkpoints.

    Newer checkpoints that are damaged are logged and renamed to .damaged.

    Raises:
        InputError: all checkpoints are damaged.
    """
    paths = sorted_by_step(run / "checkpoints")
    damaged: list[Path] = []
    for path in reversed(paths):
        if is_intact(path):
            break
        damaged.append(path)
        logger.warning(f"{path} is damaged: its checksum does not match its name")
    else:
        if paths:
            raise InputError(f"resume: all checkpoints in {run} are damaged; start again in another folder")
        return None
    if is_rank_zero():
        for damaged_path in damaged:
            damaged_path.replace(damaged_path.with_suffix(".damaged"))
    return path


def checkpoint_step(path: Path) -> int:
    """Return the number of steps taken before the checkpoint, from its name."""
    return int(re.split(r"[-.=]", path.name)[1])


def remove_temporary_files(run: Path) -> None:
    """Delete the temporary files of a process that was killed while writing."""
    for pattern in TEMPORARY_FILES:
        for path in run.glob(pattern):
            path.unlink(missing_ok=True)


def _checkpoint_files(folder: Path) -> list[Path]:
    """Return all checkpoint files, sorted by step, then with a checksum before without, then by modification time."""
    return sorted(folder.glob("step=*.ckpt"), key=lambda path: (path.name.partition("-")[0], path.stat().st_mtime_ns))


def sorted_by_step(folder: Path) -> list[Path]:
    """Return the last file of each step in the order of ``_checkpoint_files``, the latest step last."""
    return list({re.split(r"[-.]", path.name)[0]: path for path in _checkpoint_files(folder)}.values())


def is_intact(path: Path) -> bool:
    """Return whether a checkpoint matches the checksum in its name; True for a name without checksum."""
    match = re.fullmatch(r"step=\d+-([0-9a-f]+)\.ckpt", path.name)
    if match is None:  # the process was killed after the atomic write and before the checksum was added to the name
        return True
    try:
        return _checksum(path) == match[1]
    except FileNotFoundError:  # another process has renamed it
        return False


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:CHECKSUM_DIGITS]
