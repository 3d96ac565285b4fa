"""Checkpoints of other projects, with their keys and shapes; a comment names the source file of each format.

Features of the loaded encoder are compared with the forward pass of the original torchvision or timm module.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from mec.errors import InputError
from mec.models import load_encoder
from tests.models.reference_networks import StateDict, assert_same_features, mlp, prefixed, resnet, save_checkpoint, vit


class Format(NamedTuple):
    """State dict of a project, its trained network and its teacher, and the origin of the encoder."""

    state_dict: StateDict
    student: nn.Module
    teacher: nn.Module | None
    origin: str


def mec(name: str = "resnet18") -> Format:
    # xinliu20/MEC mec/builder.py, main_pretrain.py: {"epoch", "arch", "state_dict", "optimizer"}
    student, teacher = resnet(name, seed=1), resnet(name, seed=2)
    state_dict = prefixed("module.predictor.", mlp(64, 16)) | prefixed("module.predictor.3.", nn.Linear(16, 64))
    for prefix, network in (("module.encoder.", student), ("module.teacher.", teacher)):
        state_dict |= prefixed(prefix, network) | prefixed(f"{prefix}fc.", mlp(512, 512, 512))
        state_dict |= prefixed(f"{prefix}fc.6.", nn.Linear(512, 64))
        state_dict |= prefixed(f"{prefix}fc.7.", nn.BatchNorm1d(64, affine=False))
    origin = "checkpoint of the paper's code, student: resnet18, 120 of 120 tensors matched, 25 other tensors ignored"
    return Format(state_dict, student, teacher, origin)


def simsiam() -> Format:
    # facebookresearch/simsiam simsiam/builder.py, main_simsiam.py: MEC's keys without a teacher
    state_dict, student, _, _ = mec()
    state_dict = {key: tensor for key, tensor in state_dict.items() if not key.startswith("module.teacher.")}
    origin = "SimSiam checkpoint: resnet18, 120 of 120 tensors matched, 25 other tensors ignored"
    return Format(state_dict, student, None, origin)


def moco(version: int) -> Format:
    # facebookresearch/moco moco/builder.py, main_moco.py
    query, key = resnet(seed=1), resnet(seed=2)
    head = nn.Linear(512, 128) if version == 1 else nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    state_dict = {"module.queue": torch.randn(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    for prefix, network in (("module.encoder_q.", query), ("module.encoder_k.", key)):
        state_dict |= prefixed(prefix, network) | prefixed(f"{prefix}fc.", head)
    ignored = {1: 4, 2: 6}[version]  # the query's head, the queue and its pointer
    origin = f"MoCo v{version} checkpoint, query encoder: resnet18, 120 of 120 tensors matched, {ignored} other tensors"
    return Format(state_dict, query, key, origin)


def moco_v3() -> Format:
    # facebookresearch/moco-v3 moco/builder.py MoCo_ResNet
    base, momentum = resnet(seed=1), resnet(seed=2)
    state_dict = prefixed("module.predictor.", mlp(16, 64, 16))
    for prefix, network in (("module.base_encoder.", base), ("module.momentum_encoder.", momentum)):
        state_dict |= prefixed(prefix, network) | prefixed(f"{prefix}fc.", mlp(512, 64, 16))
    return Format(state_dict, base, momentum, "MoCo v3 checkpoint, base encoder: resnet18, 120 of 120 tensors matched")


def barlow_twins_or_vicreg(barlow: bool) -> Format:
    # facebookresearch/barlowtwins main.py; facebookresearch/vicreg main_vicreg.py, resnet.py: a padding layer and the
    # convolution pad by 3 in total
    model = resnet()
    state_dict = prefixed("module.backbone.", model) | prefixed("module.projector.", mlp(512, 64, 64, bias=not barlow))
    state_dict |= prefixed("module.projector.6.", nn.Linear(64, 64, bias=False))
    if barlow:
        state_dict |= prefixed("module.bn.", nn.BatchNorm1d(64, affine=False))
    origin = f"{'Barlow Twins' if barlow else 'VICReg'} checkpoint: resnet18, 120 of 120 tensors matched, "
    return Format(state_dict, model, None, f"{origin}{16 if barlow else 15} other tensors ignored")


def swav() -> Format:
    # facebookresearch/swav src/resnet50.py, main_swav.py
    model = resnet("resnet50")
    state_dict = {
        **prefixed("module.", model),
        **prefixed("module.projection_head.0.", nn.Linear(2048, 64)),
        **prefixed("module.projection_head.1.", nn.BatchNorm1d(64)),
        **prefixed("module.projection_head.3.", nn.Linear(64, 16)),
        "module.prototypes.weight": torch.randn(30, 16),
    }
    origin = "SwAV checkpoint: resnet50, 318 of 318 tensors matched, 10 other tensors ignored"
    return Format(state_dict, model, None, origin)


FORMATS: dict[str, tuple[Callable[[], Format], str | None]] = {
    "mec": (mec, "state_dict"),
    "simsiam": (simsiam, "state_dict"),
    "moco v1": (lambda: moco(1), "state_dict"),
    "moco v2": (lambda: moco(2), "state_dict"),
    "moco v3": (moco_v3, "state_dict"),
    "barlow twins": (lambda: barlow_twins_or_vicreg(True), "model"),
    "vicreg": (lambda: barlow_twins_or_vicreg(False), "model"),
    "swav": (swav, None),  # the published files contain the state dict only (hubconf.py)
}
"""Name -> format, and the key of the state dict in the checkpoint."""


@pytest.mark.parametrize("name", FORMATS)
def test_student_and_teacher_of_each_format(tmp_path: Path, name: str) -> None:
    make, key = FORMATS[name]
    state_dict, student, teacher, origin = make()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1, momentum=0.9).state_dict()
    content = {"epoch": 100, "arch": "resnet18", key: state_dict, "optimizer": optimizer} if key else state_dict
    path = save_checkpoint(tmp_path, content)
    encoder = load_encoder(path)
    assert_same_features(encoder, student, size=64)
    assert encoder.origin.startswith(origin)
    assert (encoder.spec.mean, encoder.image_size) == ((0.485, 0.456, 0.406), 224)
    if teacher is None:
        with pytest.raises(InputError, match=r"has no teacher; this .* has the student"):
            load_encoder(f"{path}:teacher")
    else:
        assert load_encoder(f"{path}:student").origin == encoder.origin
        loaded_teacher = load_encoder(f"{path}:teacher")
        assert_same_features(loaded_teacher, teacher, size=64)
        assert re.search("teacher|key encoder|momentum encoder", loaded_teacher.origin)


def test_architecture_without_a_name_and_without_ddp_prefix(tmp_path: Path) -> None:
    state_dict, student, _, _ = mec("resnet34")
    state_dict = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    encoder = load_encoder(save_checkpoint(tmp_path, {"state_dict": state_dict}))
    assert_same_features(encoder, student, size=64)
    assert encoder.origin.startswith("checkpoint of the paper's code, student: resnet34, 216 of 216 tensors matched")


def moco_v3_vit(seed: int) -> Any:
    # facebookresearch/moco-v3 vits.py vit_small: 12 heads, and a position embedding of 0 at the class token
    model = vit("vit_tiny_patch16_224", seed, num_heads=12)  # smaller here
    model.pos_embed.data[:, 0] = 0
    return model


def test_moco_v3_vit_has_twelve_heads(tmp_path: Path) -> None:
    base = moco_v3_vit(1)
    state = prefixed("module.predictor.", mlp(16, 64, 16))
    for prefix, network in (("module.base_encoder.", base), ("module.momentum_encoder.", moco_v3_vit(2))):
        state |= prefixed(prefix, network) | prefixed(f"{prefix}head.", mlp(192, 64, 64, 16))
    encoder = load_encoder(save_checkpoint(tmp_path, {"arch": "vit_small", "state_dict": state}))
    assert_same_features(encoder, base)
    assert encoder.spec.options == {"num_heads": 12}
    assert "150 of 150 tensors matched" in encoder.origin
    assert encoder.origin.endswith("12 heads as in MoCo v3")
    # the format of its convert_to_deit.py
    converted = save_checkpoint(tmp_path, {"model": base.state_dict()}, "deit.pth")
    assert_same_features(load_encoder(converted), base)
    assert load_encoder(converted, options={"num_heads": 6}).spec.options == {"num_heads": 6}


def dino_state_dict(backbone: nn.Module, width: int, wrapper: str) -> StateDict:
    # facebookresearch/dino vision_transformer.py DINOHead, utils.py MultiCropWrapper, main_dino.py
    return {
        **prefixed(f"{wrapper}backbone.", backbone),
        **prefixed(f"{wrapper}head.mlp.0.", nn.Linear(width, 32)),
        **prefixed(f"{wrapper}head.mlp.2.", nn.Linear(32, 32)),
        **prefixed(f"{wrapper}head.mlp.4.", nn.Linear(32, 16)),
        f"{wrapper}head.last_layer.weight_g": torch.ones(100, 1),
        f"{wrapper}head.last_layer.weight_v": torch.randn(100, 16),
    }


@pytest.mark.parametrize("arch", ["resnet18", "vit_tiny"])
def test_dino(tmp_path: Path, arch: str) -> None:
    make: Callable[..., Any] = resnet if arch == "resnet18" else vit
    student, teacher = make(seed=1), make(seed=2)
    width = 512 if arch == "resnet18" else 192
    # DistributedDataParallel wraps the teacher only if it has BatchNorm
    content = {
        "student": dino_state_dict(student, width, "module."),
        "teacher": dino_state_dict(teacher, width, "module." if arch == "resnet18" else ""),
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 100,
        "args": argparse.Namespace(arch=arch, lr=0.0005, data_path="/imagenet"),
        "dino_loss": {"center": torch.zeros(1, 100)},
    }
    path = save_checkpoint(tmp_path, content, "checkpoint.pth")
    encoder = load_encoder(path)
    assert_same_features(encoder, teacher)  # as in its eval_linear.py
    assert re.match(
        rf"DINO checkpoint, teacher: {arch}\w*, (\d+) of \1 tensors matched, 8 other tensors", encoder.origin
    )
    assert_same_features(load_encoder(f"{path}:student"), student)


def test_dino_published_backbones(tmp_path: Path) -> None:
    # facebookresearch/dino hubconf.py: the backbone's state dict only; patches of 8 and 16
    model = vit("vit_small_patch8_224", img_size=32)
    encoder = load_encoder(save_checkpoint(tmp_path, model.state_dict(), "dino_deitsmall8_pretrain.pth"))
    assert_same_features(encoder, model)
    assert (encoder.spec.backbone, encoder.image_size) == ("vit_small_patch8_224", 32)
    tiny = vit("vit_tiny_patch16_224", img_size=32, patch_size=4)  # timm has no architecture of this name
    encoder = load_encoder(save_checkpoint(tmp_path, tiny.state_dict()))
    assert_same_features(encoder, tiny)
    assert encoder.spec.options == {"patch_size": 4}
