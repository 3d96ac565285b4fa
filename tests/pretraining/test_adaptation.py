"""What of a backbone may change in a run: stages, BatchNorm, and when."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

import mec
from mec.errors import InputError
from mec.models.encoder import create_encoder
from mec.pretraining import OnlineProbe, Recipe, pretrain
from tests.pretraining.test_run import TINY

SHORT = replace(TINY, epochs=2, subsample=4, batch_size=64, whiten_stem=False)
STATISTICS = ("running_mean", "running_var")


class Weights(lightning.Callback):
    """Keeps the state of the network before each step, and the learning rates of each step."""

    def __init__(self) -> None:
        self.before: list[dict[str, Tensor]] = []
        self.rates: list[dict[bool, float]] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        self.before.append({k: v.clone() for k, v in pl_module.network.state_dict().items()})

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.rates.append({bool(group.get("is_backbone")): group["lr"] for group in optimizer.param_groups})

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.after = {k: v.clone() for k, v in pl_module.network.state_dict().items()}
        self.optimizer = trainer.optimizers[0]


def train(out: Path, recipe: Recipe, *callbacks: lightning.Callback) -> Weights:
    weights = Weights()
    pretrain("digits", out, recipe, callbacks=[*callbacks, weights])
    return weights


def changed(weights: Weights, prefix: str = "encoder.backbone.") -> set[str]:
    """Return the names of the tensors that the training changed, without counters."""
    names = {name for name, start in weights.before[0].items() if not torch.equal(start, weights.after[name])}
    return {n.removeprefix(prefix) for n in names if n.startswith(prefix) and not n.endswith("num_batches_tracked")}


def tensors(start: tuple[str, ...] = ("",)) -> set[str]:
    backbone = create_encoder("resnet18", 16, 1, options=SHORT.backbone_options).backbone
    names = {name for name in backbone.state_dict() if not name.endswith("num_batches_tracked")}
    return {name for name in names if name.startswith(start)}


def test_frozen_stages_keep_weights_and_statistics(tmp_path: Path) -> None:
    weights = train(tmp_path / "run", replace(SHORT, freeze=2))
    assert changed(weights) == tensors() - tensors(("conv1", "bn1", "layer1", "layer2"))


def test_every_stage_is_trained_by_default(tmp_path: Path) -> None:
    assert changed(train(tmp_path / "run", SHORT)) == tensors()


@pytest.mark.parametrize("teacher", [False, True])
def test_batch_norm_keeps_its_statistics_also_with_probes(teacher: bool, tmp_path: Path) -> None:
    recipe = replace(SHORT, batch_norm="affine-only", teacher=replace(SHORT.teacher, enabled=teacher))
    weights = train(tmp_path / "run", recipe, OnlineProbe("digits", every_n_epochs=1, workers=0))
    kept = {name for name in tensors() if name.endswith(STATISTICS)}
    assert changed(weights) == tensors() - kept
    if teacher:
        assert not {n for n in changed(weights, "teacher.0.backbone.") if n.endswith(STATISTICS)}


def test_frozen_batch_norm_keeps_scale_and_shift(tmp_path: Path) -> None:
    weights = train(tmp_path / "run", replace(SHORT, batch_norm="frozen"))
    backbone = create_encoder("resnet18", 16, 1, options=SHORT.backbone_options).backbone
    norms = tuple(f"{n}." for n, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d))
    assert changed(weights) == tensors() - tensors(norms)


def test_the_heads_are_trained_first(tmp_path: Path) -> None:
    optimizer = replace(SHORT.optimizer, heads_first=0.4, backbone_lr=1e-4, lr=1e-2, warmup_epochs=0.4)
    recipe = replace(SHORT, batch_norm="affine-only", optimizer=optimizer)
    weights = train(tmp_path / "run", recipe)  # 10 steps
    assert len(weights.before) == 10
    backbones = [{k: v for k, v in state.items() if k.startswith("encoder.")} for state in weights.before]
    for state in backbones[:5]:
        assert all(torch.equal(v, backbones[0][k]) for k, v in state.items())
    # the first step has the learning rate 0
    assert not torch.equal(weights.before[2]["projector.0.weight"], weights.before[0]["projector.0.weight"])
    assert any(not torch.equal(v, backbones[0][k]) for k, v in weights.after.items() if k.startswith("encoder."))
    steps = {
        bool(group.get("is_backbone")): int(weights.optimizer.state[group["params"][0]]["step"])
        for group in weights.optimizer.param_groups
    }
    assert steps == {True: 6, False: 10}
    # warm-up of a step, then half a cosine over those that are left
    expected = [0.0] + [1e-4 * 64 / 256 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]
    assert [rates[True] for rates in weights.rates[4:]] == pytest.approx(expected, abs=1e-9)


def test_more_frozen_stages_than_there_are_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^freeze: expected at most 3 for this ResNet, got 4$"):
        pretrain("digits", tmp_path / "run", replace(SHORT, freeze=4))
    with pytest.raises(InputError, match=r"^freeze: expected 0 for an encoder without timm's group_matcher"):
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        mec.pretrain("digits", tmp_path / "run", replace(SHORT, freeze=1), encoder=network)
    assert not (tmp_path / "run").exists()
