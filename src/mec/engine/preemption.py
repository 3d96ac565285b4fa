"""Checkpoints every few minutes, at SIGTERM or SIGINT, at the end, and when training diverges."""

from __future__ import annotations

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
from lightning.pytorch.callbacks import Checkpoint

from mec.engine.checkpoints import save_checkpoint
from mec.engine.progress import TrainingModule
from mec.errors import InputError

EXIT_PREEMPTED = 75
"""Exit status of a training that saved and stopped at SIGTERM: EX_TEMPFAIL of sysexits.h, which asks for a retry."""
SAVE_INTERVAL_SECONDS = 300.0
"""Time between two checkpoints, at least."""
SAVE_INTERVAL_FACTOR = 20
"""Time between two checkpoints, at least, as a multiple of the time that the last one took to write."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """A signal stopped the training, after a checkpoint was saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class PreemptionCheckpoint(Checkpoint):
    """Saves every few minutes and at the end. Saves and ends the training at SIGTERM or SIGINT, whichever process
    receives it, and ends it when it diverges.

    Args:
        folder: folder of the checkpoints; None saves none and leaves the signals to Lightning.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.stop_signal = 0
        self.cpu_group: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.next_save_time = time.monotonic() + SAVE_INTERVAL_SECONDS
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
            self.next_save_time = now + max(SAVE_INTERVAL_SECONDS, SAVE_INTERVAL_FACTOR * (now - started))
        if diverged:
            error = InputError(module.divergence_message())
            error.on_all_ranks = True
            raise error
        if stop_signal and not last:
            raise StoppedError(stop_signal)

    def _synchronize(self, trainer: lightning.Trainer, due: bool, diverged: bool) -> tuple[int, int, int]:
        """Return the signal that any process received, whether a checkpoint is due by the clock of rank 0, and whether
        training has diverged in any process."""
        if self.cpu_group is None:
            return self.stop_signal, due, diverged
        flags = torch.tensor([self.stop_signal, int(due and trainer.is_global_zero), int(diverged)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.cpu_group)
        stop_signal, due, diverged = flags.tolist()
        return stop_signal, due, diverged
