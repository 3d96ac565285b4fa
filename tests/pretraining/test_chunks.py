"""The gradient of a batch that passes through the encoder in chunks equals that of the whole batch."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from mec.coding import MECLoss
from mec.errors import InputError
from mec.models.encoder import Encoder, create_encoder, enable_gradient_checkpointing
from mec.models.siamese import PerView, Predictor, Projector, Siamese
from mec.pretraining import OptimizerSettings, ProjectorSettings, Recipe, TeacherSettings, pretrain
from mec.pretraining.module import Pretraining, chunked_loss
from tests.pretraining.test_run import TINY

IMAGES = 12
RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 12]}
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "global_pool": "avg"}


def resnet() -> Encoder:
    return create_encoder("resnet18", 16, 3, options=RESNET)


def vit(drop_path: float = 0.3) -> Encoder:
    options = VIT | {"drop_path_rate": drop_path}
    return create_encoder("vit_tiny_patch16_224", 16, 3, options=options)


def create_network(encoder: Encoder, teacher: bool = False, dtype: torch.dtype = torch.float64) -> Siamese:
    """Return a network whose weights and running statistics differ from their initial values."""
    network = Siamese(encoder, Projector(encoder.num_features, 16, 8), Predictor(8, 4) if teacher else None)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(torch.empty_like(tensor).uniform_(0.8, 1.2)).add_(0.1 * torch.rand_like(tensor))
    return network.to(dtype).train()


def freeze_batch_norm(network: Siamese) -> Siamese:
    """Put BatchNorm of the encoders in evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def random_views(dtype: torch.dtype = torch.float64, images: int = IMAGES) -> PerView:
    """Return views of images that differ clearly: BatchNorm in the heads amplifies small differences."""
    coarse = torch.randn(2, images, 3, 4, 4, dtype=torch.float64)
    x1, x2 = nn.functional.interpolate(coarse.flatten(0, 1), scale_factor=4).view(2, images, 3, 16, 16).to(dtype)
    return x1, x2


def split_into_chunks(x: PerView, size: int) -> list[Callable[[], PerView]]:
    """Return chunks that each seed the generator, as in a training step."""

    def chunk(start: int) -> PerView:
        torch.manual_seed(start)
        return x[0][start : start + size], x[1][start : start + size]

    return [lambda start=start: chunk(start) for start in range(0, len(x[0]), size)]  # type: ignore[misc]


def backward(surrogate: Tensor) -> None:
    surrogate.backward()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def joined_loss(network: Siamese, chunks: list[Callable[[], PerView]], loss: MECLoss) -> Tensor:
    """Return the loss by definition: chunks pass through the encoders with a graph, their features are concatenated."""
    student, teacher = [], []
    for chunk in chunks:
        x1, x2 = chunk()
        student.append((network.encoder(x1), network.encoder(x2)))
        teacher.append(network.teacher_features(x1, x2))
    f1, f2 = (torch.cat(view) for view in zip(*student, strict=True))
    teacher_features = None if teacher[0] is None else tuple(torch.cat(view) for view in zip(*teacher, strict=True))
    return loss(*network.codes((f1, f2), teacher_features))


def assert_close_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare relative to the largest element of all: that of a bias before BatchNorm is only rounding error."""
    assert actual.keys() == expected.keys()
    largest = max(float(t.abs().max()) for t in expected.values())
    for name, tensor in expected.items():
        assert torch.isfinite(actual[name]).all()
        assert float((actual[name] - tensor).abs().max()) <= tolerance * largest, name


# float64 shows that the gradients are equal; rounding in float32 depends on the CPU and its threads
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("kind", ["vit", "resnet, BatchNorm frozen"])
def test_without_batch_statistics_chunks_give_the_gradient_of_the_whole_batch(
    kind: str, teacher: bool, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    encoder = resnet() if kind == "resnet, BatchNorm frozen" else vit(0.0)
    network = freeze_batch_norm(create_network(encoder, teacher, dtype))
    x, loss = random_views(dtype), MECLoss(0.25, 4 if teacher else None)
    whole = copy.deepcopy(network)
    value = loss(*whole(*x))
    value.backward()
    for size in range(1, IMAGES + 1, 1 if dtype == torch.float64 else 5):
        chunked = copy.deepcopy(network)
        chunked_value = chunked_loss(chunked, split_into_chunks(x, size), loss, backward)
        chunked_value.backward()
        assert float(chunked_value.detach()) == pytest.approx(float(value.detach()), rel=tolerance)
        assert_close_gradients(gradients(chunked), gradients(whole), tolerance)
        for (name, a), b in zip(chunked.named_buffers(), whole.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("kind", [vit, resnet])
def test_with_batch_norm_and_drop_path_chunks_give_the_gradient_of_the_joined_chunks(
    kind: Callable[[], Encoder], size: int, teacher: bool, gradient_checkpointing: bool
) -> None:
    torch.manual_seed(0)
    network = create_network(kind(), teacher)
    x, loss = random_views(), MECLoss(0.25)
    joined, chunked = copy.deepcopy(network), network
    value = joined_loss(joined, split_into_chunks(x, size), loss)
    value.backward()
    if gradient_checkpointing:
        enable_gradient_checkpointing(chunked.encoder)
    chunked_value = chunked_loss(chunked, split_into_chunks(x, size), loss, backward)
    chunked_value.backward()
    assert float(chunked_value.detach()) == pytest.approx(float(value.detach()), rel=1e-12)
    assert_close_gradients(gradients(chunked), gradients(joined), 1e-12)
    if not gradient_checkpointing:
        for (name, a), b in zip(chunked.named_buffers(), joined.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 2.0**16)])
def test_autocast_gradient_error_in_chunks_is_that_of_the_whole_batch(dtype: torch.dtype, scale: float) -> None:
    """Compare both with the gradient in float64, for a batch with gradients below 1e-7."""
    torch.manual_seed(0)
    exact = freeze_batch_norm(create_network(resnet()))
    x, loss = random_views(torch.float64, 32), MECLoss(0.25)
    whole, chunked = copy.deepcopy(exact).float(), copy.deepcopy(exact).float()
    (1e-3 * loss(*exact(*x))).backward()
    x_float = x[0].float(), x[1].float()
    with torch.autocast("cpu", dtype):
        value = 1e-3 * loss(*whole(*x_float))
        chunked_value = chunked_loss(
            chunked,
            split_into_chunks(x_float, 12),
            lambda *codes: 1e-3 * loss(*codes),
            lambda surrogate: (surrogate * scale).backward(),
            scale,
        )
    (value * scale).backward()
    (chunked_value * scale).backward()
    assert float(chunked_value.detach()) == pytest.approx(float(value.detach()), rel=2e-2)

    def relative_error(network: Siamese) -> float:
        actual = torch.cat([g.flatten().double() / scale for g in gradients(network).values()])
        expected = torch.cat([g.flatten() for g in gradients(exact).values()])
        return float((actual - expected).norm() / expected.norm())

    assert relative_error(whole) < 0.5
    assert relative_error(chunked) < 1.5 * relative_error(whole)


class FirstStep(lightning.Callback):
    """Records gradient, loss and BatchNorm's running statistics of the first step, before the optimizer's update."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 0:
            self.gradients = {name: tensor.clone() for name, tensor in gradients(pl_module.network).items()}
            self.loss = float(pl_module.step_metrics["loss"])
            self.buffers = {name: b.clone() for name, b in pl_module.network.named_buffers()}


