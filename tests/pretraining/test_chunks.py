"""The gradient of a batch that passes the encoder in chunks is that of the batch."""

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
from mec.models.heads import Predictor, Projector
from mec.models.siamese import Pair, Siamese
from mec.pretraining import OptimizerSettings, Recipe, TeacherSettings, pretrain
from mec.pretraining.chunks import chunked_loss
from mec.pretraining.module import Pretraining
from tests.pretraining.test_run import TINY, quiet_console

IMAGES = 12
RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 12]}
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "global_pool": "avg"}


def resnet() -> Encoder:
    return create_encoder("resnet18", 16, 3, options=RESNET)


def vit(drop_path: float = 0.3) -> Encoder:
    options = VIT | {"drop_path_rate": drop_path}
    return create_encoder("vit_tiny_patch16_224", 16, 3, options=options)


def network_of(encoder: Encoder, teacher: bool = False, dtype: torch.dtype = torch.float64) -> Siamese:
    """With statistics and weights that are not those of the beginning."""
    network = Siamese(encoder, Projector(encoder.num_features, 16, 8), Predictor(8, 4) if teacher else None)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(torch.empty_like(tensor).uniform_(0.8, 1.2)).add_(0.1 * torch.rand_like(tensor))
    return network.to(dtype).train()


def freeze(network: Siamese) -> Siamese:
    """BatchNorm of the encoders as it is after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def views(dtype: torch.dtype = torch.float64, images: int = IMAGES) -> Pair:
    """Of images that differ enough to be told apart: BatchNorm in the heads multiplies what little there is."""
    coarse = torch.randn(2, images, 3, 4, 4, dtype=torch.float64)
    x1, x2 = nn.functional.interpolate(coarse.flatten(0, 1), scale_factor=4).view(2, images, 3, 16, 16).to(dtype)
    return x1, x2


def chunks_of(x: Pair, size: int) -> list[Callable[[], Pair]]:
    """Each begins with its own random numbers, as in a training step."""

    def chunk(start: int) -> Pair:
        torch.manual_seed(start)
        return x[0][start : start + size], x[1][start : start + size]

    return [lambda start=start: chunk(start) for start in range(0, len(x[0]), size)]  # type: ignore[misc]


def backward(share: Tensor) -> None:
    share.backward()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def in_one_graph(network: Siamese, chunks: list[Callable[[], Pair]], loss: MECLoss) -> Tensor:
    """The definition: every chunk goes through the encoders with a graph, and what comes out is joined."""
    own, seen = [], []
    for chunk in chunks:
        x1, x2 = chunk()
        own.append((network.encoder(x1), network.encoder(x2)))
        seen.append(network.teacher_features(x1, x2))
    f1, f2 = (torch.cat(view) for view in zip(*own, strict=True))
    targets = None if seen[0] is None else tuple(torch.cat(view) for view in zip(*seen, strict=True))
    return loss(*network.codes((f1, f2), targets))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """To ``tolerance`` of the largest entry of all: the gradient of a bias before BatchNorm is nothing but rounding."""
    assert found.keys() == expected.keys()
    largest = max(float(t.abs().max()) for t in expected.values())
    for name, tensor in expected.items():
        assert torch.isfinite(found[name]).all()
        assert float((found[name] - tensor).abs().max()) <= tolerance * largest, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("kind", ["vit", "resnet with BatchNorm frozen"])
def test_the_gradient_of_the_whole_batch(kind: str, teacher: bool, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    encoder = resnet() if kind == "resnet with BatchNorm frozen" else vit(0.0)
    network = freeze(network_of(encoder, teacher, dtype))
    x, loss = views(dtype), MECLoss(0.25, 4 if teacher else None)
    whole = copy.deepcopy(network)
    value = loss(*whole(*x))
    value.backward()
    for size in range(1, IMAGES + 1, 1 if dtype == torch.float64 else 5):
        parts = copy.deepcopy(network)
        found = chunked_loss(parts, chunks_of(x, size), loss, backward)
        found.backward()
        assert float(found.detach()) == pytest.approx(float(value.detach()), rel=tolerance)
        assert_same(gradients(parts), gradients(whole), tolerance)
        for (name, a), b in zip(parts.named_buffers(), whole.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("kind", [vit, resnet])
def test_with_batchnorm_and_drop_path_it_is_that_of_joined_chunks(
    kind: Callable[[], Encoder], size: int, teacher: bool, recomputed: bool
) -> None:
    torch.manual_seed(0)
    network = network_of(kind(), teacher)
    x, loss = views(), MECLoss(0.25)
    joined, parts = copy.deepcopy(network), network
    value = in_one_graph(joined, chunks_of(x, size), loss)
    value.backward()
    if recomputed:
        enable_gradient_checkpointing(parts.encoder)
    found = chunked_loss(parts, chunks_of(x, size), loss, backward)
    found.backward()
    assert float(found.detach()) == pytest.approx(float(value.detach()), rel=1e-12)
    assert_same(gradients(parts), gradients(joined), 1e-12)
    if not recomputed:
        for (name, a), b in zip(parts.named_buffers(), joined.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 2.0**16)])
def test_in_half_precision(dtype: torch.dtype, scale: float) -> None:
    """As near to the gradient in float64 as the step that sees all at once, in a batch with gradients below 1e-7."""
    torch.manual_seed(0)
    exact = freeze(network_of(resnet()))
    x, loss = views(torch.float64, 64), MECLoss(0.25)
    whole, parts = copy.deepcopy(exact).float(), copy.deepcopy(exact).float()
    (1e-3 * loss(*exact(*x))).backward()
    own = x[0].float(), x[1].float()
    with torch.autocast("cpu", dtype):
        small = 1e-3 * loss(*whole(*own))
        found = chunked_loss(
            parts, chunks_of(own, 24), lambda *codes: 1e-3 * loss(*codes), lambda s: (s * scale).backward(), scale
        )
    (small * scale).backward()
    (found * scale).backward()
    assert float(found.detach()) == pytest.approx(float(small.detach()), rel=2e-2)

    def error(network: Siamese) -> float:
        ours = torch.cat([g.flatten().double() / scale for g in gradients(network).values()])
        theirs = torch.cat([g.flatten() for g in gradients(exact).values()])
        return float((ours - theirs).norm() / theirs.norm())

    assert error(whole) < 0.5
    assert error(parts) < 1.5 * error(whole)


class FirstGradient(lightning.Callback):
    """Of the first step, as the optimizer gets it; and its loss and BatchNorm's running statistics."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 0:
            self.gradients = {name: tensor.clone() for name, tensor in gradients(pl_module.network).items()}
            self.loss = float(pl_module.step_metrics["loss"])
            self.buffers = {name: b.clone() for name, b in pl_module.network.named_buffers()}


