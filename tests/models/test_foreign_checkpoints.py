"""Other projects' checkpoints, with their names and shapes; which file of each says so stands at each fixture.

What is loaded is compared with the forward pass of the original module, torchvision's or timm's, which knows nothing
of this package.
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
from tests.models.originals import State, mlp, resnet, same_features, saved, under, vit


def mec_state(student: nn.Module, teacher: nn.Module) -> State:
    return {
        **under("module.encoder.", student),
        **under("module.encoder.fc.", mlp(512, 512, 512)),
        **under("module.encoder.fc.6.", nn.Linear(512, 64)),
        **under("module.encoder.fc.7.", nn.BatchNorm1d(64, affine=False)),
        **under("module.predictor.", mlp(64, 16)),
        **under("module.predictor.3.", nn.Linear(16, 64)),
        **under("module.teacher.", teacher),
        **under("module.teacher.fc.", mlp(512, 512, 512)),
        **under("module.teacher.fc.6.", nn.Linear(512, 64)),
        **under("module.teacher.fc.7.", nn.BatchNorm1d(64, affine=False)),
    }


@pytest.mark.parametrize(("part", "seed"), [("", 1), (":student", 1), (":teacher", 2)])
def test_the_official_mec_checkpoint(tmp_path: Path, part: str, seed: int) -> None:
    state = mec_state(resnet(seed=1), resnet(seed=2))
    optimizer = torch.optim.SGD(resnet().parameters(), 0.1, momentum=0.9).state_dict()
    path = saved(tmp_path, {"epoch": 100, "arch": "resnet18", "state_dict": state, "optimizer": optimizer})
    encoder = load_encoder(f"{path}{part}")
    same_features(encoder, resnet(seed=seed))
    heads = 17 + 8  # its projector's, and the predictor's
    assert encoder.origin == (
        f"MEC checkpoint, {part[1:] or 'student'}: resnet18, 120 of 120 tensors matched, {heads} of heads left out"
    )
    assert encoder.spec.mean == (0.485, 0.456, 0.406)
    assert encoder.image_size == 224


def test_the_official_mec_checkpoint_of_a_resnet50(tmp_path: Path) -> None:
    model = resnet("resnet50")
    state = {k.removeprefix("module."): v for k, v in mec_state(model, model).items()}  # of one process
    encoder = load_encoder(saved(tmp_path, {"state_dict": state}))
    same_features(encoder, model, size=64)
    assert encoder.origin.startswith("MEC checkpoint, student: resnet50, 318 of 318 tensors matched")


def test_simsiam(tmp_path: Path) -> None:
    # facebookresearch/simsiam simsiam/builder.py, main_simsiam.py: MEC's names without a teacher
    model = resnet()
    state = {k: v for k, v in mec_state(model, model).items() if not k.startswith("module.teacher.")}
    path = saved(tmp_path, {"epoch": 100, "arch": "resnet18", "state_dict": state})
    encoder = load_encoder(path)
    same_features(encoder, model)
    assert encoder.origin.startswith("SimSiam checkpoint: resnet18, 120 of 120 tensors matched")
    with pytest.raises(InputError, match="holds no teacher; this SimSiam checkpoint has the student"):
        load_encoder(f"{path}:teacher")


@pytest.mark.parametrize("version", [1, 2])
def test_moco(tmp_path: Path, version: int) -> None:
    # facebookresearch/moco moco/builder.py, main_moco.py
    query, key = resnet(seed=1), resnet(seed=2)
    head = nn.Linear(512, 128) if version == 1 else nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    state = {
        "module.queue": torch.randn(128, 64),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
        **under("module.encoder_q.", query),
        **under("module.encoder_q.fc.", head),
        **under("module.encoder_k.", key),
        **under("module.encoder_k.fc.", head),
    }
    path = saved(tmp_path, {"epoch": 200, "arch": "resnet18", "state_dict": state})
    encoder = load_encoder(path)
    same_features(encoder, query)
    heads = {1: 4, 2: 6}[version]  # the query's, and the queue and its pointer
    assert encoder.origin == (
        f"MoCo v{version} checkpoint, query encoder: resnet18, 120 of 120 tensors matched, {heads} of heads left out"
    )
    teacher = load_encoder(f"{path}:teacher")
    same_features(teacher, key)
    assert "key encoder" in teacher.origin


def test_moco_v3_resnet(tmp_path: Path) -> None:
    # facebookresearch/moco-v3 moco/builder.py MoCo_ResNet
    base, momentum = resnet(seed=1), resnet(seed=2)
    state = {
        **under("module.base_encoder.", base),
        **under("module.base_encoder.fc.", mlp(512, 64, 16)),
        **under("module.momentum_encoder.", momentum),
        **under("module.momentum_encoder.fc.", mlp(512, 64, 16)),
        **under("module.predictor.", mlp(16, 64, 16)),
    }
    path = saved(tmp_path, {"epoch": 1, "arch": "resnet18", "state_dict": state})
    same_features(load_encoder(path), base)
    same_features(load_encoder(f"{path}:teacher"), momentum)
    assert load_encoder(path).origin.startswith("MoCo v3 checkpoint, base encoder: resnet18, 120 of 120")


def moco_v3_vit(seed: int) -> Any:
    # facebookresearch/moco-v3 vits.py vit_small: 12 heads, and positions that are 0 at the class token
    model = vit("vit_small_patch16_224", seed, num_heads=12)
    model.pos_embed.data[:, 0] = 0
    return model


def test_moco_v3_vision_transformer_has_twelve_heads(tmp_path: Path) -> None:
    base = moco_v3_vit(1)
    state = {
        **under("module.base_encoder.", base),
        **under("module.base_encoder.head.", mlp(384, 64, 64, 16)),
        **under("module.momentum_encoder.", moco_v3_vit(2)),
        **under("module.momentum_encoder.head.", mlp(384, 64, 64, 16)),
        **under("module.predictor.", mlp(16, 64, 16)),
    }
    encoder = load_encoder(saved(tmp_path, {"arch": "vit_small", "state_dict": state}))
    same_features(encoder, base)
    assert encoder.spec.options == {"num_heads": 12}
    assert "150 of 150 tensors matched" in encoder.origin
    assert encoder.origin.endswith("12 heads as in MoCo v3")
    # what its convert_to_deit.py writes
    converted = saved(tmp_path, {"model": base.state_dict()}, "deit.pth")
    same_features(load_encoder(converted), base)
    assert load_encoder(converted, options={"num_heads": 6}).spec.options == {"num_heads": 6}


def test_barlow_twins(tmp_path: Path) -> None:
    # facebookresearch/barlowtwins main.py: checkpoint.pth, and resnet50.pth of the backbone alone
    model = resnet()
    state = {
        **under("module.backbone.", model),
        **under("module.projector.", mlp(512, 64, 64)),
        **under("module.projector.6.", nn.Linear(64, 64, bias=False)),
        **under("module.bn.", nn.BatchNorm1d(64, affine=False)),
    }
    encoder = load_encoder(saved(tmp_path, {"epoch": 1, "model": state, "optimizer": {}}, "checkpoint.pth"))
    same_features(encoder, model)
    assert encoder.origin == "Barlow Twins checkpoint: resnet18, 120 of 120 tensors matched, 16 of heads left out"


def test_vicreg(tmp_path: Path) -> None:
    # facebookresearch/vicreg main_vicreg.py, resnet.py: its padding layer and its convolution together pad by 3
    model = resnet()
    state = {
        **under("module.backbone.", model),
        **under("module.projector.", mlp(512, 64, 64, bias=True)),
        **under("module.projector.6.", nn.Linear(64, 64, bias=False)),
    }
    encoder = load_encoder(saved(tmp_path, {"epoch": 1, "model": state, "optimizer": {}}, "model.pth"))
    same_features(encoder, model)
    assert encoder.origin.startswith("VICReg checkpoint: resnet18, 120 of 120 tensors matched")
    backbone_alone = load_encoder(saved(tmp_path, model.state_dict(), "resnet50.pth"))
    same_features(backbone_alone, model)


@pytest.mark.parametrize("bare", [True, False])
def test_swav(tmp_path: Path, bare: bool) -> None:
    # facebookresearch/swav src/resnet50.py, main_swav.py; the published files are the state dict alone (hubconf.py)
    model = resnet("resnet50")
    state = {
        **under("module.", model),
        **under("module.projection_head.0.", nn.Linear(2048, 64)),
        **under("module.projection_head.1.", nn.BatchNorm1d(64)),
        **under("module.projection_head.3.", nn.Linear(64, 16)),
        "module.prototypes.weight": torch.randn(30, 16),
    }
    encoder = load_encoder(saved(tmp_path, state if bare else {"epoch": 1, "state_dict": state}))
    same_features(encoder, model, size=64)
    assert encoder.origin == "SwAV checkpoint: resnet50, 318 of 318 tensors matched, 10 of heads left out"


def dino_state(backbone: nn.Module, width: int, wrapper: str) -> State:
    # facebookresearch/dino vision_transformer.py DINOHead, utils.py MultiCropWrapper, main_dino.py
    return {
        **under(f"{wrapper}backbone.", backbone),
        **under(f"{wrapper}head.mlp.0.", nn.Linear(width, 32)),
        **under(f"{wrapper}head.mlp.2.", nn.Linear(32, 32)),
        **under(f"{wrapper}head.mlp.4.", nn.Linear(32, 16)),
        f"{wrapper}head.last_layer.weight_g": torch.ones(100, 1),
        f"{wrapper}head.last_layer.weight_v": torch.randn(100, 16),
    }


@pytest.mark.parametrize("kind", ["resnet18", "vit_tiny"])
def test_dino(tmp_path: Path, kind: str) -> None:
    make: Callable[..., Any] = resnet if kind == "resnet18" else vit
    student, teacher = make(seed=1), make(seed=2)
    width = 512 if kind == "resnet18" else 192
    # a network with BatchNorm is wrapped for both; a transformer's teacher is not
    content = {
        "student": dino_state(student, width, "module."),
        "teacher": dino_state(teacher, width, "module." if kind == "resnet18" else ""),
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 100,
        "args": argparse.Namespace(arch=kind, lr=0.0005, data_path="/imagenet"),
        "dino_loss": {"center": torch.zeros(1, 100)},
    }
    path = saved(tmp_path, content, "checkpoint.pth")
    encoder = load_encoder(path)
    same_features(encoder, teacher)  # as in its eval_linear.py
    assert re.match(rf"DINO checkpoint, teacher: {kind}\w*, (\d+) of \1 tensors matched, 8 of heads", encoder.origin)
    same_features(load_encoder(f"{path}:student"), student)


def test_dino_published_backbones(tmp_path: Path) -> None:
    # facebookresearch/dino hubconf.py: the backbone's state dict alone; patches of 8 and 16
    model = vit("vit_small_patch8_224", img_size=32)
    encoder = load_encoder(saved(tmp_path, model.state_dict(), "dino_deitsmall8_pretrain.pth"))
    same_features(encoder, model)
    assert (encoder.spec.backbone, encoder.image_size) == ("vit_small_patch8_224", 32)
    tiny = vit("vit_tiny_patch16_224", img_size=32, patch_size=4)  # there is no such name in timm
    encoder = load_encoder(saved(tmp_path, tiny.state_dict()))
    same_features(encoder, tiny)
    assert encoder.spec.options == {"patch_size": 4}
