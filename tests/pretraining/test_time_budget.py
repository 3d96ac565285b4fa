"""Runs of a number of steps or minutes: they end when they should, and so do their schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest

import mec.pretraining.run
from mec.errors import InputError
from mec.models.checkpoint_files import checkpoint_step
from mec.pretraining import Run, pretrain, time_budget
from tests.pretraining.interrupted_runs import start_command
from tests.pretraining.test_resume_after_kill import assert_same_run
from tests.pretraining.test_run import TINY
from tests.processes import exit_status, free_port, needs_gloo

STEPS_PER_EPOCH = 5  # of TINY on the digits
RECIPE = replace(TINY, log_every=1, optimizer=replace(TINY.optimizer, warmup_epochs=0.1 * TINY.epochs))


class Clock(lightning.Callback):
    """A clock that advances only by ``duration(step)`` in each step, and raises KeyboardInterrupt before ``stop``."""

    def __init__(self, duration: Callable[[int], float], stop: int | None = None) -> None:
        self.now, self.duration, self.stop = 1000.0, duration, stop
        self.lr: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        self.lr.append(float(module.step_metrics["lr"]))

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.stop:
            self.stop = None
            raise KeyboardInterrupt
        self.now += self.duration(trainer.global_step)


def run_with(clock: Clock, monkeypatch: pytest.MonkeyPatch, out: Path, minutes: float, resume: bool = False) -> Run:
    fake = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr(time_budget, "time", fake)
    monkeypatch.setattr(mec.pretraining.run, "time", fake)
    return pretrain("digits", out, replace(RECIPE, minutes=minutes), resume, callbacks=[clock])


SPEEDS: dict[str, Callable[[int], float]] = {
    "constant": lambda step: 0.1,
    "slow start": lambda step: 5.0 if step == 0 else 0.1,
    "slower": lambda step: 0.1 if step < 90 else 0.25,
    "faster": lambda step: 0.3 if step < 40 else 0.1,
    "noisy": lambda step: 0.02 + 0.16 * (step * 2654435761 % 97) / 96,
}


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_run_fills_its_minutes_at_any_speed(speed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock(SPEEDS[speed])
    run = run_with(clock, monkeypatch, tmp_path / "run", minutes=0.3)
    assert 0.97 * 18 <= clock.now - 1000 <= 1.03 * 18
    assert run.recipe().steps == len(clock.lr) == run.metrics()[-1]["step"]
    peak = max(clock.lr)
    assert clock.lr[0] < 0.1 * peak
    assert clock.lr[-1] < 0.01 * peak
    assert run.encoder().num_features > 0


def test_a_resumed_run_has_the_time_that_was_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mec.engine.checkpoints, "SAVE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(mec.engine.checkpoints, "SAVE_INTERVAL_FACTOR", 0.0)
    clock = Clock(SPEEDS["constant"], stop=60)
    with pytest.raises(KeyboardInterrupt):
        run_with(clock, monkeypatch, tmp_path / "run", minutes=0.2)
    clock.now += 5000  # no time of a run
    start = clock.now
    run = run_with(clock, monkeypatch, tmp_path / "run", minutes=0.2, resume=True)
    assert clock.now - start == pytest.approx(6, rel=0.05)
    assert run.recipe().steps == pytest.approx(120, rel=0.05)


def test_minutes_that_passed_before_the_training_end_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = run_with(Clock(lambda step: 100.0), monkeypatch, tmp_path / "run", minutes=0.2)
    assert run.recipe().steps == 2
    assert (run.folder / "encoder.safetensors").exists()


@pytest.mark.parametrize("steps", [1, 7, 10])
def test_steps_end_a_run_within_an_epoch(steps: int, tmp_path: Path) -> None:
    run = pretrain("digits", tmp_path / "run", replace(RECIPE, steps=steps))
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert [row["epoch"] for row in rows] == [1 + step // STEPS_PER_EPOCH for step in range(steps)]
    (newest, *_) = sorted((run.folder / "checkpoints").iterdir())[::-1]
    assert checkpoint_step(newest) == steps
    epochs = pretrain("digits", tmp_path / "epochs", replace(RECIPE, epochs=2)) if steps == 10 else None
    if epochs:
        assert_same_weights(run, epochs)


def assert_same_weights(a: Run, b: Run) -> None:
    x, y = (run.encoder().state_dict() for run in (a, b))
    assert all(x[name].equal(y[name]) for name in x)


def test_a_run_of_steps_resumes_bit_identically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mec.engine.checkpoints, "SAVE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(mec.engine.checkpoints, "SAVE_INTERVAL_FACTOR", 0.0)
    recipe = replace(RECIPE, steps=8)
    expected = pretrain("digits", tmp_path / "expected", recipe)
    with pytest.raises(KeyboardInterrupt):
        pretrain("digits", tmp_path / "run", recipe, callbacks=[Clock(lambda step: 0.0, stop=6)])
    pretrain("digits", tmp_path / "run", recipe, resume=True)
    assert_same_run(tmp_path / "run", expected.folder)


@needs_gloo
def test_two_processes_end_together(tmp_path: Path) -> None:
    out, port = tmp_path / "run", free_port()
    recipe = replace(RECIPE, minutes=0.1, devices=2, accelerator="cpu")
    processes = [start_command("digits", out, recipe, None, (rank, 2, port)) for rank in range(2)]
    assert [exit_status(process) for process in processes] == [0, 0]
    steps = Run(out).recipe().steps
    assert steps == Run(out).metrics()[-1]["step"]


@pytest.mark.parametrize(("name", "value"), [("minutes", 0.0), ("minutes", float("nan")), ("steps", 0)])
def test_invalid_lengths_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^{name}: expected"):
        replace(RECIPE, **{name: value})
