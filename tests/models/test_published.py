"""Other projects' checkpoints, with their names and shapes; which file of each says so stands at each fixture.

What is loaded is compared with the forward pass of the original module, torchvision's or timm's, which knows nothing
of this package.
"""

import argparse
import copy
import itertools
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from mec.errors import InputError
from mec.models import Encoder, load_encoder

State = dict[str, Tensor]


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with weights of this seed; biases and BatchNorm statistics are none of the defaults."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.ndim > 1 and tensor.is_floating_point():
            tensor.data.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.data.add_(torch.rand(tensor.shape, generator=generator), alpha=0.1)
    return model.eval()


def resnet(name: str = "resnet18", seed: int = 0, small: bool = False) -> Any:
    """torchvision's, without its classifier."""
    model: Any = getattr(torchvision.models, name)()
    model.fc = nn.Identity()
    if small:
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return shaken(model, seed)


def vit(name: str = "vit_tiny_patch16_224", seed: int = 0, **options: Any) -> Any:
    return shaken(timm.create_model(name, num_classes=0, **options), seed)


def under(prefix: str, module: nn.Module) -> State:
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def mlp(*widths: int, bias: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def same_features(encoder: Encoder, original: nn.Module, size: int | None = None) -> None:
    size = size or encoder.image_size
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = original(x).flatten(1)
        torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not encoder.training
    assert not encoder.untrained


def saved(tmp_path: Path, content: Any, name: str = "checkpoint.pth.tar") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


# xinliu20/MEC mec/builder.py, main_pretrain.py: {"epoch", "arch", "state_dict", "optimizer"}
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


@pytest.mark.parametrize("small", [False, True])
def test_solo_learn(tmp_path: Path, small: bool) -> None:
    # vturrisi/solo-learn solo/methods/base.py, solo/methods/mocov2plus.py; the stem for CIFAR pads by 2
    model, momentum = resnet(seed=1, small=small), resnet(seed=2, small=small)
    if small:
        model.conv1.padding = momentum.conv1.padding = (2, 2)
    state = {
        "queue": torch.randn(2, 16, 64),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        **under("backbone.", model),
        **under("classifier.", nn.Linear(512, 10)),
        **under("momentum_backbone.", momentum),
        **under("projector.0.", nn.Linear(512, 64)),
        **under("projector.2.", nn.Linear(64, 16)),
        **under("momentum_projector.0.", nn.Linear(512, 64)),
        **under("momentum_projector.2.", nn.Linear(64, 16)),
    }
    path = saved(
        tmp_path, {"epoch": 1, "pytorch-lightning_version": "2.0", "state_dict": state}, "mocov2plus-ep=999.ckpt"
    )
    encoder = load_encoder(path)
    same_features(encoder, model)
    assert encoder.origin.startswith("solo-learn checkpoint, backbone: resnet18, 120 of 120 tensors matched")
    assert encoder.spec.small_stem == small
    if small:  # solo/data/pretrain_dataloader.py
        assert encoder.image_size == 32
        assert encoder.spec.mean == (0.4914, 0.4822, 0.4465)
        assert encoder.origin.endswith("CIFAR-10's mean and standard deviation")
    same_features(load_encoder(f"{path}:teacher"), momentum)


def test_lightly_with_torchvisions_resnet(tmp_path: Path) -> None:
    # lightly-ai/lightly examples/pytorch_lightning/moco.py
    model, momentum = resnet(seed=1), resnet(seed=2)
    state = {
        **under("backbone.", nn.Sequential(*list(model.children())[:-1])),
        **under("projection_head.layers.0.", nn.Linear(512, 64)),
        **under("backbone_momentum.", nn.Sequential(*list(momentum.children())[:-1])),
        **under("projection_head_momentum.layers.0.", nn.Linear(512, 64)),
    }
    path = saved(tmp_path, {"state_dict": state, "pytorch-lightning_version": "2.0"})
    same_features(load_encoder(path), model)
    same_features(load_encoder(f"{path}:teacher"), momentum)
    assert load_encoder(path).origin.startswith("lightly checkpoint, backbone: resnet18, 120 of 120 tensors matched")
    # examples/pytorch_lightning/dino.py
    names = {"backbone.": "student_backbone.", "backbone_momentum.": "teacher_backbone."}
    renamed = {names.get(k.split(".")[0] + ".", "x.") + k.split(".", 1)[1]: v for k, v in state.items()}
    path = saved(tmp_path, {"state_dict": renamed})
    same_features(load_encoder(f"{path}:teacher"), momentum)


@pytest.mark.parametrize("depths", [[1, 1, 1, 1], [2, 2, 2, 2]])
def test_lightlys_own_resnet(tmp_path: Path, depths: list[int]) -> None:
    # lightly-ai/lightly lightly/models/resnet.py: no activation or pooling among its children; shortcut
    block = torchvision.models.resnet.BasicBlock
    model: Any = torchvision.models.ResNet(block, depths)
    model.fc, model.conv1, model.maxpool = nn.Identity(), nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    shaken(model)
    children = [model.conv1, model.bn1, model.layer1, model.layer2, model.layer3, model.layer4]
    state = {k.replace("downsample", "shortcut"): v for k, v in under("backbone.", nn.Sequential(*children)).items()}
    encoder = load_encoder(saved(tmp_path, {"state_dict": state}))
    same_features(encoder, model)
    assert encoder.image_size == 32
    assert encoder.spec.options == ({} if depths[0] == 2 else {"layers": [1, 1, 1, 1]})


def detectron2_pickle(path: Path, model: nn.Module, protocol: int) -> Path:
    # facebookresearch/detectron2 tools/convert-torchvision-to-d2.py, facebookresearch/moco detection/convert-...py
    state = {**model.state_dict(), **under("fc.", nn.Linear(512, 10))}
    found = {}
    for name, tensor in state.items():
        name = name if "layer" in name else f"stem.{name}"
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}", f"res{stage + 1}").replace(f"bn{stage}", f"conv{stage}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        if "num_batches" not in name:  # older PyTorch had none
            found[name] = tensor.numpy()
    with path.open("wb") as file:
        content = {"model": found, "__author__": "torchvision", "matching_heuristics": True}
        pickle.dump(content, file, protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_detectron2_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    model = resnet()
    path = detectron2_pickle(tmp_path / "r18.pkl", model, protocol)
    encoder = load_encoder(path)
    same_features(encoder, model)
    assert encoder.origin == "detectron2 weights: resnet18, 100 of 100 tensors matched, 2 of heads left out"
    # NumPy 2 writes numpy._core where NumPy 1 wrote numpy.core
    other = path.read_bytes().replace(b"numpy._core", b"numpy.core")
    if protocol == 2:
        path.write_bytes(other)
        same_features(load_encoder(path), model)


@pytest.mark.parametrize(
    ("name", "kind"), [("resnet34", "safetensors"), ("resnext50_32x4d", "pth"), ("wide_resnet50_2", "pth")]
)
def test_torchvision_resnets(tmp_path: Path, name: str, kind: str) -> None:
    from safetensors.torch import save_file

    model = resnet(name)
    state = {**model.state_dict(), **under("fc.", nn.Linear(8, 10))}
    path = tmp_path / f"{name}.{kind}"
    torch.save(state, path) if kind == "pth" else save_file(state, path)
    encoder = load_encoder(path)
    same_features(encoder, model, size=64)
    assert encoder.origin.startswith(f"torchvision or timm weights: {name}, ")
    assert encoder.origin.endswith("2 of heads left out")


def test_torchvision_vision_transformer(tmp_path: Path) -> None:
    model: Any = shaken(torchvision.models.vit_b_32(image_size=64))
    path = saved(tmp_path, model.state_dict(), "vit_b_32.pth")
    encoder = load_encoder(path)
    model.heads = nn.Identity()
    same_features(encoder, model)
    assert (
        encoder.origin == "torchvision weights: vit_base_patch32_224, 150 of 150 tensors matched, 2 of heads left out"
    )


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "regnety_002", "efficientnet_lite0"])
def test_any_timm_architecture(tmp_path: Path, name: str) -> None:
    model = shaken(timm.create_model(name, num_classes=7))
    content = {"state_dict": model.state_dict(), "epoch": 3}
    if name == "efficientnet_lite0":  # timm's train.py writes it too; here it settles what the shapes leave open
        content["arch"] = name
    encoder = load_encoder(saved(tmp_path, content, "model_best.pth.tar"))
    model.reset_classifier(0)
    same_features(encoder, model)
    assert encoder.spec.backbone == name


