"""Any optimizer of timm: its groups, steps that are skipped, exact resume, and messages about wrong settings."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from mec.cli.main import parse
from mec.engine import checkpoints
from mec.errors import InputError
from mec.models.encoder import create_encoder
from mec.models.siamese import Projector, Siamese
from mec.pretraining import OptimizerSettings, pretrain
from mec.pretraining.optimizers import check_layers, create_optimizer
from mec.pretraining.recipe_files import make_recipe
from mec.pretraining.step_guard import StepGuard
from tests.pretraining.test_run import TINY

SETTINGS = OptimizerSettings("lars", 0.1, 0.01, 0.9)


def small_vit() -> Siamese:
    torch.manual_seed(0)
    options = {"depth": 2, "embed_dim": 16, "num_heads": 2}
    encoder = create_encoder("vit_tiny_patch16_224", 16, options=options)
    return Siamese(encoder, Projector(16, 8, 4))


def set_gradients(network: Siamese, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in filter(lambda p: p.requires_grad, network.parameters()):
        p.grad = torch.randn(p.shape, generator=generator)


def tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state.clone()
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamm"}, "optimizer.name: expected sgd, .* got 'adamm'; did you mean adam"),
        ({"name": "LARS"}, "optimizer.name: .* did you mean lars"),
        ({"name": "lookahead_sgd"}, "optimizer.name"),
        ({"name": "adahessian"}, "optimizer.name: .* second derivatives"),
        ({"name": "bnbadam8bit"}, "optimizer.name: .* bitsandbytes"),
        ({"name": "muon", "options": {"ns_step": 3}}, "optimizer.options: .* got 'ns_step'; did you mean ns_steps"),
        ({"options": {"lr": 1}}, "optimizer.options: expected no lr, which is the setting optimizer.lr"),
        ({"options": {"foreach": True}}, "optimizer.options: expected no foreach, which is the setting speed.fused"),
        ({"options": {"betas": [0.9, 2]}}, "optimizer.options: adamw: "),
        ({"name": "lion", "options": {"betas": [0.9]}}, "optimizer.options: lion: .*got {'betas': .0.9.}"),
        ({"name": "muon", "options": {"adjust_lr_fn": "none"}}, "optimizer.options: muon: "),
        ({"layer_decay": 1.5}, "optimizer.layer_decay"),
    ],
)
def test_a_wrong_optimizer_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_recipe({"optimizer": settings})
    assert "\n" not in str(caught.value)


def test_options_are_written_on_the_command_line_as_in_yaml() -> None:
    _, options = parse(["pretrain", "digits", "--out", "x", "--optimizer.options", "{betas: [0.8, 0.95], eps: 1e-6}"])
    assert options["optimizer"]["options"] == {"betas": [0.8, 0.95], "eps": 1e-6}
    optimizer = create_optimizer(small_vit(), OptimizerSettings(**options["optimizer"]), 0.1, fused=True)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (*optimizer.defaults["betas"], optimizer.defaults["eps"]) == (0.8, 0.95, 1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_by_default_all_parameters_are_one_group_of_a_fused_optimizer(name: str) -> None:
    network = small_vit()
    optimizer = create_optimizer(network, replace(SETTINGS, name=name), 0.1, fused=True)
    (group,) = optimizer.param_groups
    assert list(map(id, group["params"])) == [id(p) for p in network.parameters() if p.requires_grad]
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.1, 0.01, True)
    assert "lr_scale" not in group


def test_groups_exclude_norms_and_biases_and_lower_the_lr_of_early_layers() -> None:
    network = small_vit()
    settings = replace(SETTINGS, name="muon", decay_norms_and_biases=False, layer_decay=0.5)
    optimizer = create_optimizer(network, settings, 0.1, fused=False)
    found = {id(p): (g["weight_decay"], g["lr_scale"]) for g in optimizer.param_groups for p in g["params"]
             if "lr_scale" in g or g.setdefault("lr_scale", 1.0)}  # fmt: skip
    scales = {"blocks.0.": 0.5, "patch_embed.": 0.25, "cls_token": 0.25, "pos_embed": 0.25}
    for name, p in network.named_parameters():
        if not p.requires_grad:
            continue
        is_decayed = p.ndim > 1 and not name.endswith(("cls_token", "pos_embed"))
        scale = next((scale for start, scale in scales.items() if name.startswith(f"encoder.backbone.{start}")), 1.0)
        assert found.pop(id(p)) == (0.01 * is_decayed, scale), name
    assert not found


def test_layer_decay_of_a_backbone_without_known_layers_is_refused() -> None:
    with pytest.raises(InputError, match=r"optimizer.layer_decay: expected null for an encoder without"):
        check_layers(torch.nn.Linear(2, 2), replace(SETTINGS, layer_decay=0.5))


def test_a_step_of_lars_equals_its_formula() -> None:
    """Buffer = trust * ||w|| / (||g|| + decay * ||w||) * (g + decay * w), and plain SGD where nothing decays."""
    network = small_vit()
    optimizer = create_optimizer(network, replace(SETTINGS, decay_norms_and_biases=False), 0.3, fused=False)
    before = {name: p.detach().double() for name, p in network.named_parameters()}
    set_gradients(network, 0)
    optimizer.step()
    for name, p in network.named_parameters():
        if p.grad is None:
            continue
        w, g = before[name], p.grad.double()
        if p.ndim > 1 and not name.endswith(("cls_token", "pos_embed")):
            g = 0.001 * w.norm() / (g.norm() + 0.01 * w.norm()) * (g + 0.01 * w)
        torch.testing.assert_close(p.detach().double(), w - 0.3 * g, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["lars", "muon", "lion", "adamp", "lamb", "adan", "madgrad", "adopt", "rmsprop"])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_averages(name: str) -> None:
    network, guard = small_vit(), StepGuard()
    optimizer = create_optimizer(network, replace(SETTINGS, name=name), 0.01, fused=False)
    guard.track_statistics(network)
    for step, factor in enumerate((math.nan, 1.0, 1.0, math.inf, 1.0)):
        set_gradients(network, step)
        next(network.parameters()).grad.view(-1)[0] *= factor
        before = [*tensors(dict(network.named_parameters())), *tensors(optimizer.state_dict()["state"])]
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        guard.skip_if_non_finite(torch.zeros(()), gradients, optimizer)
        optimizer.step()
        after = [*tensors(dict(network.named_parameters())), *tensors(optimizer.state_dict()["state"])]
        is_same = len(before) == len(after) and all(map(torch.equal, before, after))
        assert is_same == (not math.isfinite(factor)), step


@pytest.mark.parametrize("name", ["lars", "muon", "nadamuon", "lion", "adan"])
def test_a_loaded_optimizer_continues_with_the_same_weights(name: str) -> None:
    settings = replace(SETTINGS, name=name, decay_norms_and_biases=False, layer_decay=0.7)
    networks = [small_vit(), small_vit()]
    first, second = (create_optimizer(network, settings, 0.01, fused=False) for network in networks)
    for step in range(6):
        if step == 3:
            file = io.BytesIO()
            torch.save([networks[0].state_dict(), first.state_dict()], file)
            file.seek(0)
            weights, state = torch.load(file, weights_only=True)
            networks[1].load_state_dict(weights)
            second.load_state_dict(state)
        for network, optimizer in zip(networks, (first, second), strict=True):
            if step >= 3 or network is networks[0]:
                set_gradients(network, step)
                optimizer.step()
    for p, q in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(p, q)


class LrRecorder(lightning.Callback):
    """Records the learning rates of all groups at each step."""

    def __init__(self) -> None:
        self.lrs: list[list[float]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self.lrs.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def test_a_resumed_run_with_muon_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SAVE_INTERVAL_FACTOR", 0)
    optimizer = OptimizerSettings("muon", 5e-3, 0.1, 0.95, 0, {"ns_steps": 3}, False, 0.5)
    recipe, recorder = replace(TINY, epochs=1, subsample=4, batch_size=64, optimizer=optimizer), LrRecorder()
    run = pretrain("digits", tmp_path / "run", recipe, callbacks=[recorder])
    base_lr = [row["lr"] for row in run.metrics()]
    assert [max(lrs) for lrs in recorder.lrs] == pytest.approx(base_lr, rel=1e-4)
    # a stem and four stages of one block, the last of which has the full lr
    assert [min(lrs) for lrs in recorder.lrs] == pytest.approx([0.5**4 * lr for lr in base_lr], rel=1e-4)
    weights = (run.folder / "encoder.safetensors").read_bytes()
    shutil.copytree(run.folder, tmp_path / "resumed")
    steps = sorted((tmp_path / "resumed" / "checkpoints").iterdir())
    assert len(steps) > 1
    for path in [*steps[1:], tmp_path / "resumed" / "encoder.safetensors"]:
        path.unlink()
    resumed = pretrain("digits", tmp_path / "resumed", recipe, resume=True)
    assert (resumed.folder / "encoder.safetensors").read_bytes() == weights
