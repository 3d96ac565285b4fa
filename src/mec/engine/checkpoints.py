"""Checkpoints: after 30 seconds, then every few minutes, at SIGTERM or SIGINT, at the end, and when training diverges.
Files are written atomically, with checksums in their names; the last three steps are kept."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from mec.distributed import is_rank_zero
from mec.engine.progress import TrainingModule
from mec.errors import InputError
from mec.files import atomic_write
from mec.models.checkpoint_files import (
    CHECKPOINTS_FOLDER,
    checkpoint_files,
    checksum,
    newest_intact,
    sorted_by_step,
)

logger = logging.getLogger("mec")

NUM_KEPT = 3
"""Number of steps whose checkpoints are kept."""
FIRST_SAVE_SECONDS = 30.0
"""Time to the first checkpoint, at least. The next ones are written when the training has lasted twice as long."""
SAVE_INTERVAL_SECONDS = 300.0
"""Time between two checkpoints of a long training, at least."""
SAVE_INTERVAL_FACTOR = 20
"""Time between two checkpoints, at least, as a multiple of the time that the last one took to write."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
                digits = checksum(temporary)
            path.replace(path.with_name(f"{path.stem}-{digits}{path.suffix}"))
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
        for path in set(checkpoint_files(folder)) - set(sorted_by_step(folder)[-NUM_KEPT:]):
            path.unlink(missing_ok=True)


def latest_checkpoint(run: Path) -> Path | None:
    """Return the intact checkpoint of the latest step in a run folder; None if there are none. Newer checkpoints that
    are damaged are logged and renamed to .damaged. It is an error if all are damaged."""
    intact, damaged = newest_intact(run / CHECKPOINTS_FOLDER)
    if intact is None and damaged:
        raise InputError(f"resume: all checkpoints in {run} are damaged; start again in another folder")
    for path in damaged:
        logger.warning(f"{path} is damaged: its checksum does not match its name")
        if is_rank_zero():
            path.replace(path.with_suffix(".damaged"))
    return intact


class StoppedError(Exception):
    """A signal stopped the training, after a checkpoint was saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class PreemptionCheckpoint(Checkpoint):
    """Saves every few minutes and at the end. Saves and ends the training at SIGTERM or SIGINT, whichever process
    receives it, and ends it when it diverges. Without a folder it saves none and leaves the signals to Lightning."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.stop_signal = 0
        self.cpu_group: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.started = time.monotonic()
        self.next_save_time = self.started + min(FIRST_SAVE_SECONDS, SAVE_INTERVAL_SECONDS)
        self.saved_step = trainer.global_step
        if trainer.world_size > 1:  # a group on the CPU, whose collectives do not wait for the devices
            self.cpu_group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        if self.folder is not None and threading.current_thread() is threading.main_thread():
            # lightning's handlers communicate with other processes in the middle of a step, and do not save. At the end
            # of the fit lightning restores the handlers that were there before
            for number in SIGNALS:
                signal.signal(number, self._handle_signal)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.stop_signal:
            name = signal.Signals(number).name
            hint = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            os.write(2, f"{name}: saving after this step, then stopping{hint}\n".encode())
        self.stop_signal = number

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # lightning resumes correctly from a checkpoint saved here, except after the last step of an epoch
        if batch_idx + 1 < trainer.num_training_batches:
            self._save_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._save_if_due(trainer, pl_module, last=trainer.current_epoch + 1 == trainer.max_epochs)

    def _save_if_due(self, trainer: lightning.Trainer, module: lightning.LightningModule, last: bool = False) -> None:
        assert isinstance(module, TrainingModule)
        # reading the loss synchronizes with a GPU, so it is read only at steps that do so anyway
        may_read = module.device.type == "cpu" or module.step_is_logged or last
        stop_signal, due, diverged = self._synchronize(
            trainer, time.monotonic() >= self.next_save_time, may_read and module.diverged()
        )
        save = stop_signal or due or last or (diverged and module.stays_finite)
        if save and self.folder is not None and trainer.global_step > self.saved_step:
            started = time.monotonic()
            save_checkpoint(trainer, self.folder)
            self.saved_step, now = trainer.global_step, time.monotonic()
            interval = min(now - self.started, SAVE_INTERVAL_SECONDS)
            self.next_save_time = now + max(interval, SAVE_INTERVAL_FACTOR * (now - started))
        if diverged:
            error = InputError(module.divergence_message())
            error.on_all_ranks = True
            raise error
        if stop_signal and not last:
            raise StoppedError(stop_signal)

    def _synchronize(self, trainer: lightning.Trainer, due: bool, diverged: bool) -> tuple[int, int, int]:
        """Return the signal of any process, whether a checkpoint is due in rank 0, and whether any process diverged."""
        if self.cpu_group is None:
            return self.stop_signal, due, diverged
        flags = torch.tensor([self.stop_signal, int(due and trainer.is_global_zero), int(diverged)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.cpu_group)
        stop_signal, due, diverged = flags.tolist()
        return stop_signal, due, diverged
