"""What weights do not show comes from the settings of a project, or is assumed; either is stated."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from mec.data.loaders import CROP_PCT as LOADER_CROP_PCT
from mec.data.loaders import MIN_CROPPED_SIZE
from mec.errors import InputError
from mec.models import load_encoder
from mec.models.checkpoint_conventions import CROP_PCT, LOOKALIKES
from mec.models.encoder import SMALL_IMAGE
from tests.models.reference_networks import assert_same_features, prefixed, randomize, resnet, save_checkpoint

IMAGENET = (0.485, 0.456, 0.406)
STEM = "a 3x3 stem of stride 1 and padding {} without max-pool"


def small_stem_state(padding: int) -> tuple[nn.Module, dict[str, Any]]:
    model = resnet(small_stem=True)
    model.conv1.padding = (padding, padding)
    return model, prefixed("backbone.", model) | prefixed("classifier.", nn.Linear(512, 10))


def test_a_backbone_with_a_classifier_is_not_taken_for_solo_learn(tmp_path: Path) -> None:
    model, state = small_stem_state(padding=1)
    groups = [{"name": "backbone", "params": [0]}, {"name": "classifier", "params": [1]}]
    content = {"state_dict": state, "optimizer_states": [{"state": {}, "param_groups": groups}]}
    encoder = load_encoder(save_checkpoint(tmp_path, content, "own.ckpt"))
    assert_same_features(encoder, model)
    assert encoder.origin.startswith("backbone weights: resnet18, 120 of 120 tensors matched, 2 other tensors ignored")
    assert encoder.spec.mean == IMAGENET
    assert STEM.format(1) in encoder.origin.partition("; assumed ")[2]
    with_projector = content | {"state_dict": state | prefixed("projector.", nn.Linear(512, 8)), "optimizer_states": []}
    assert_same_features(load_encoder(save_checkpoint(tmp_path, with_projector, "own.ckpt")), model)


@pytest.mark.parametrize("sign", ["args.json", "optimizer"])
def test_signs_of_solo_learn(tmp_path: Path, sign: str) -> None:
    # vturrisi/solo-learn solo/methods/base.py learnable_params, solo/utils/checkpointer.py save_args
    model, state = small_stem_state(padding=2)
    content: dict[str, Any] = {"state_dict": state}
    if sign == "args.json":  # also of its linear evaluation, which has no projector
        settings = {"pretrain_method": "simclr", "data": {"dataset": "cifar100"}, "backbone": {"name": "resnet18"}}
        (tmp_path / "args.json").write_text(json.dumps(settings))
    else:
        state |= prefixed("projector.0.", nn.Linear(512, 64))
        groups = [{"name": name, "params": []} for name in ("backbone", "classifier", "projector")]
        content["optimizer_states"] = [{"state": {}, "param_groups": groups}]
    encoder = load_encoder(save_checkpoint(tmp_path, content, "simclr-ep=999.ckpt"))
    assert_same_features(encoder, model)
    assert encoder.origin.startswith("solo-learn checkpoint, backbone: resnet18")
    assert STEM.format(2) in encoder.origin
    if sign == "args.json":
        assert encoder.spec.mean == (0.5071, 0.4865, 0.4409)
        assert "; stored: mean and standard deviation of solo-learn's cifar100" in encoder.origin
    else:
        assert encoder.spec.mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.parametrize(
    ("arch", "arguments", "mean", "note"),
    [
        (
            "vit_tiny_patch16_224",
            {},
            0.5,
            "; assumed mean and standard deviation of timm's vit_tiny_patch16_224 (0.5 and",
        ),
        (
            None,
            {},
            0.485,
            "; assumed ImageNet's mean and standard deviation, the number of heads of vit_tiny_patch16_224",
        ),
        (
            "vit_tiny_patch16_224",
            {"mean": [0.1] * 3, "std": [0.9] * 3},
            0.1,
            "; stored: mean and standard deviation 0.1 and",
        ),
        (
            "vit_tiny_patch16_224",
            {"mean": [0.1], "std": [0.9]},
            0.1,
            "; stored: mean and standard deviation 0.1 and 0.9",
        ),
        ("my_vit", {}, 0.485, "; its arch my_vit was not used (timm has no such architecture)"),
    ],
)
def test_normalization_of_timms_training_script(
    tmp_path: Path, arch: str | None, arguments: dict[str, Any], mean: float, note: str
) -> None:
    # huggingface/pytorch-image-models timm/utils/checkpoint_saver.py: state_dict, arch, args; mean None: the default
    state = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32).state_dict()
    args = argparse.Namespace(**{"mean": None, "std": None, "model": arch, "img_size": None} | arguments)
    content = {"epoch": 3, "state_dict": state, "args": args} | ({"arch": arch} if arch else {})
    encoder = load_encoder(save_checkpoint(tmp_path, content))
    assert encoder.spec.mean[0] == mean
    assert note in encoder.origin


def test_architecture_options_of_timms_training_script_are_applied(tmp_path: Path) -> None:
    options: dict[str, Any] = {"output_stride": 16}
    model = randomize(timm.create_model("resnet18", num_classes=0, global_pool="max", **options))
    args = argparse.Namespace(mean=None, std=None, img_size=160, model_kwargs=options, gp="max")
    path = save_checkpoint(tmp_path, {"arch": "resnet18", "state_dict": model.state_dict(), "args": args})
    encoder = load_encoder(path)
    assert_same_features(encoder, model)
    assert encoder.image_size == 160
    assert "; stored: 160 px, output_stride 16, global_pool max; assumed mean" in encoder.origin


def test_torchvisions_segmentation_networks_are_dilated(tmp_path: Path) -> None:
    model: Any = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    encoder = load_encoder(save_checkpoint(tmp_path, {"model": randomize(model).state_dict()}))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.backbone(x)["out"].mean((2, 3))
        torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert "16 other tensors ignored (classifier, aux_classifier)" in encoder.origin
    assert "stride 8 as in torchvision's segmentation networks" in encoder.origin


def test_architectures_of_equal_tensors_are_named(tmp_path: Path) -> None:
    with torch.device("meta"):
        for common, others in LOOKALIKES.items():
            states = [timm.create_model(name, num_classes=0).state_dict() for name in (common, *others)]
            shapes = [{key: tensor.shape for key, tensor in state.items()} for state in states]
            assert all(other == shapes[0] for other in shapes)
    model = randomize(timm.create_model("resnetblur18", num_classes=0))
    path = save_checkpoint(tmp_path, model.state_dict(), "blur.pth")
    assert "no dilation and no anti-aliasing (resnetblur18 would match too)" in load_encoder(path).origin
    (tmp_path / "blur.json").write_text('{"backbone": "resnetblur18"}')
    encoder = load_encoder(path)
    assert_same_features(encoder, model, size=64)
    assert "would match" not in encoder.origin


def test_preprocessing_of_a_timm_folder_that_differs_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert (CROP_PCT, SMALL_IMAGE) == (LOADER_CROP_PCT, MIN_CROPPED_SIZE)
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "model.safetensors")
    config = {"input_size": [3, 160, 160], "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": config}))
    with caplog.at_level(logging.WARNING, "mec"):
        load_encoder(tmp_path)
    assert caplog.messages == [
        f"encoder: {tmp_path}/config.json asks for crop_pct 1.0, crop_mode squash; evaluations here, and exports, use "
        "crop_pct 0.875, crop_mode center"
    ]


def test_means_of_images_up_to_255_are_refused(tmp_path: Path) -> None:
    args = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    path = save_checkpoint(tmp_path, {"arch": "resnet18", "state_dict": resnet().state_dict(), "args": args})
    with pytest.raises(InputError, match=r"mean: expected those of images in \[0, 1\], got 123.675; divide"):
        load_encoder(path)


def test_an_architecture_that_the_file_names_wrongly_is_stated(tmp_path: Path) -> None:
    state = resnet().state_dict()
    encoder = load_encoder(save_checkpoint(tmp_path, {"arch": "resnet50", "state_dict": state}))
    assert "its arch resnet50 was not used (its tensors do not match)" in encoder.origin
