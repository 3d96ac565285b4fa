"""Encoders of networks that are not from timm, or that a user registered with timm."""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from mec.embedding.extract import feature_function
from mec.errors import InputError
from mec.evaluate.detection.detectors import DetectorSpec, load_detector, save_detector
from mec.evaluate.detection.schedules import SCHEDULES
from mec.evaluate.task import with_baseline
from mec.evaluate.tracking.dense_features import DenseFeatures
from mec.models import Encoder, create_encoder, load_encoder, save_encoder, untrained
from mec.models.encoder import enable_gradient_checkpointing, timm_module
from mec.models.export import export
from mec.models.own_network import find_classifier
from tests.models.own_networks import DenseNetwork, OwnNetwork, ViewNetwork

NAME = "module:tests.models.own_networks.OwnNetwork"


class Returning(nn.Module):
    """Returns ``output(x)``."""

    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.output, self.weight = output, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        return self.output(x)


def perturbed(network: nn.Module) -> nn.Module:
    """Return the network with random weights and statistics, as after training."""
    torch.manual_seed(1)
    for tensor in (*network.parameters(), network.norm.running_mean, network.norm.running_var):
        nn.init.uniform_(tensor, 0.1, 1.0)
    return network.eval()


@pytest.fixture
def encoder() -> Encoder:
    return create_encoder(perturbed(OwnNetwork()), 16, 1, mean=[0.3], std=[0.2]).eval()


@pytest.mark.parametrize("maps", [False, True])
def test_features_are_those_of_the_network_on_normalized_images(maps: bool) -> None:
    network = perturbed(OwnNetwork(3, maps=maps))
    encoder = create_encoder(network, 16, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]).eval()
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    normalized = torch.stack([(images[:, c] / 255 - 0.1 * (c + 1)) / (0.4 + 0.1 * c) for c in range(3)], 1)
    with torch.no_grad():
        expected = network.feature_maps(normalized).flatten(2).mean(2)
        torch.testing.assert_close(encoder(encoder.normalize(images)), expected)
    assert encoder.num_features == 8
    assert encoder.spec.backbone == NAME


def test_the_network_is_copied_and_the_dry_run_changes_nothing() -> None:
    network = OwnNetwork()
    network.norm.eval()
    weights = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    encoder = create_encoder(network, 16, 1)
    assert torch.equal(state, torch.get_rng_state())
    assert (network.training, network.norm.training) == (True, False)
    assert (encoder.backbone.training, encoder.backbone.norm.training) == (True, False)
    for key, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, weights[key])
        tensor.fill_(7)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_that_does_not_support_channels_last_gets_contiguous_images(channels: int) -> None:
    network = perturbed(ViewNetwork(channels))
    encoder = create_encoder(network, 16, channels)
    images = torch.rand(3, 16, 16, channels).permute(0, 3, 1, 2)  # as decoded
    with torch.no_grad():
        expected = network.feature_maps(encoder.normalize(images)).flatten(1)
    torch.testing.assert_close(feature_function(encoder, torch.device("cpu"))(images), expected)
    assert create_encoder(OwnNetwork(), 16, 1).memory_format == torch.channels_last


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: {"x": x.mean((2, 3))}, "got a dict"),
        (lambda x: x.flatten(2), r"got shape \(2, 3, 256\)"),
        (lambda x: x.mean((2, 3))[:1], r"got shape \(1, 3\)"),
        (lambda x: x.mean((2, 3)).long(), r"got shape \(2, 3\)"),
        (lambda x: x.reshape(7), r"fails on images of shape \(2, 3, 16, 16\)"),
    ],
)
def test_outputs_other_than_features_and_maps_are_refused(output: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(InputError, match=f"encoder: .*{message}") as caught:
        create_encoder(Returning(output), 16)
    assert "\n" not in str(caught.value)


def test_networks_that_cannot_be_copied_or_saved_are_refused() -> None:
    network = OwnNetwork()
    network.lock = threading.Lock()
    with pytest.raises(InputError, match=f"encoder: {NAME} cannot be copied"):
        create_encoder(network, 16, 1)
    stateful = type("Stateful", (OwnNetwork,), {"get_extra_state": lambda self: {"step": 1}})
    with pytest.raises(InputError, match="encoder: expected only tensors"):
        create_encoder(stateful(), 16, 1)
    for settings in ({"small_stem": True}, {"options": {"depth": 1}}, {"stem_padding": 2}):
        with pytest.raises(InputError, match=r"small_stem, options, stem_padding"):
            create_encoder(OwnNetwork(), 16, 1, **settings)


def test_num_features_must_agree_with_the_output() -> None:
    with pytest.raises(InputError, match=r"expected 512 features.*got 1000"):
        create_encoder(timm.create_model("resnet18"), 32)
    assert create_encoder(timm.create_model("resnet18", num_classes=0), 32).num_features == 512


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (torchvision.models.resnet18(), "fc"),
        (nn.Sequential(OrderedDict(classifier=nn.Sequential(nn.Dropout(), nn.Linear(4, 5)))), "classifier.1"),
        (nn.Sequential(OrderedDict(body=nn.Flatten(), projection=nn.Linear(4, 5))), ""),
        (nn.Sequential(OrderedDict(fc=nn.Linear(4, 5), norm=nn.BatchNorm1d(5))), ""),
    ],
)  # fmt: skip
def test_classifiers_are_recognized(network: nn.Module, name: str) -> None:
    assert find_classifier(network, 1000 if name == "fc" else 5) == name
    assert find_classifier(network, 64) == ""


