"""Files with several networks: the one that is loaded is named, and the other can be selected."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mec.errors import InputError
from mec.models import load_encoder
from tests.models.reference_networks import StateDict, assert_same_features, prefixed, resnet, save_checkpoint

MODEL, AVERAGE = resnet(seed=1), resnet(seed=2)
A, B = MODEL.state_dict(), AVERAGE.state_dict()


def under(prefix_a: str, prefix_b: str) -> dict[str, StateDict]:
    return {"state_dict": prefixed(prefix_a, MODEL) | prefixed(prefix_b, AVERAGE)}


@pytest.mark.parametrize(
    ("content", "student", "teacher"),
    [
        ({"model": A, "ema": B}, "model", "ema"),
        # RT-DETR and others store the moving average with its counters
        ({"model": A, "ema": {"module": B, "updates": 9}}, "model", "ema"),
        ({"state_dict": A, "ema_state_dict": prefixed("module.", AVERAGE)}, "state_dict", "ema_state_dict"),
        ({"state_dict": A, "state_dict_ema": B, "arch": "resnet18"}, "state_dict", "state_dict_ema"),
        # torchvision's references/classification/train.py
        (
            {"model": A, "model_ema": {**prefixed("module.", AVERAGE), "n_averaged": torch.tensor(5)}},
            "model",
            "model_ema",
        ),
        (under("backbone.", "backbone_ema."), "backbone", "backbone_ema"),
        (under("backbone.", "teacher.backbone."), "backbone", "teacher.backbone"),
        (under("model.", "ema_model.module."), "model", "ema_model.module"),
        (under("student.backbone.", "teacher.backbone."), "student", "teacher"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_both_networks_are_named_and_selected(tmp_path: Path, content: Any, student: str, teacher: str) -> None:
    path = save_checkpoint(tmp_path, content)
    encoder = load_encoder(path)
    assert_same_features(encoder, MODEL, size=64)
    assert f", {student}: resnet18, 120 of 120 tensors matched" in encoder.origin
    assert f"; {teacher} not loaded (:teacher selects it)" in encoder.origin
    average = load_encoder(f"{path}:teacher")
    assert_same_features(average, AVERAGE, size=64)
    assert f", {teacher}: resnet18, 120 of 120" in average.origin
    assert f"; {student} not loaded (:student selects it)" in average.origin


def test_a_moving_average_alone_is_named_and_is_not_the_student(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, {"model_ema": B})
    assert ", model_ema: resnet18" in load_encoder(path).origin
    with pytest.raises(InputError, match="has no student; it has the teacher, under model_ema"):
        load_encoder(f"{path}:student")


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ({"state_dict": A, "model": B}, "; model (120 tensors) not loaded"),
        ({"model": A, "discriminator": B}, "; discriminator (120 tensors) not loaded"),
        # torch_ema stores a list of parameters
        ({"model": A, "ema": {"decay": 0.9, "shadow_params": list(B.values())}}, "; ema not loaded (it has no named"),
        (under("backbone.", "depth_backbone."), "; depth_backbone not loaded;"),
    ],
)
def test_other_networks_are_named(tmp_path: Path, content: Any, note: str) -> None:
    encoder = load_encoder(save_checkpoint(tmp_path, content))
    assert_same_features(encoder, MODEL, size=64)
    assert note in encoder.origin


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_keys_that_collide_without_prefixes_are_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(InputError, match=r"two tensors conv1\.weight, with and without the prefix"):
        load_encoder(save_checkpoint(tmp_path, {**A, **prefixed(prefix, AVERAGE)}))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_whole_numbers_in_place_of_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    quantized = {k: (v * 20).to(dtype) if v.ndim == 4 else v for k, v in A.items()}
    with pytest.raises(InputError, match=r"whole numbers \(u?int\d+\) in conv1\.weight, as quantized"):
        load_encoder(save_checkpoint(tmp_path, quantized))


def test_weights_of_zeros_are_refused(tmp_path: Path) -> None:
    zeros = {key: torch.zeros_like(tensor) for key, tensor in A.items()}
    with pytest.raises(InputError, match="only zeros"):
        load_encoder(f"{save_checkpoint(tmp_path, {'model': A, 'ema': zeros})}:teacher")
