"""Objectives of users, and runs with them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize, relu

import mec
from mec.errors import InputError
from mec.pretraining import OptimizerSettings, ProjectorSettings, Recipe, TeacherSettings

RECIPE = replace(
    mec.load_recipe("digits"),
    backbone="test_resnet",
    backbone_options={},
    image_size=16,
    subsample=10,
    batch_size=32,
    epochs=2,
    log_every=1,
    projector=ProjectorSettings(32, 16),
    teacher=TeacherSettings(predictor_hidden_dim=8),
    optimizer=OptimizerSettings("sgd", 0.05, warmup_epochs=0.5),
    accelerator="cpu",
    precision="32-true",
    workers=0,
)
STEPS_PER_EPOCH = 4  # of 135 images, 32 at a time
Codes = Sequence[Tensor]


def simclr(codes: Codes) -> Tensor:
    """SimCLR of a user, for one process."""
    z = normalize(torch.cat([*codes]))
    similarity = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
    m = len(codes[0])
    return cross_entropy(similarity, torch.arange(2 * m).roll(m))


class VICReg(nn.Module):
    """VICReg of a user, with all optional attributes, noise, and a trained weight of the invariance."""

    batch_norm = False

    def __init__(self, variance: float = 25.0) -> None:
        super().__init__()
        self.variance, self.log_weight, self.warm, self.done = variance, nn.Parameter(torch.zeros(())), -1.0, -1.0

    def forward(self, codes: Codes) -> Tensor:
        invariance = mse_loss(*(z + 0.1 * torch.randn_like(z) for z in codes))
        spread = sum(relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in codes)
        covariances = [z.T.cov() for z in codes]
        redundancy = sum((C - C.diag().diag()).square().sum() / len(C) for C in covariances)
        return 25 * (invariance * self.log_weight.exp() - self.log_weight) + self.variance * spread + redundancy

    def health(self, codes: Codes) -> dict[str, Any]:
        return {"deviation": codes[0].std(0).mean(), "warm": self.warm, "done": self.done, "rows": len(codes[0])}

    def schedule(self, progress: float) -> None:
        self.done = progress

    def warmup(self, progress: float) -> None:
        self.warm = progress


def cosine(codes: Codes, targets: Codes) -> Tensor:
    """Distance of predictions and targets, of a user."""
    assert not any(t.requires_grad for t in targets)
    a, b, s, t = map(normalize, (*codes, *targets))
    return 2 - (a * t + b * s).sum(1).mean()


def of_all_views(codes: Codes) -> Tensor:
    """Variance between four views, and the logarithm of the variances of their mean."""
    views = torch.stack([*codes])
    assert len(views) == 4
    return views.var(0).mean() - views.mean(0).var(0).add(1e-4).log().mean()


class Recorder(lightning.Callback):
    """Records the module, its losses and the final weights, in float64 if ``dtype`` says so; kills at a step."""

    def __init__(self, dtype: torch.dtype = torch.float32, kill_at: int | None = None) -> None:
        self.dtype, self.kill_at, self.losses = dtype, kill_at, []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.module = pl_module.to(self.dtype)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(pl_module.step_metrics["loss"]))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        names = ("network.", "objective.")
        self.weights = {name: t.clone() for name, t in pl_module.state_dict().items() if name.startswith(names)}


def recorded_run(out: Path, recipe: Recipe = RECIPE, dtype: torch.dtype = torch.float32, **arguments: Any) -> Recorder:
    recorder = Recorder(dtype)
    mec.pretrain("digits", out, recipe, callbacks=[recorder], **arguments)
    return recorder


def single_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert " at 0x" not in message
    return message


def with_attributes(function: Callable[..., Tensor], **attributes: Any) -> Callable[..., Tensor]:
    def objective(*arguments: Any) -> Tensor:
        return function(*arguments)

    vars(objective).update(attributes)
    return objective
