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
from mec.errors import InputError
from mec.pretraining.module import Pretraining
from mec.pretraining.step_guard import MAX_CONSECUTIVE_SKIPS

EXIT_PREEMPTED = 75
"""Exit status of a run that saved and stopped at SIGTERM: EX_TEMPFAIL of sysexits.h, which asks for a retry."""
SAVE_INTERVAL_SECONDS = 300.0
"""Time between two checkpoints, at least."""
SAVE_INTERVAL_FACTOR = 20
"""Time between two checkpoints, at least, as a multiple of the time that the last one took to write."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """A signal stopped the run, after a checkpoint was saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class PreemptionCheckpoint(Checkpoint):
    """Saves every few minutes and at the end. Saves and ends the run at SIGTERM or SIGINT, whichever process receives
    it, and when several steps in a row are not finite."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stop_signal = 0
        self.cpu_group: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.next_save_time = time.monotonic() + SAVE_INTERVAL_SECONDS
        self.saved_step = trainer.global_step
        # with several processes lightning would check for SIGTERM at every step, and wait for the device to do so
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if trainer.world_size > 1:  # a group on the CPU, whose collectives do not wait for the devices
            self.cpu_group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
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
        assert isinstance(module, Pretraining)
        stop_signal, due = self._synchronize(trainer, time.monotonic() >= self.next_save_time)
        # reading the counter synchronizes with a GPU, so it is read only at steps that do so anyway
        may_read = module.device.type == "cpu" or module.is_logged_step or last
        diverged = may_read and module.guard.max_consecutive_skips >= MAX_CONSECUTIVE_SKIPS
        if (stop_signal or due or diverged or last) and trainer.global_step > self.saved_step:
            started = time.monotonic()
            save_checkpoint(trainer, self.folder)
            self.saved_step, now = trainer.global_step, time.monotonic()
            self.next_save_time = now + max(SAVE_INTERVAL_SECONDS, SAVE_INTERVAL_FACTOR * (now - started))
        if diverged:
            error = InputError(_divergence_message(trainer.global_step, module))
            error.on_all_ranks = True
            raise error
        if stop_signal and not last:
            raise StoppedError(stop_signal)

    def _synchronize(self, trainer: lightning.Trainer, due: bool) -> tuple[int, int]:
        """Return the signal that any process received, and whether a checkpoint is due by the clock of rank 0."""
        if self.cpu_group is None:
            return self.stop_signal, due
        flags = torch.tensor([self.stop_signal, int(due and trainer.is_global_zero)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.cpu_group)
        stop_signal, due = flags.tolist()
        return stop_signal, due


def _divergence_message(step: int, module: Pretraining) -> str:
    return (
        f"training diverged: loss or gradient was not finite in {MAX_CONSECUTIVE_SKIPS} steps in a row, up to step "
        f"{step} ({int(module.guard.skipped_steps)} steps skipped in the run). A checkpoint holds the weights of the "
        "last finite step. Lower optimizer.lr or lengthen optimizer.warmup_epochs; with objective.form cross raise "
        "objective.distortion, or set objective.form to pooled"
    )