SMALL = replace(TINY, epochs=1, batch_size=449, projector=ProjectorSettings(16, 8), log_every=9)
RESNET_RECIPE = replace(SMALL, backbone_options=RESNET)
VIT_RECIPE = replace(SMALL, backbone="vit_tiny_patch16_224", backbone_options=VIT)


def first_step(recipe: Recipe, out: Path) -> FirstStep:
    callback = FirstStep()
    pretrain("digits", out, recipe, callbacks=[callback])
    return callback


@pytest.mark.parametrize("teacher", [False, True])
def test_pretraining_in_chunks_has_the_gradient_of_the_whole_batch(teacher: bool, tmp_path: Path) -> None:
    recipe = replace(VIT_RECIPE, teacher=TeacherSettings(teacher, 0.9, 8))
    whole = first_step(recipe, tmp_path / "whole")
    chunked = first_step(replace(recipe, chunk_size=100), tmp_path / "chunked")
    assert chunked.loss == pytest.approx(whole.loss, abs=1e-6)
    assert_close_gradients(chunked.gradients, whole.gradients, 1e-5)


def test_gradient_checkpointing_changes_neither_gradient_nor_statistics(tmp_path: Path) -> None:
    for chunk_size in (None, 225):
        recipe = replace(RESNET_RECIPE, chunk_size=chunk_size)
        plain = first_step(recipe, tmp_path / f"{chunk_size} plain")
        recomputed = first_step(replace(recipe, gradient_checkpointing=True), tmp_path / f"{chunk_size} recomputed")
        assert_close_gradients(recomputed.gradients, plain.gradients, 1e-6)
        for name, buffer in plain.buffers.items():
            torch.testing.assert_close(recomputed.buffers[name], buffer, rtol=1e-6, atol=1e-7, msg=name)
        # two views of one batch, or of two chunks
        assert plain.buffers["encoder.backbone.bn1.num_batches_tracked"] == (4 if chunk_size else 2)


def test_an_architecture_without_gradient_checkpointing_is_refused(tmp_path: Path) -> None:
    recipe = replace(SMALL, backbone="vgg11", backbone_options={}, gradient_checkpointing=True)
    with pytest.raises(InputError, match=r"gradient_checkpointing: .*vgg11"):
        pretrain("digits", tmp_path / "run", recipe)


def test_resume_in_chunks_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = VIT | {"drop_path_rate": 0.3}
    recipe = replace(VIT_RECIPE, backbone_options=options, chunk_size=100, gradient_checkpointing=True, epochs=2)
    undisturbed = pretrain("digits", tmp_path / "undisturbed", recipe)
    training_step = Pretraining.training_step

    def interrupted_step(self: Pretraining, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == 4:
            raise RuntimeError("power cut")
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr("mec.engine.checkpoints.SAVE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("mec.engine.checkpoints.SAVE_INTERVAL_FACTOR", 0)
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "training_step", interrupted_step)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain("digits", tmp_path / "run", recipe)
    resumed = pretrain("digits", tmp_path / "run", recipe, resume=True)
    weights = [(run.folder / "encoder.safetensors").read_bytes() for run in (undisturbed, resumed)]
    assert weights[0] == weights[1]


class DoublePrecision(lightning.Callback):
    """Trains in float64, where training does not amplify rounding errors noticeably, and records the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.network.double()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(pl_module.step_metrics["loss"]))


@pytest.mark.parametrize("setting", ["channels_last", "fused", pytest.param("compile", marks=pytest.mark.slow)])
def test_speed_settings_do_not_change_the_losses(setting: str, tmp_path: Path) -> None:
    recipe = replace(RESNET_RECIPE, epochs=2, optimizer=OptimizerSettings("sgd", 0.05))
    losses = []
    for value in (False, True):
        callback = DoublePrecision()
        changed = replace(recipe, speed=replace(recipe.speed, **{setting: value}))
        pretrain("digits", tmp_path / str(value), changed, callbacks=[callback])
        losses.append(callback.losses)
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