SMALL = replace(
    TINY, epochs=1, batch_size=449, projector=replace(TINY.projector, hidden_dim=16, output_dim=8), log_every=9
)
RESNETS = replace(SMALL, backbone_options=RESNET)
VITS = replace(SMALL, backbone="vit_tiny_patch16_224", backbone_options=VIT)


def first_step(recipe: Recipe, out: Path) -> FirstGradient:
    noted = FirstGradient()
    pretrain("digits", out, recipe, console=quiet_console(), callbacks=[noted])
    return noted


@pytest.mark.parametrize("teacher", [False, True])
def test_pretraining_in_chunks_steps_along_the_gradient_of_the_batch(teacher: bool, tmp_path: Path) -> None:
    recipe = replace(VITS, teacher=TeacherSettings(teacher, 0.9, 8))
    whole = first_step(recipe, tmp_path / "whole")
    parts = first_step(replace(recipe, chunk_size=100), tmp_path / "parts")
    assert parts.loss == pytest.approx(whole.loss, abs=1e-6)
    assert_same(parts.gradients, whole.gradients, 1e-5)


def test_recomputed_activations_change_neither_gradient_nor_statistics(tmp_path: Path) -> None:
    for chunk in (None, 225):
        kept = first_step(replace(RESNETS, chunk_size=chunk), tmp_path / f"{chunk} kept")
        again = first_step(replace(RESNETS, chunk_size=chunk, gradient_checkpointing=True), tmp_path / f"{chunk} again")
        assert_same(again.gradients, kept.gradients, 1e-6)
        for name, buffer in kept.buffers.items():
            torch.testing.assert_close(again.buffers[name], buffer, rtol=1e-6, atol=1e-7, msg=name)
        # two views of one batch, or of two chunks
        assert kept.buffers["encoder.backbone.bn1.num_batches_tracked"] == (4 if chunk else 2)


def test_an_architecture_that_cannot_recompute(tmp_path: Path) -> None:
    recipe = replace(SMALL, backbone="vgg11", backbone_options={}, gradient_checkpointing=True)
    with pytest.raises(InputError, match="gradient_checkpointing: .*vgg11"):
        pretrain("digits", tmp_path / "run", recipe, console=quiet_console())


def test_resumed_in_chunks_is_as_if_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = VIT | {"drop_path_rate": 0.3}
    recipe = replace(VITS, backbone_options=options, chunk_size=100, gradient_checkpointing=True, epochs=2)
    whole = pretrain("digits", tmp_path / "whole", recipe, console=quiet_console())
    step = Pretraining.training_step

    def stops(self: Pretraining, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == 4:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr("mec.pretraining.checkpointing.SAVE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("mec.pretraining.checkpointing.SAVE_INTERVAL_FACTOR", 0)
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "training_step", stops)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain("digits", tmp_path / "run", recipe, console=quiet_console())
    resumed = pretrain("digits", tmp_path / "run", recipe, resume=True, console=quiet_console())
    weights = [(run.folder / "encoder.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]


class InDouble(lightning.Callback):
    """In float64 rounding stays rounding, however training multiplies it."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.network.double()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(pl_module.step_metrics["loss"]))


@pytest.mark.parametrize("switch", ["channels_last", "fused", pytest.param("compile", marks=pytest.mark.slow)])
def test_what_is_faster_computes_the_same(switch: str, tmp_path: Path) -> None:
    recipe = replace(RESNETS, epochs=2, optimizer=OptimizerSettings("sgd", 0.05))
    runs = []
    for value in (False, True):
        noted = InDouble()
        speed = replace(recipe.speed, **{switch: value})
        pretrain(
            "digits", tmp_path / str(value), replace(recipe, speed=speed), console=quiet_console(), callbacks=[noted]
        )
        runs.append(noted.losses)
    assert len(runs[0]) == 6
    assert runs[0] == pytest.approx(runs[1], abs=1e-9)
