"""What outlives a run that is stopped: checkpoints every few minutes, at a signal, and when it diverges."""

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
from mec.pretraining.step_guard import MOST_IN_A_ROW

PREEMPTED = 75
"""Exit status of a run that saved and stopped because of SIGTERM: sysexits' EX_TEMPFAIL, to be tried again."""
SECONDS = 300.0
"""Between two checkpoints."""
SHARE = 20
"""At most one part in so many of the time goes into writing checkpoints."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """The run was asked to stop by a signal, and has saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal = signal_number


class PreemptionCheckpoint(Checkpoint):
    """Saves every few minutes, at the end, and before it ends the run: at SIGTERM or SIGINT, in whichever process they
    come, or when several steps in a row are not finite."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = 0  # the signal that asks for the end
        self.group: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.due = time.monotonic() + SECONDS
        self.saved_at = trainer.global_step
        # of several processes lightning would ask in each step, waiting for the device, whether one has to stop
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if trainer.world_size > 1:  # of the hosts: what they agree on does not wait for the devices
            self.group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            # lightning's own talk to other processes in the middle of a step, and do not save; at the end of the fit it
            # puts back what was there before
            for number in SIGNALS:
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked == number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            name = signal.Signals(number).name
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            os.write(2, f"{name}: saving after this step, then stopping{again}\n".encode())
        self.asked = number

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # in the middle of an epoch lightning takes this step for unfinished and goes on after it; not so at its end
        if batch_idx + 1 < trainer.num_training_batches:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._look(trainer, pl_module, last=trainer.current_epoch + 1 == trainer.max_epochs)

    def _look(self, trainer: lightning.Trainer, module: lightning.LightningModule, last: bool = False) -> None:
        assert isinstance(module, Pretraining)
        asked, due = self._agreed(trainer, time.monotonic() >= self.due)
        # reading a counter waits for a GPU: only where figures are read anyway
        diverged = (module.device.type == "cpu" or module.measures or last) and module.guard.longest >= MOST_IN_A_ROW
        if (asked or due or diverged or last) and trainer.global_step > self.saved_at:
            began = time.monotonic()
            save_checkpoint(trainer, self.folder)
            self.saved_at, now = trainer.global_step, time.monotonic()
            self.due = now + max(SECONDS, SHARE * (now - began))
        if diverged:
            error = InputError(_advice(trainer.global_step, module))
            error.agreed = True
            raise error
        if asked and not last:
            raise StoppedError(asked)

    def _agreed(self, trainer: lightning.Trainer, due: bool) -> tuple[int, int]:
        """What any process was asked, and what the first one's clock says."""
        if self.group is None:
            return self.asked, due
        flags = torch.tensor([self.asked, int(due and trainer.is_global_zero)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.group)
        asked, due = flags.tolist()
        return asked, due


def _advice(step: int, module: Pretraining) -> str:
    return (
        f"training diverged: loss or gradient was not finite in {MOST_IN_A_ROW} steps in a row, up to step {step} "
        f"({int(module.guard.skipped)} steps left out in all); weights are those of the last good step, and saved. "
        "Lower optimizer.lr or lengthen optimizer.warmup_epochs; with objective.form cross raise "
        "objective.distortion, or take form pooled"
    )
