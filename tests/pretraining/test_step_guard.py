"""Steps whose loss or gradient is not finite change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mec.errors import InputError
from mec.models.checkpoint_files import checkpoint_step
from mec.pretraining import OptimizerSettings, Recipe, SpeedSettings, TeacherSettings, pretrain
from mec.pretraining.module import Pretraining
from tests.pretraining.test_run import TINY

SHORT = replace(TINY, epochs=1, subsample=4, batch_size=32)
TRAINING_STEP, OPTIMIZER_STEP = Pretraining.training_step, Pretraining.optimizer_step
FaultyStep = Callable[[Pretraining, Any], Tensor]


def nan_loss(module: Pretraining, batch: Any) -> Tensor:
    forward = module.objective.forward
    module.objective.forward = lambda *args: forward(*args) * math.nan
    try:
        return TRAINING_STEP(module, batch, 0)
    finally:
        del module.objective.forward


def infinite_gradient(module: Pretraining, batch: Any) -> Tensor:
    """Make one element of the gradient infinite; the loss is finite."""
    weight = next(module.network.encoder.parameters())
    handle = weight.register_hook(lambda g: handle.remove() or g.index_fill(0, torch.tensor([0]), math.inf))
    return TRAINING_STEP(module, batch, 0)


def infinite_image(module: Pretraining, batch: Any) -> Tensor:
    """Make one image infinite, and with it the running statistics of the first BatchNorm of student and teacher."""
    module._normalize = lambda x: Pretraining._normalize(module, x).index_fill(0, torch.tensor([0]), math.inf)
    try:
        return TRAINING_STEP(module, batch, 0)
    finally:
        del module._normalize


def inject_faults(patch: pytest.MonkeyPatch, steps: set[int], faulty_step: FaultyStep) -> dict[int, bool]:
    """Replace the training step at ``steps``. Return a dict that is filled with whether each step changed nothing."""
    unchanged: dict[int, bool] = {}

    def state(module: Pretraining) -> list[Tensor]:
        network = {k: v for k, v in module.network.state_dict().items() if "num_batches" not in k}
        weights = [v for k, v in network.items() if "teacher" not in k or "running" in k]
        optimizer = module.trainer.optimizers[0].state_dict()["state"]
        return [t.clone() for t in [*weights, *(v for s in optimizer.values() for v in s.values())]]

    def training_step(module: Pretraining, batch: Any, batch_idx: int) -> Tensor:
        module.before = module.global_step, state(module)
        return faulty_step(module, batch) if module.global_step in steps else TRAINING_STEP(module, batch, batch_idx)

    def optimizer_step(module: Pretraining, *args: Any, **kwargs: Any) -> None:
        OPTIMIZER_STEP(module, *args, **kwargs)
        step, before = module.before
        after = state(module)
        # AdamW creates its state at the first step: zeros, if that step is skipped
        created = after[len(before) :] if len(after) > len(before) else []
        unchanged[step] = all(map(torch.equal, before, after)) and not any(t.any() for t in created)

    patch.setattr(Pretraining, "training_step", training_step)
    patch.setattr(Pretraining, "optimizer_step", optimizer_step)
    return unchanged


SGD = replace(SHORT, optimizer=OptimizerSettings("sgd", 0.1, 1e-4, 0.9, 1), teacher=TeacherSettings(True, 0.9, 8))
ADAMW = replace(SHORT, optimizer=replace(TINY.optimizer, warmup_epochs=0))


@pytest.mark.parametrize(
    ("recipe", "fused", "faulty_step"),
    [
        (SGD, True, nan_loss),
        (SGD, True, infinite_gradient),
        (SGD, True, infinite_image),
        (SGD, False, infinite_gradient),
        (ADAMW, True, infinite_gradient),
        (ADAMW, False, nan_loss),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(
    recipe: Recipe, fused: bool, faulty_step: FaultyStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged = inject_faults(monkeypatch, {0, 1, 3, 4, 8}, faulty_step)
    recipe = replace(recipe, speed=SpeedSettings(fused=fused))
    run = pretrain("digits", tmp_path / "run", recipe)
    assert {step for step, same in unchanged.items() if same} == {0, 1, 3, 4, 8}
    assert len(unchanged) == 10
    rows = run.metrics()
    assert [row["skipped_steps"] for row in rows if row["step"] in (3, 6, 10)] == [2, 4, 5]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(p.isfinite().all() for p in run.encoder().state_dict().values())


def test_three_skipped_steps_in_a_row_end_the_run_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchanged = inject_faults(monkeypatch, {1, 2, 6, 7, 8}, infinite_gradient)
    with pytest.raises(InputError, match=r"diverged: .* 3 steps in a row, up to step 9 \(5 steps .*lr"):
        pretrain("digits", tmp_path / "run", SHORT)
    assert sorted(unchanged) == list(range(9))
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint_step(checkpoint) == 9
    saved = torch.load(checkpoint, weights_only=True)
    assert all(t.isfinite().all() for t in saved["state_dict"].values())
    assert int(saved["state_dict"]["guard.skipped_steps"]) == 5