def test_several_that_fit_are_refused_and_can_be_named(tmp_path: Path) -> None:
    path = saved(tmp_path, timm.create_model("tf_efficientnet_lite0").state_dict(), "lite.pth")
    with pytest.raises(
        InputError, match=r"fits efficientnet_lite0, tf_efficientnet_lite0; say which: backbone="
    ) as error:
        load_encoder(path)
    assert "\n" not in str(error.value)
    encoder = load_encoder(path, backbone="tf_efficientnet_lite0")
    assert encoder.spec.mean == (0.5, 0.5, 0.5)  # timm's for it
    (tmp_path / "lite.json").write_text('{"backbone": "efficientnet_lite0", "image_size": 96, "mean": [0.1, 0.2, 0.3]}')
    encoder = load_encoder(path, image_size=128)
    assert (encoder.spec.backbone, encoder.image_size) == ("efficientnet_lite0", 128)
    assert encoder.spec.mean == (0.1, 0.2, 0.3)


def test_channels_are_read_from_the_first_convolution(tmp_path: Path) -> None:
    model = shaken(timm.create_model("resnet18", in_chans=5, num_classes=0))
    encoder = load_encoder(saved(tmp_path, model.state_dict()))
    assert encoder.spec.channels == 5
    x = torch.randn(2, 5, 64, 64)
    torch.testing.assert_close(encoder(x), model(x))


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    model = resnet()
    encoder = load_encoder(saved(tmp_path, copy.deepcopy(model).half().state_dict()))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder(x), model(x), rtol=0.02, atol=0.1)


