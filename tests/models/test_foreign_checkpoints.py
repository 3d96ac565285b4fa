"""Checkpoints of other projects, with their keys and shapes; a comment names the source file of each format.

Features of the loaded encoder are compared with the forward pass of the original torchvision or timm module.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mec.errors import InputError
from mec.models import load_encoder
from tests.models.reference_networks import StateDict, assert_same_features, mlp, prefixed, resnet, save_checkpoint, vit


def mec_state_dict(student: nn.Module, teacher: nn.Module) -> StateDict:
    # xinliu20/MEC mec/builder.py, main_pretrain.py: {"epoch", "arch", "state_dict", "optimizer"}
    return {
        **prefixed("module.encoder.", student),
        **prefixed("module.encoder.fc.", mlp(512, 512, 512)),
        **prefixed("module.encoder.fc.6.", nn.Linear(512, 64)),
        **prefixed("module.encoder.fc.7.", nn.BatchNorm1d(64, affine=False)),
        **prefixed("module.predictor.", mlp(64, 16)),
        **prefixed("module.predictor.3.", nn.Linear(16, 64)),
        **prefixed("module.teacher.", teacher),
        **prefixed("module.teacher.fc.", mlp(512, 512, 512)),
        **prefixed("module.teacher.fc.6.", nn.Linear(512, 64)),
        **prefixed("module.teacher.fc.7.", nn.BatchNorm1d(64, affine=False)),
    }


def test_official_mec_checkpoint_has_student_and_teacher(tmp_path: Path) -> None:
    state = mec_state_dict(resnet(seed=1), resnet(seed=2))
    optimizer = torch.optim.SGD(resnet().parameters(), 0.1, momentum=0.9).state_dict()
    path = save_checkpoint(tmp_path, {"epoch": 100, "arch": "resnet18", "state_dict": state, "optimizer": optimizer})
    for suffix, seed in (("", 1), (":student", 1), (":teacher", 2)):
        encoder = load_encoder(f"{path}{suffix}")
        assert_same_features(encoder, resnet(seed=seed))
        head_tensors = 17 + 8  # projector and predictor
        assert encoder.origin == (
            f"checkpoint of the paper's code, {suffix[1:] or 'student'}: resnet18, 120 of 120 tensors matched, "
            f"{head_tensors} head tensors ignored"
        )
        assert encoder.spec.mean == (0.485, 0.456, 0.406)
        assert encoder.image_size == 224


def test_official_mec_checkpoint_of_a_resnet50_without_ddp_prefix(tmp_path: Path) -> None:
    model = resnet("resnet50")
    state = {k.removeprefix("module."): v for k, v in mec_state_dict(model, model).items()}
    encoder = load_encoder(save_checkpoint(tmp_path, {"state_dict": state}))
    assert_same_features(encoder, model, size=64)
    assert encoder.origin.startswith("checkpoint of the paper's code, student: resnet50, 318 of 318 tensors matched")


def test_simsiam(tmp_path: Path) -> None:
    # facebookresearch/simsiam simsiam/builder.py, main_simsiam.py: MEC's keys without a teacher
    model = resnet()
    state = {k: v for k, v in mec_state_dict(model, model).items() if not k.startswith("module.teacher.")}
    path = save_checkpoint(tmp_path, {"epoch": 100, "arch": "resnet18", "state_dict": state})
    encoder = load_encoder(path)
    assert_same_features(encoder, model)
    assert encoder.origin.startswith("SimSiam checkpoint: resnet18, 120 of 120 tensors matched")
    with pytest.raises(InputError, match="has no teacher; this SimSiam checkpoint has the student"):
        load_encoder(f"{path}:teacher")


@pytest.mark.parametrize("version", [1, 2])
def test_moco(tmp_path: Path, version: int) -> None:
    # facebookresearch/moco moco/builder.py, main_moco.py
    query, key = resnet(seed=1), resnet(seed=2)
    head = nn.Linear(512, 128) if version == 1 else nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    state = {
        "module.queue": torch.randn(128, 64),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
        **prefixed("module.encoder_q.", query),
        **prefixed("module.encoder_q.fc.", head),
        **prefixed("module.encoder_k.", key),
        **prefixed("module.encoder_k.fc.", head),
    }
    path = save_checkpoint(tmp_path, {"epoch": 200, "arch": "resnet18", "state_dict": state})
    encoder = load_encoder(path)
    assert_same_features(encoder, query)
    head_tensors = {1: 4, 2: 6}[version]  # the query's head, the queue and its pointer
    assert encoder.origin == (
        f"MoCo v{version} checkpoint, query encoder: resnet18, 120 of 120 tensors matched, "
        f"{head_tensors} head tensors ignored"
    )
    teacher = load_encoder(f"{path}:teacher")
    assert_same_features(teacher, key)
    assert "key encoder" in teacher.origin


def test_moco_v3_resnet(tmp_path: Path) -> None:
    # facebookresearch/moco-v3 moco/builder.py MoCo_ResNet
    base, momentum = resnet(seed=1), resnet(seed=2)
    state = {
        **prefixed("module.base_encoder.", base),
        **prefixed("module.base_encoder.fc.", mlp(512, 64, 16)),
        **prefixed("module.momentum_encoder.", momentum),
        **prefixed("module.momentum_encoder.fc.", mlp(512, 64, 16)),
        **prefixed("module.predictor.", mlp(16, 64, 16)),
    }
    path = save_checkpoint(tmp_path, {"epoch": 1, "arch": "resnet18", "state_dict": state})
    assert_same_features(load_encoder(path), base)
    assert_same_features(load_encoder(f"{path}:teacher"), momentum)
    assert load_encoder(path).origin.startswith("MoCo v3 checkpoint, base encoder: resnet18, 120 of 120")


def moco_v3_vit(seed: int) -> Any:
    # facebookresearch/moco-v3 vits.py vit_small: 12 heads, and a position embedding of 0 at the class token
    model = vit("vit_small_patch16_224", seed, num_heads=12)
    model.pos_embed.data[:, 0] = 0
    return model


def test_moco_v3_vit_has_twelve_heads(tmp_path: Path) -> None:
    base = moco_v3_vit(1)
    state = {
        **prefixed("module.base_encoder.", base),
        **prefixed("module.base_encoder.head.", mlp(384, 64, 64, 16)),
        **prefixed("module.momentum_encoder.", moco_v3_vit(2)),
        **prefixed("module.momentum_encoder.head.", mlp(384, 64, 64, 16)),
        **prefixed("module.predictor.", mlp(16, 64, 16)),
    }
    encoder = load_encoder(save_checkpoint(tmp_path, {"arch": "vit_small", "state_dict": state}))
    assert_same_features(encoder, base)
    assert encoder.spec.options == {"num_heads": 12}
    assert "150 of 150 tensors matched" in encoder.origin
    assert encoder.origin.endswith("12 heads as in MoCo v3")
    # the format of its convert_to_deit.py
    converted = save_checkpoint(tmp_path, {"model": base.state_dict()}, "deit.pth")
    assert_same_features(load_encoder(converted), base)
    assert load_encoder(converted, options={"num_heads": 6}).spec.options == {"num_heads": 6}


def test_barlow_twins(tmp_path: Path) -> None:
    # facebookresearch/barlowtwins main.py: checkpoint.pth, and resnet50.pth with the backbone only
    model = resnet()
    state = {
        **prefixed("module.backbone.", model),
        **prefixed("module.projector.", mlp(512, 64, 64)),
        **prefixed("module.projector.6.", nn.Linear(64, 64, bias=False)),
        **prefixed("module.bn.", nn.BatchNorm1d(64, affine=False)),
    }
    encoder = load_encoder(save_checkpoint(tmp_path, {"epoch": 1, "model": state, "optimizer": {}}, "checkpoint.pth"))
    assert_same_features(encoder, model)
    assert encoder.origin == "Barlow Twins checkpoint: resnet18, 120 of 120 tensors matched, 16 head tensors ignored"


def test_vicreg(tmp_path: Path) -> None:
    # facebookresearch/vicreg main_vicreg.py, resnet.py: a padding layer and the convolution pad by 3 in total
    model = resnet()
    state = {
        **prefixed("module.backbone.", model),
        **prefixed("module.projector.", mlp(512, 64, 64, bias=True)),
        **prefixed("module.projector.6.", nn.Linear(64, 64, bias=False)),
    }
    encoder = load_encoder(save_checkpoint(tmp_path, {"epoch": 1, "model": state, "optimizer": {}}, "model.pth"))
    assert_same_features(encoder, model)
    assert encoder.origin.startswith("VICReg checkpoint: resnet18, 120 of 120 tensors matched")
    backbone_only = load_encoder(save_checkpoint(tmp_path, model.state_dict(), "resnet50.pth"))
    assert_same_features(backbone_only, model)


@pytest.mark.parametrize("state_dict_only", [True, False])
def test_swav(tmp_path: Path, state_dict_only: bool) -> None:
    # facebookresearch/swav src/resnet50.py, main_swav.py; the published files contain the state dict only (hubconf.py)
    model = resnet("resnet50")
    state = {
        **prefixed("module.", model),
        **prefixed("module.projection_head.0.", nn.Linear(2048, 64)),
        **prefixed("module.projection_head.1.", nn.BatchNorm1d(64)),
        **prefixed("module.projection_head.3.", nn.Linear(64, 16)),
        "module.prototypes.weight": torch.randn(30, 16),
    }
    encoder = load_encoder(save_checkpoint(tmp_path, state if state_dict_only else {"epoch": 1, "state_dict": state}))
    assert_same_features(encoder, model, size=64)
    assert encoder.origin == "SwAV checkpoint: resnet50, 318 of 318 tensors matched, 10 head tensors ignored"


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
        rf"DINO checkpoint, teacher: {arch}\w*, (\d+) of \1 tensors matched, 8 head tensors", encoder.origin
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
