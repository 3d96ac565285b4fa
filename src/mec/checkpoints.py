"""Checkpoints that are whole or absent, the last three of them, and finding the newest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from mec.errors import InputError
from mec.files import replacing

KEPT = 3


class AtomicCheckpoints(CheckpointIO):
    """Written to a temporary file, flushed and renamed; read without running code from the file."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        with replacing(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

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


class KeepLatest(Checkpoint):
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
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step:09d}.ckpt")
        if trainer.is_global_zero:
            for old in _checkpoints(self.folder)[:-KEPT]:
                old.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step=*.ckpt"))


def newest_checkpoint(run: Path) -> Path:
    """The checkpoint of the latest step in a run folder."""
    found = _checkpoints(run / "checkpoints")
    if not found:
        raise InputError(f"resume: {run} holds no checkpoint yet; start it again in another folder")
    return found[-1]