def test_compiled_and_averaged_wrappers(tmp_path: Path) -> None:
    model = resnet()
    state = under("module._orig_mod.encoder_q.", model) | under("module._orig_mod.encoder_q.fc.", nn.Linear(512, 8))
    same_features(load_encoder(saved(tmp_path, {"state_dict": state})), model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    same_features(load_encoder(saved(tmp_path, averaged.state_dict())), model)
    pair = {"arch": "resnet18", "state_dict": resnet(seed=4).state_dict(), "state_dict_ema": model.state_dict()}
    same_features(load_encoder(f"{saved(tmp_path, pair)}:teacher"), model)


def test_nothing_is_taken_in_part(tmp_path: Path) -> None:
    def refused(state: Any, match: str, **fields: Any) -> None:
        with pytest.raises(InputError, match=match) as error:
            load_encoder(saved(tmp_path, state), **fields)
        assert "\n" not in str(error.value)

    whole = resnet().state_dict()
    one_less = {k: v for k, v in whole.items() if k != "layer4.1.conv2.weight"}
    refused(one_less, "resnet18 would be left with 1 of its 120 tensors unfilled, first layer4.1.conv2.weight")
    wider = {**whole, "layer2.0.conv1.weight": torch.zeros(128, 64, 5, 5)}
    refused(wider, "resnet18 would be left with 1 of its 120 tensors unfilled, first layer2.0.conv1.weight")
    deeper = {**whole, **{k.replace("layer4.1", "layer4.2"): v for k, v in whole.items() if "layer4.1" in k}}
    refused(deeper, "resnet18 has no place for 10 of them, first layer4.2.conv1.weight")
    refused(deeper, "resnet18 has no place for 10", backbone="resnet18")
    refused(whole, "resnet50 would be left with", backbone="resnet50")
    refused(whole, "no timm architecture is called 'resnet19'", backbone="resnet19")
    refused({**whole, "bn1.weight": torch.full((64,), torch.nan)}, "bn1.weight that are not finite")
    refused({"layer.weight": torch.zeros(3)}, "fits no timm architecture; its 1 tensors begin with layer.weight")
    refused({"epoch": 3, "optimizer": {}}, r"no tensors where checkpoints keep them \(it has epoch, optimizer\)")
    refused(torch.zeros(3), "holds a Tensor; expected a mapping")
    refused({}, "it has nothing")
