"""Checkpoints that are whole or absent, the last three of them, and the newest that is sound."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from mec.distributed import is_rank_zero
from mec.errors import InputError
from mec.files import atomic_write

KEPT = 3
CHECKSUM = 16
"""Hexadecimal digits of the SHA-256 of a checkpoint that end its name."""


class AtomicCheckpointIO(CheckpointIO):
    """Written to a temporary file, flushed and renamed, its checksum in its name; read without running its code."""

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
            cause = error.__context__ if isinstance(error, RuntimeError) else error  # PyTorch's own says nothing of it
            if not isinstance(cause, OSError):
                raise
            raise InputError(
                f"out: {path} cannot be written ({cause.strerror}); the checkpoints before it are kept, and --resume "
                "goes on from them"
            ) from error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise InputError(f"resume: {path} cannot be read ({str(error).splitlines()[0]})") from error
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


def save_checkpoint(trainer: lightning.Trainer, folder: Path) -> None:
    """Of this step, by all processes together; the last three steps are kept."""
    trainer.save_checkpoint(folder / f"step={trainer.global_step:09d}.ckpt")
    if trainer.is_global_zero:
        for old in set(_files(folder)) - set(by_step(folder)[-KEPT:]):
            old.unlink(missing_ok=True)


class LatestCheckpoints(Checkpoint):
    """A checkpoint at the end of an epoch once ``every`` steps have passed, and at the end of the run."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.saved_at: int | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.saved_at = trainer.global_step

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step - (self.saved_at or 0) < self.every and not last:
            return
        self.saved_at = trainer.global_step
        save_checkpoint(trainer, self.folder)


def latest_checkpoint(run: Path, say: Callable[[str], object]) -> Path | None:
    """The sound checkpoint of the latest step in a run folder; None where there is none at all.

    Damaged ones that are newer are told to ``say`` and set aside as .damaged.

    Raises:
        InputError: all of them are damaged.
    """
    found = by_step(run / "checkpoints")
    damaged: list[Path] = []
    for path in reversed(found):
        if is_whole(path):
            break
        damaged.append(path)
        say(f"{path} is damaged: it does not have the checksum in its name")
    else:
        if found:
            raise InputError(f"resume: all checkpoints in {run} are damaged; start again in another folder")
        return None
    if is_rank_zero():
        for bad in damaged:
            bad.replace(bad.with_suffix(".damaged"))
    return path


def step_of(checkpoint: Path) -> int:
    """Steps that were taken before it."""
    return int(re.split(r"[-.=]", checkpoint.name)[1])


def sweep(run: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for written in ("checkpoints/.step=*", ".metrics.csv.*", ".encoder.*", ".recipe.yaml.*", ".environment.json.*"):
        for left in run.glob(written):
            left.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """Oldest step first; of one step, what was written last comes last."""
    return sorted(folder.glob("step=*.ckpt"), key=lambda path: (path.name.partition("-")[0], path.stat().st_mtime_ns))


def by_step(folder: Path) -> list[Path]:
    """One checkpoint of each step in a folder, the latest step last."""
    return list({re.split(r"[-.]", path.name)[0]: path for path in _files(folder)}.values())


def is_whole(path: Path) -> bool:
    """Whether it has the checksum in its name."""
    checksum = re.fullmatch(r"step=\d+-([0-9a-f]+)\.ckpt", path.name)
    try:
        return (
            checksum is None or _checksum(path) == checksum[1]
        )  # killed before it was named, it is whole all the same
    except FileNotFoundError:  # another process has set it aside
        return False


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:CHECKSUM]