def test_saved_weights_are_loaded_into_a_network(encoder: Encoder, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path)
    network = OwnNetwork()
    loaded = load_encoder(tmp_path, backbone=network)
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(loaded(x), encoder(x))
    assert loaded.spec == encoder.spec
    assert not torch.equal(network.conv.weight, loaded.backbone.conv.weight)
    with pytest.raises(InputError, match=rf"{tmp_path}.*{NAME}.*backbone=NETWORK"):
        load_encoder(tmp_path)
    with pytest.raises(InputError, match=rf"does not match {NAME} .*conv\.weight"):
        load_encoder(tmp_path, backbone=OwnNetwork(features=4))
    with pytest.raises(InputError, match="cannot be rebuilt"):
        Encoder(encoder.spec)


def test_weights_of_a_timm_architecture_are_loaded_into_an_equal_network(tmp_path: Path) -> None:
    options = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 16)}
    encoder = create_encoder("resnet18", 32, 1, small_stem=False, options=options).eval()
    save_encoder(encoder, tmp_path)
    network = timm.create_model("resnet18", num_classes=0, in_chans=1, **options)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(load_encoder(tmp_path, backbone=network)(x), encoder(x))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    loaded = load_encoder(tmp_path / "weights.pth", backbone=network, channels=1)
    assert torch.equal(loaded(x), network.eval()(x))
    assert "assumed image_size 224, mean (0.5,), std (0.25,)" in loaded.origin


def test_networks_in_place_of_sources_are_refused() -> None:
    with pytest.raises(InputError, match=r"mec\.create_encoder"):
        load_encoder(OwnNetwork())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="backbone: expected none for the timm architecture resnet18"):
        load_encoder("resnet18", backbone=OwnNetwork())


def test_untrained_initializes_every_parameter_and_statistic(encoder: Encoder) -> None:
    initialized = untrained(encoder, seed=3)
    expected = OwnNetwork()
    torch.manual_seed(3)
    expected.conv.reset_parameters()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(initialized.backbone.state_dict()[key], tensor)
    assert initialized.untrained
    assert not torch.equal(encoder.backbone.conv.weight, initialized.backbone.conv.weight)


