"""A training that fills a number of minutes: its number of steps is planned from the measured speed."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import lightning

from mec.pretraining.module import Pretraining

logger = logging.getLogger("mec")
Write = Callable[[int], None]

MIN_STEPS = 64
"""Steps that a training is assumed to have, at least, before its speed is known."""
PLANS = 50
"""Plans in a training, besides those at its start."""
LOGGED_AFTER = 8
"""Steps after which a plan is logged."""
WINDOW = 8
"""Plans over which the speed is averaged."""


def limit_training(trainer: lightning.Trainer, module: Pretraining, started: float, write: Write) -> None:
    """Give a training the length of its recipe, where that is in steps or minutes; see ``TimeBudget``."""
    recipe, total = module.recipe, module.total_steps
    if recipe.minutes is not None:
        budget = TimeBudget(60 * recipe.minutes, started, write)
        trainer.callbacks.insert(0, budget)  # type: ignore[attr-defined]  # before that of checkpoints
        total = recipe.steps or max(MIN_STEPS, total)
    if recipe.minutes is not None or recipe.steps is not None:
        _set_total_steps(trainer, module, total)


def _set_total_steps(trainer: lightning.Trainer, module: Pretraining, total: int) -> None:
    """Set the length of a training, also of one that runs; its last epoch may be incomplete."""
    # not max_steps, with which lightning resumes wrongly from a checkpoint at the end of an epoch
    trainer.fit_loop.max_epochs = -(-total // module.steps_per_epoch)
    module.set_total_steps(total)


class TimeBudget(lightning.Callback):
    """Ends a training when ``seconds`` have passed, by planning the number of its steps.

    The plan is made from the speed of the first steps, and again and again, so that the schedules of learning rate
    and objective end with the training although the speed varies. A resumed training has the time that was left when
    its checkpoint was saved. All processes follow the clock of rank 0.

    Args:
        seconds: time of the whole training.
        started: ``time.monotonic()`` from which the time of this process counts.
        write: called on rank 0 with each plan, a number of steps.
    """

    def __init__(self, seconds: float, started: float, write: Write) -> None:
        self.seconds, self.started, self.write = seconds, started, write
        self.seconds_before = 0.0
        self.marks: deque[tuple[int, float]] = deque(maxlen=WINDOW)  # steps and times of the plans
        self.first_step = 0

    @property
    def elapsed(self) -> float:
        """Seconds used so far, before and after resuming."""
        return self.seconds_before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.first_step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        step, done = trainer.global_step, trainer.global_step - self.first_step
        if done == 1:  # the first step includes the start of loader processes
            self.marks.append((step, time.monotonic()))
        elif done & (done - 1) == 0 or step % max(1, pl_module.total_steps // PLANS) == 0:
            total = trainer.strategy.broadcast(self._plan(step))
            if done == LOGGED_AFTER and trainer.is_global_zero:
                self._log(total, pl_module)
            _set_total_steps(trainer, pl_module, total)
            if trainer.is_global_zero:
                self.write(total)

    def _plan(self, step: int) -> int:
        """Return the number of steps of the whole training, by the average speed since the oldest mark."""
        now = time.monotonic()
        first_step, first_time = self.marks[0]
        self.marks.append((step, now))
        return step + max(0, int((self.seconds - self.elapsed) * (step - first_step) / (now - first_time)))

    def _log(self, total: int, module: Pretraining) -> None:
        (first_step, first_time), (step, now) = self.marks[0], self.marks[-1]
        speed = (step - first_step) * module.batch_size / (now - first_time)
        logger.info(
            f"training: about {total:,} steps ({total / module.steps_per_epoch:.3g} epochs) fill the "
            f"{self.seconds / 60:g} minutes, at {speed:.0f} images/s; planned again during the training"
        )
