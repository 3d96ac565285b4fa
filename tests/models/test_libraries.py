"""Checkpoints of solo-learn, lightly, detectron2, torchvision and timm; see test_foreign_checkpoints.py."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from mec.errors import InputError
from mec.models import load_encoder
from mec.models.foreign_checkpoints import RESNETS, _known_architecture
from tests.models.reference_networks import assert_same_features, prefixed, randomize, resnet, save_checkpoint


@pytest.mark.parametrize("small_stem", [False, True])
def test_solo_learn(tmp_path: Path, small_stem: bool) -> None:
    # vturrisi/solo-learn solo/methods/base.py, solo/methods/mocov2plus.py; the stem for CIFAR pads by 2
    model, momentum = resnet(seed=1, small_stem=small_stem), resnet(seed=2, small_stem=small_stem)
    if small_stem:
        model.conv1.padding = momentum.conv1.padding = (2, 2)
    state = {"queue": torch.randn(2, 16, 64), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    state |= prefixed("classifier.", nn.Linear(512, 10))
    for prefix, network in (("", model), ("momentum_", momentum)):
        state |= prefixed(f"{prefix}backbone.", network) | prefixed(f"{prefix}projector.0.", nn.Linear(512, 64))
    path = save_checkpoint(tmp_path, {"pytorch-lightning_version": "2.0", "state_dict": state}, "mocov2plus.ckpt")
    encoder = load_encoder(path)
    assert_same_features(encoder, model)
    assert encoder.origin.startswith("solo-learn checkpoint, backbone: resnet18, 120 of 120 tensors matched")
    assert encoder.spec.small_stem == small_stem
    if small_stem:  # solo/data/pretrain_dataloader.py
        assert encoder.image_size == 32
        assert encoder.spec.mean == (0.4914, 0.4822, 0.4465)
        assert encoder.origin.endswith(
            "; assumed 32 px, a 3x3 stem of stride 1 and padding 2 without max-pool, mean and standard deviation of "
            "solo-learn's cifar10"
        )
    assert_same_features(load_encoder(f"{path}:teacher"), momentum)


def test_lightly_with_torchvision_resnet(tmp_path: Path) -> None:
    # lightly-ai/lightly examples/pytorch_lightning/moco.py
    model, momentum = resnet(seed=1), resnet(seed=2)
    state = {
        **prefixed("backbone.", nn.Sequential(*list(model.children())[:-1])),
        **prefixed("projection_head.layers.0.", nn.Linear(512, 64)),
        **prefixed("backbone_momentum.", nn.Sequential(*list(momentum.children())[:-1])),
        **prefixed("projection_head_momentum.layers.0.", nn.Linear(512, 64)),
    }
    path = save_checkpoint(tmp_path, {"state_dict": state, "pytorch-lightning_version": "2.0"})
    assert_same_features(load_encoder(path), model)
    assert_same_features(load_encoder(f"{path}:teacher"), momentum)
    assert load_encoder(path).origin.startswith("lightly checkpoint, backbone: resnet18, 120 of 120 tensors matched")
    # examples/pytorch_lightning/dino.py
    prefixes = {"backbone.": "student_backbone.", "backbone_momentum.": "teacher_backbone."}
    renamed = {prefixes.get(k.split(".")[0] + ".", "x.") + k.split(".", 1)[1]: v for k, v in state.items()}
    path = save_checkpoint(tmp_path, {"state_dict": renamed})
    assert_same_features(load_encoder(f"{path}:teacher"), momentum)


@pytest.mark.parametrize("depths", [[1, 1, 1, 1], [2, 2, 2, 2]])
def test_lightly_with_its_own_resnet(tmp_path: Path, depths: list[int]) -> None:
    # lightly-ai/lightly lightly/models/resnet.py: its children include no activation or max-pool; shortcut
    block = torchvision.models.resnet.BasicBlock
    model: Any = torchvision.models.ResNet(block, depths)
    model.fc, model.conv1, model.maxpool = nn.Identity(), nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    randomize(model)
    children = [model.conv1, model.bn1, model.layer1, model.layer2, model.layer3, model.layer4]
    state = {k.replace("downsample", "shortcut"): v for k, v in prefixed("backbone.", nn.Sequential(*children)).items()}
    encoder = load_encoder(save_checkpoint(tmp_path, {"state_dict": state}))
    assert_same_features(encoder, model)
    assert encoder.image_size == 32
    assert encoder.spec.options == ({} if depths[0] == 2 else {"layers": [1, 1, 1, 1]})


def detectron2_pickle(path: Path, model: nn.Module, protocol: int) -> Path:
    # facebookresearch/detectron2 tools/convert-torchvision-to-d2.py, facebookresearch/moco detection/convert-...py
    state = {**model.state_dict(), **prefixed("fc.", nn.Linear(512, 10))}
    arrays = {}
    for name, tensor in state.items():
        name = name if "layer" in name else f"stem.{name}"
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}", f"res{stage + 1}").replace(f"bn{stage}", f"conv{stage}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        if "num_batches" not in name:  # absent in older PyTorch
            arrays[name] = tensor.numpy()
    with path.open("wb") as file:
        content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
        pickle.dump(content, file, protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", [2, 5])
def test_detectron2_pickles_of_old_and_new_protocols(tmp_path: Path, protocol: int) -> None:
    model = resnet()
    path = detectron2_pickle(tmp_path / "r18.pkl", model, protocol)
    encoder = load_encoder(path)
    assert_same_features(encoder, model)
    matched = "resnet18, 100 of 100 tensors matched, 2 other tensors ignored (fc)"
    assert encoder.origin == f"detectron2 weights: {matched}; assumed 224 px, ImageNet's mean and standard deviation"
    # NumPy 2 writes numpy._core where NumPy 1 wrote numpy.core
    numpy1_content = path.read_bytes().replace(b"numpy._core", b"numpy.core")
    if protocol == 2:
        path.write_bytes(numpy1_content)
        assert_same_features(load_encoder(path), model)


def test_shapes_identify_every_resnet_of_torchvision() -> None:
    for name in RESNETS:
        with torch.device("meta"):
            state_dict = getattr(torchvision.models, name)().state_dict()
        assert _known_architecture({key: tuple(tensor.shape) for key, tensor in state_dict.items()}) == (name, {})


@pytest.mark.parametrize(("name", "suffix"), [("resnet34", "safetensors"), ("resnext50_32x4d", "pth")])
def test_torchvision_resnets(tmp_path: Path, name: str, suffix: str) -> None:
    model = resnet(name)
    state = {**model.state_dict(), **prefixed("fc.", nn.Linear(8, 10))}
    path = tmp_path / f"{name}.{suffix}"
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    encoder = load_encoder(path)
    assert_same_features(encoder, model, size=64)
    assert encoder.origin.startswith(f"torchvision or timm weights: {name}, ")
    assert "2 other tensors ignored (fc); assumed 224 px, ImageNet's mean and standard deviation, " in encoder.origin


def test_torchvision_vision_transformer(tmp_path: Path) -> None:
    model: Any = randomize(torchvision.models.VisionTransformer(64, 16, 12, 3, 192, 768))
    path = save_checkpoint(tmp_path, model.state_dict(), "vit.pth")
    encoder = load_encoder(path)
    model.heads = nn.Identity()
    assert_same_features(encoder, model)
    matched = "vit_tiny_patch16_224, 150 of 150 tensors matched, 2 other tensors ignored (heads)"
    assert encoder.origin == f"torchvision weights: {matched}; assumed ImageNet's mean and standard deviation"


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "efficientnet_lite0"])
def test_any_timm_architecture(tmp_path: Path, name: str) -> None:
    model = randomize(timm.create_model(name, num_classes=7))
    content = {"state_dict": model.state_dict(), "epoch": 3}
    if name == "efficientnet_lite0":  # as timm's train.py
        encoder = load_encoder(save_checkpoint(tmp_path, content | {"arch": name}, "model_best.pth.tar"))
    else:
        encoder = load_encoder(save_checkpoint(tmp_path, content), backbone=name)
    model.reset_classifier(0)
    assert_same_features(encoder, model)
    assert encoder.spec.backbone == name


def test_other_architectures_must_be_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, timm.create_model("tf_efficientnet_lite0").state_dict(), "lite.pth")
    with pytest.raises(
        InputError, match=r"no common ResNet .*, first conv_stem.weight; .*backbone=.* lite\.json"
    ) as error:
        load_encoder(path)
    assert "\n" not in str(error.value)
    encoder = load_encoder(path, backbone="tf_efficientnet_lite0")
    assert encoder.spec.mean == (0.5, 0.5, 0.5)  # timm's normalization
    (tmp_path / "lite.json").write_text('{"backbone": "efficientnet_lite0", "image_size": 96, "mean": [0.1, 0.2, 0.3]}')
    encoder = load_encoder(path, image_size=128)
    assert (encoder.spec.backbone, encoder.image_size) == ("efficientnet_lite0", 128)
    assert encoder.spec.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_dinov2(tmp_path: Path, name: str) -> None:
    # facebookresearch/dinov2 dinov2/models/vision_transformer.py has timm's keys, and a mask token
    model = timm.create_model(name, num_classes=0, img_size=56)
    path = save_checkpoint(tmp_path, {**model.state_dict(), "mask_token": torch.zeros(1, 384)})
    encoder = load_encoder(path)
    assert (encoder.spec.backbone, encoder.image_size) == (name, 56)
    assert_same_features(encoder, model.eval())


def test_channels_are_inferred_from_the_first_convolution(tmp_path: Path) -> None:
    model = randomize(timm.create_model("resnet18", in_chans=5, num_classes=0))
    encoder = load_encoder(save_checkpoint(tmp_path, model.state_dict()))
    assert encoder.spec.channels == 5
    x = torch.randn(2, 5, 64, 64)
    torch.testing.assert_close(encoder(x), model(x))


def test_float16_weights_are_converted_to_float32(tmp_path: Path) -> None:
    model = resnet()
    encoder = load_encoder(save_checkpoint(tmp_path, copy.deepcopy(model).half().state_dict()))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder(x), model(x), rtol=0.02, atol=0.1)


def test_prefixes_of_torch_compile_and_averaged_models_are_removed(tmp_path: Path) -> None:
    model = resnet()
    head = nn.Linear(512, 8)
    state = prefixed("module._orig_mod.encoder_q.", model) | prefixed("module._orig_mod.encoder_q.fc.", head)
    assert_same_features(load_encoder(save_checkpoint(tmp_path, {"state_dict": state})), model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert_same_features(load_encoder(save_checkpoint(tmp_path, averaged.state_dict())), model)
    pair = {"arch": "resnet18", "state_dict": resnet(seed=4).state_dict(), "state_dict_ema": model.state_dict()}
    assert_same_features(load_encoder(f"{save_checkpoint(tmp_path, pair)}:teacher"), model)


def test_partial_matches_are_rejected(tmp_path: Path) -> None:
    def assert_rejected(state: Any, match: str, **fields: Any) -> None:
        with pytest.raises(InputError, match=match) as error:
            load_encoder(save_checkpoint(tmp_path, state), **fields)
        assert "\n" not in str(error.value)

    complete = resnet().state_dict()
    truncated = {k: v for k, v in complete.items() if k != "layer4.1.conv2.weight"}
    assert_rejected(truncated, "resnet18 .1 of its 120 tensors missing or of another shape, first layer4.1.conv2")
    wider = {**complete, "layer2.0.conv1.weight": torch.zeros(128, 64, 5, 5)}
    assert_rejected(wider, "resnet18 .1 of its 120 tensors missing or of another shape, first layer2.0.conv1")
    deeper = {**complete, **{k.replace("layer4.1", "layer4.2"): v for k, v in complete.items() if "layer4.1" in k}}
    assert_rejected(deeper, "closest is resnet18 .10 unexpected tensors, first layer4.2.conv1.weight")
    assert_rejected(deeper, "does not match resnet18 .10 unexpected tensors", backbone="resnet18")
    assert_rejected(complete, "does not match resnet50 .*missing", backbone="resnet50")
    assert_rejected(complete, "backbone: expected a timm architecture, got 'resnet19'", backbone="resnet19")
    assert_rejected({**complete, "bn1.weight": torch.full((64,), torch.nan)}, "bn1.weight that are not finite")
    assert_rejected({"layer.weight": torch.zeros(3)}, "no common ResNet .*; it has 1 tensors, first layer.weight")
    assert_rejected({"epoch": 3, "optimizer": {}}, "no state dict under the usual keys; its keys: epoch, optimizer")
    assert_rejected(torch.zeros(3), "contains a Tensor; expected a state dict")
    assert_rejected({}, "its keys: none")
