"""Pretraining of an encoder or a network that is passed to ``pretrain``."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import mec
from mec.errors import InputError
from mec.models import Encoder, create_encoder
from mec.pretraining import Run, pretrain
from tests.models.own_networks import OwnNetwork
from tests.models.test_own_network import perturbed, registered
from tests.pretraining.test_run import TINY

__all__ = ["registered"]  # a fixture
RECIPE = replace(TINY, epochs=1, subsample=4, batch_size=64)
OPTIONS = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 16)}


class AtStart(lightning.Callback):
    """Keeps the weights of the encoder before the first step, and its mode."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.weights = {k: v.clone() for k, v in pl_module.network.encoder.backbone.state_dict().items()}
        self.teacher = pl_module.network.teacher
        self.training = all(module.training for module in pl_module.network.encoder.modules())


class Stop(lightning.Callback):
    """Preempts the run after two steps."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in actual.items())


@pytest.fixture(scope="module")
def start() -> nn.Module:
    return perturbed(OwnNetwork(features=12))


@pytest.fixture(scope="module")
def run(start: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Run:
    before, at_start = copy_of(start), AtStart()
    run = pretrain("digits", tmp_path_factory.mktemp("own") / "run", RECIPE, callbacks=[at_start], encoder=start)
    assert_equal(copy_of(start), before)
    assert not start.training
    assert_equal(at_start.weights, before)
    assert at_start.training
    return run


def features_by_hand(run: Run, images: Tensor) -> Tensor:
    """Return the features (n, 12) of images (n, 1, s, s) in [0, 1], from the run's file of weights alone."""
    weights = load_file(run.folder / "encoder.safetensors")
    spec = run.encoder().spec
    x = nn.functional.conv2d((images - spec.mean[0]) / spec.std[0], weights["conv.weight"], weights["conv.bias"], 4)
    mean, var, scale, bias = (weights[f"norm.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
    mean, var, scale, bias = (v.view(-1, 1, 1) for v in (mean, var, scale, bias))
    return torch.relu((x - mean) / (var + 1e-5).sqrt() * scale + bias).mean((2, 3))


def test_a_network_is_trained_and_returned_by_the_run(run: Run, start: nn.Module) -> None:
    encoder = run.encoder()
    assert encoder.spec.backbone == "module:tests.models.own_networks.OwnNetwork"
    assert not torch.equal(encoder.backbone.conv.weight, start.conv.weight)
    images = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(encoder(encoder.normalize(images)), features_by_hand(run, images))
    loaded = mec.load_encoder(run, backbone=OwnNetwork(features=12))
    assert_equal(copy_of(loaded), copy_of(encoder))
    with pytest.raises(InputError, match=r"backbone=NETWORK"):
        Run(run.folder).encoder()


def test_its_encoder_is_evaluated_with_its_baselines(run: Run) -> None:
    result = mec.evaluate.knn("digits", run.encoder(), workers=0)
    assert list(result.rows) == ["encoder", "untrained", "raw pixels"]
    assert result.rows["encoder"][0].value > 0.2


def test_its_onnx_model_returns_the_features_of_images(run: Run, tmp_path: Path) -> None:
    mec.export(run.encoder(), "onnx", tmp_path / "e.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    images = torch.rand(5, 1, 16, 16)
    (features,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(features, features_by_hand(run, images), rtol=1e-4, atol=1e-5)


def test_an_unfinished_run_is_loaded_and_resumed_with_its_network(run: Run, start: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        pretrain("digits", folder, RECIPE, callbacks=[Stop()], encoder=start)
    assert "checkpoint of step 2" in mec.load_encoder(folder, backbone=OwnNetwork(features=12)).origin
    with pytest.raises(InputError, match="is not from timm"):
        mec.load_encoder(folder)
    with pytest.raises(InputError, match="does not match"):
        pretrain("digits", folder, resume=True, encoder=OwnNetwork(features=4))
    pretrain("digits", folder, resume=True, encoder=OwnNetwork(features=12))
    weights = [(f / "encoder.safetensors").read_bytes() for f in (folder, run.folder)]
    assert weights[0] == weights[1]


def test_an_encoder_is_trained_from_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = create_encoder("resnet18", 24, 1, None, [0.3], [0.4], OPTIONS, None, "black").eval()
    before, at_start = copy_of(start), AtStart()
    recipe = replace(RECIPE, teacher=replace(RECIPE.teacher, enabled=True), image_size=None)
    run = pretrain("digits", tmp_path, recipe, callbacks=[at_start], encoder=start)
    assert_equal(copy_of(start), before)
    assert not start.training
    assert_equal(at_start.weights, copy_of(start.backbone))
    assert at_start.training
    recipe, encoder = run.recipe(), mec.load_encoder(run)
    assert (recipe.backbone, recipe.small_stem, recipe.image_size, recipe.background) == ("resnet18", True, 24, "black")
    assert recipe.backbone_options == {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}
    assert (encoder.spec.mean, encoder.spec.std, encoder.image_size) == ((0.3,), (0.4,), 24)
    assert not torch.equal(encoder.backbone.conv1.weight, start.backbone.conv1.weight)
    assert "background: black of the encoder replaces white of the recipe" in capsys.readouterr().err


def test_a_name_registered_with_timm_replaces_the_backbone(registered: str, tmp_path: Path) -> None:
    run = pretrain("digits", tmp_path, replace(RECIPE, backbone_options={"features": 6}), encoder=registered)
    assert run.recipe().backbone == registered
    assert mec.load_encoder(run).num_features == 6


class Auxiliary(OwnNetwork):
    """Returns a second output in training, as torchvision's GoogLeNet does."""

    def forward(self, x: Tensor) -> Any:
        features = super().forward(x)
        return (features, features) if self.training else features


def hacked() -> Encoder:
    encoder = create_encoder("resnet18", 16, 1, options=OPTIONS)
    encoder.backbone.conv1 = nn.Conv2d(1, 64, 3)
    return encoder


def flat_features(size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (size // 2) ** 2, 5))


def test_the_trained_encoder_takes_images_of_the_evaluation_scale(tmp_path: Path) -> None:
    recipe, views = replace(RECIPE, evaluation_scale=1.5), []

    class Sizes(lightning.Callback):
        def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
            pl_module.network.encoder.register_forward_pre_hook(lambda _, x: views.append(x[0].shape[2:]))

    run = pretrain("digits", tmp_path / "run", recipe, callbacks=[Sizes()])
    assert set(views) == {(16, 16)}
    encoder = run.encoder()
    assert encoder.image_size == encoder.spec.image_size == 24
    expected = pretrain("digits", tmp_path / "expected", RECIPE).encoder()  # the same weights
    x = torch.rand(2, 1, 24, 24)
    with torch.no_grad():
        assert torch.equal(encoder(x), expected(x))
    network = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert pretrain("digits", tmp_path / "own", recipe, encoder=network).encoder().image_size == 24


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16_224", flat_features(16)])
def test_an_encoder_of_a_single_size_has_no_evaluation_scale(encoder: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"backbone_options": {"depth": 1}} if isinstance(encoder, str) else {}
    with pytest.raises(
        InputError,
        match=r"^evaluation_scale: expected 1 for .*, which takes images of 16 px, got one that needs .* px: .",
    ):
        pretrain("digits", tmp_path / "run", replace(RECIPE, evaluation_scale=1.5, **settings), encoder=encoder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: "resnet19", "encoder: expected a timm architecture.*resnet18"),
        (lambda: OwnNetwork, "encoder: expected .*the class OwnNetwork"),
        (lambda: OwnNetwork().requires_grad_(False), "encoder: expected parameters to train"),
        (Auxiliary, "encoder: .*Auxiliary in training mode, got a tuple"),
        (lambda: OwnNetwork(3), "encoder: .*fails on images"),
        (lambda: create_encoder("resnet18", 16, 3), "channels: expected 3 as in the encoder"),
        (lambda: create_encoder("resnet18", 16, 1, options={"act_layer": nn.ReLU}), "encoder: expected options"),
        (hacked, r"encoder: expected a resnet18.*encoder\.backbone"),
    ],
)
def test_encoders_that_cannot_be_trained_are_refused(encoder: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pretrain("digits", tmp_path / "run", replace(RECIPE, channels=1), encoder=encoder())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_named_in_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = nn.Sequential(OwnNetwork())
    network.add_module("fc", nn.Linear(8, 5))
    pretrain("digits", tmp_path, RECIPE, encoder=network)
    assert "outputs of fc, which looks like a classifier" in capsys.readouterr().err