def test_a_network_that_cannot_be_initialized_has_no_untrained_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    network = OwnNetwork()
    network.scale = nn.Parameter(torch.ones(1))
    encoder = create_encoder(network, 16, 1)
    with pytest.raises(InputError, match="scale"):
        untrained(encoder)
    assert with_baseline(encoder, True) == {"encoder": encoder}
    assert "no untrained encoder" in capsys.readouterr().err


def test_gradient_checkpointing_requires_a_method_of_the_network(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"gradient_checkpointing: .*set_grad_checkpointing"):
        enable_gradient_checkpointing(encoder)
    calls: list[bool] = []
    encoder.backbone.set_grad_checkpointing = calls.append
    enable_gradient_checkpointing(encoder)
    assert calls == [True]


@pytest.mark.parametrize(("format", "name"), [("timm", "e"), ("torchvision", "e.pth"), ("detectron2", "e.pkl")])
def test_formats_of_other_architectures_are_refused(encoder: Encoder, tmp_path: Path, format: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"format: {format} has no {NAME}"):
        export(encoder, format, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_formats_of_this_library_are_loaded_with_the_network(encoder: Encoder, tmp_path: Path) -> None:
    export(encoder, "safetensors", tmp_path / "e.safetensors")
    export(encoder, "huggingface", tmp_path / "folder")
    x = torch.randn(2, 1, 16, 16)
    for path in (tmp_path / "e.safetensors", tmp_path / "folder"):
        assert torch.equal(load_encoder(path, backbone=OwnNetwork())(x), encoder(x))
    assert 'mec.load_encoder("folder", backbone=network)' in (tmp_path / "folder" / "README.md").read_text()


def test_dense_features_are_the_maps_of_the_network() -> None:
    network = perturbed(DenseNetwork(3))
    dense = DenseFeatures(create_encoder(network, 32), "s4", precision="32-true")
    assert (dense.stride, dense.channels) == (8, 8)
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        expected = nn.functional.avg_pool2d(network.feature_maps(x), 2)
    torch.testing.assert_close(dense(x.to(dense.device)).cpu(), expected)
    with pytest.raises(InputError, match=r"encoder: .*OwnNetwork.*forward_intermediates"):
        DenseFeatures(create_encoder(OwnNetwork(3), 32))


def test_a_detector_is_loaded_with_an_encoder_of_its_network(tmp_path: Path) -> None:
    encoder = create_encoder(perturbed(DenseNetwork(3)), 32)
    spec = DetectorSpec(encoder.spec, "fpn", ["a"], [1], False, SCHEDULES["short"])
    detector = spec.build(encoder)
    save_detector(detector, spec, tmp_path)
    loaded, _ = load_detector(tmp_path, create_encoder(DenseNetwork(3), 32))
    for key, tensor in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
    with pytest.raises(InputError, match="DenseNetwork is not from timm"):
        load_detector(tmp_path)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Register a network with timm, from a user's module with the name of one of timm's."""

    def own_registered_net(pretrained: bool = False, in_chans: int = 3, features: int = 8, **_: Any) -> nn.Module:
        return OwnNetwork(in_chans, features)

    module = ModuleType("users.resnet")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    own_registered_net.__module__ = module.__name__
    timm.models.register_model(own_registered_net)
    yield own_registered_net.__name__
    timm.models._registry._model_entrypoints.pop(own_registered_net.__name__, None)


def test_a_network_registered_with_timm_is_built_by_its_name(registered: str, tmp_path: Path) -> None:
    encoder = create_encoder(registered, 16, 1, options={"features": 6})
    assert timm_module(registered) == ""
    assert encoder.num_features == 6
    assert not encoder.spec.small_stem
    save_encoder(encoder, tmp_path)
    assert torch.equal(load_encoder(tmp_path).backbone.conv.weight, encoder.backbone.conv.weight)
    assert load_encoder(registered).image_size == 224
    timm.models._registry._model_entrypoints.pop(registered)
    with pytest.raises(InputError, match=f"encoder: .*{registered}.*import the module"):
        load_encoder(tmp_path)
