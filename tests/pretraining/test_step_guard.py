"""Steps whose loss or gradient is not finite leave nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mec.engine.checkpoints import step_of
from mec.errors import InputError
from mec.pretraining import OptimizerSettings, Recipe, SpeedSettings, TeacherSettings, pretrain
from mec.pretraining.module import Pretraining
from tests.pretraining.test_run import TINY, quiet_console

SHORT = replace(TINY, epochs=1, subsample=4, batch_size=32)
STEP, OPTIMIZE = Pretraining.training_step, Pretraining.optimizer_step


def loss(module: Pretraining, batch: Any) -> Tensor:
    of = module.objective.forward
    module.objective.forward = lambda *arguments: of(*arguments) * math.nan
    try:
        return STEP(module, batch, 0)
    finally:
        del module.objective.forward


def gradient(module: Pretraining, batch: Any) -> Tensor:
    """One number of one weight's gradient; the loss is finite."""
    weight = next(module.network.encoder.parameters())
    handle = weight.register_hook(lambda g: handle.remove() or g.index_fill(0, torch.tensor([0]), math.inf))
    return STEP(module, batch, 0)


def image(module: Pretraining, batch: Any) -> Tensor:
    """One image of what enters the first BatchNorms, those of student and teacher."""
    module._normalize = lambda x: Pretraining._normalize(module, x).index_fill(0, torch.tensor([0]), math.inf)
    try:
        return STEP(module, batch, 0)
    finally:
        del module._normalize


def broken(patch: pytest.MonkeyPatch, at: set[int], how: Callable[[Pretraining, Any], Tensor]) -> dict[int, bool]:
    """Breaks steps; whether each left the state bitwise as it was is noted in what is returned."""
    same: dict[int, bool] = {}

    def state(module: Pretraining) -> list[Tensor]:
        network = {k: v for k, v in module.network.state_dict().items() if "num_batches" not in k}
        weights = [v for k, v in network.items() if "teacher" not in k or "running" in k]
        optimizer = module.trainer.optimizers[0].state_dict()["state"]
        return [t.clone() for t in [*weights, *(v for s in optimizer.values() for v in s.values())]]

    def step(module: Pretraining, batch: Any, batch_idx: int) -> Tensor:
        module.noted = module.global_step, state(module)
        return how(module, batch) if module.global_step in at else STEP(module, batch, batch_idx)

    def optimize(module: Pretraining, *arguments: Any, **named: Any) -> None:
        OPTIMIZE(module, *arguments, **named)
        number, before = module.noted
        after = state(module)
        # AdamW's state is made by its first step: of zeros, where that is left out
        new = after[len(before) :] if len(after) > len(before) else []
        same[number] = all(map(torch.equal, before, after)) and not any(t.any() for t in new)

    patch.setattr(Pretraining, "training_step", step)
    patch.setattr(Pretraining, "optimizer_step", optimize)
    return same


SGD = replace(SHORT, optimizer=OptimizerSettings("sgd", 0.1, 1e-4, 0.9, 1), teacher=TeacherSettings(True, 0.9, 8))
ADAMW = replace(SHORT, optimizer=replace(TINY.optimizer, warmup_epochs=0))


@pytest.mark.parametrize(
    ("recipe", "fused", "how"),
    [
        (SGD, True, loss),
        (SGD, True, gradient),
        (SGD, True, image),
        (SGD, False, gradient),
        (ADAMW, True, gradient),
        (ADAMW, False, loss),
    ],
)
def test_a_broken_step_changes_nothing(
    recipe: Recipe, fused: bool, how: Callable[[Pretraining, Any], Tensor], tmp_path: Path, monkeypatch: Any
) -> None:
    same = broken(monkeypatch, {0, 1, 3, 4, 8}, how)
    run = pretrain(
        "digits", tmp_path / "run", replace(recipe, speed=SpeedSettings(fused=fused)), console=quiet_console()
    )
    assert {number for number, kept in same.items() if kept} == {0, 1, 3, 4, 8}
    assert len(same) == 10
    rows = run.metrics()
    assert [row["skipped_steps"] for row in rows if row["step"] in (2, 5, 9)] == [2, 4, 5]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(p.isfinite().all() for p in run.encoder().state_dict().values())


def test_three_in_a_row_end_the_run_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = broken(monkeypatch, {1, 2, 6, 7, 8}, gradient)
    with pytest.raises(InputError, match=r"diverged: .* 3 steps in a row, up to step 9 \(5 steps .*lr"):
        pretrain("digits", tmp_path / "run", SHORT, console=quiet_console())
    assert sorted(same) == list(range(9))
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert step_of(checkpoint) == 9
    saved = torch.load(checkpoint, weights_only=True)
    assert all(t.isfinite().all() for t in saved["state_dict"].values())
    assert int(saved["state_dict"]["guard.skipped_steps"]) == 5
