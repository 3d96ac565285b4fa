"""Load the encoder of a training checkpoint, of this package or a third party: format, tensors, architecture.

The formats follow the projects' published code; tests/models/test_foreign_checkpoints.py and test_libraries.py name
the source file of each.

Most checkpoints do not record how images were normalized. If the project has no convention either, common ResNets and
vision transformers get ImageNet's mean and standard deviation, and other architectures those of timm's configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mec.errors import InputError
from mec.models.architectures import Conventions, find_architecture
from mec.models.encoder import Encoder, create_encoder
from mec.models.key_maps import (
    DEPTHWISE_SEPARABLE,
    FROM_DETECTRON2,
    FROM_EFFICIENTNET_PYTORCH,
    FROM_LIGHTLY,
    FROM_SEQUENTIAL,
    FROM_TORCHVISION_VIT,
    INVERTED_RESIDUAL,
    KeyMap,
    rename_key,
)

StateDict = dict[str, Tensor]

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BRANCHES = ("student", "teacher")
MEC_BACKBONE_PREFIX = "network.encoder.backbone."
# keys of the state dicts in a checkpoint: the trained network, and its moving average
STATE_DICT_KEYS = (
    ("student", "teacher"),
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("model_state_dict", "model_ema_state_dict"),
)


def _keep_keys(state_dict: StateDict) -> StateDict:
    return state_dict


def _apply(key_map: KeyMap) -> Callable[[StateDict], StateDict]:
    return lambda state_dict: {rename_key(key, key_map): tensor for key, tensor in state_dict.items()}


def _from_lightly(state_dict: StateDict) -> StateDict:
    if all(key.startswith("vit.") for key in state_dict):
        return {key.removeprefix("vit."): tensor for key, tensor in state_dict.items()}
    # torchvision's last stage is child 7, after an activation and a max-pool without tensors; lightly's own is child 5
    is_lightly_resnet = not any(key.startswith("7.") for key in state_dict)
    return _apply(FROM_LIGHTLY if is_lightly_resnet else FROM_SEQUENTIAL)(state_dict)


def _from_efficientnet_pytorch(state_dict: StateDict) -> StateDict:
    """Rename keys; blocks are numbered over all stages, and timm starts a stage where the output channels change."""
    stages: dict[int, tuple[int, int]] = {}
    stage, block, width = -1, 0, 0
    for number in range(sum(key.endswith("._project_conv.weight") for key in state_dict)):
        channels = len(state_dict[f"_blocks.{number}._project_conv.weight"])
        stage, block = (stage, block + 1) if channels == width else (stage + 1, 0)
        stages[number], width = (stage, block), channels
    renamed = {}
    for key, tensor in state_dict.items():
        if match := re.match(r"_blocks\.(\d+)\.(.*)", key):
            stage, block = stages[int(match[1])]
            has_expansion = f"_blocks.{match[1]}._expand_conv.weight" in state_dict
            key = f"blocks.{stage}.{block}.{match[2]}"
            key = rename_key(key, INVERTED_RESIDUAL if has_expansion else DEPTHWISE_SEPARABLE)
            key = key if has_expansion else re.sub(r"\._bn(\d)\.", r".bn\1.", key)
        renamed[rename_key(key, FROM_EFFICIENTNET_PYTORCH)] = tensor
    return renamed


@dataclass(frozen=True)
class CheckpointFormat:
    """The checkpoint format of a project.

    Attributes:
        name: name of the format in messages.
        signature_keys: regular expressions; each matches at least one key, once wrapper prefixes are removed.
        student_prefix: prefix of the trained backbone's keys.
        teacher_prefix: prefix of the averaged backbone's keys; None if the format has no teacher.
        branch_names: the project's names for student and teacher.
        rename_keys: conversion of a backbone's keys to timm's.
        architecture_prefix: prefix of the architecture's name, where the format implies one.
        generic: many projects write this format, so the normalization is inferred from the architecture.
    """

    name: str
    signature_keys: tuple[str, ...]
    student_prefix: str = ""
    teacher_prefix: str | None = None
    branch_names: tuple[str, str] = BRANCHES
    rename_keys: Callable[[StateDict], StateDict] = _keep_keys
    architecture_prefix: str = ""
    generic: bool = False

    def prefix(self, branch: str) -> str | None:
        return self.student_prefix if branch == "student" else self.teacher_prefix

    def matches(self, state_dict: StateDict) -> bool:
        return all(any(re.search(pattern, key) for key in state_dict) for pattern in self.signature_keys)


MOCO_BRANCH_NAMES, MOCO_V3_BRANCH_NAMES = ("query encoder", "key encoder"), ("base encoder", "momentum encoder")
MOMENTUM_BRANCH_NAMES = ("backbone", "momentum backbone")
# the first format that matches is used; special cases of a format precede it
FORMATS = (
    CheckpointFormat(
        "mec-ssl checkpoint", (r"^network\.encoder\.backbone\.",), MEC_BACKBONE_PREFIX, "network.teacher.0.backbone."
    ),
    CheckpointFormat(
        "checkpoint of the paper's code", (r"^encoder\.fc\.", r"^predictor\.", r"^teacher\."), "encoder.", "teacher."
    ),
    CheckpointFormat("SimSiam checkpoint", (r"^encoder\.fc\.", r"^predictor\."), "encoder."),
    CheckpointFormat(
        "MoCo v3 checkpoint", (r"^base_encoder\.",), "base_encoder.", "momentum_encoder.", MOCO_V3_BRANCH_NAMES
    ),
    CheckpointFormat("MoCo v2 checkpoint", (r"^encoder_q\.fc\.0\.",), "encoder_q.", "encoder_k.", MOCO_BRANCH_NAMES),
    CheckpointFormat("MoCo v1 checkpoint", (r"^encoder_q\.",), "encoder_q.", "encoder_k.", MOCO_BRANCH_NAMES),
    CheckpointFormat(
        "lightly checkpoint", (r"^backbone\.(0|vit)\.",), "backbone.", "backbone_momentum.", MOMENTUM_BRANCH_NAMES,
        _from_lightly
    ),
    CheckpointFormat(
        "lightly checkpoint", (r"^student_backbone\.(0|vit)\.",), "student_backbone.", "teacher_backbone.",
        rename_keys=_from_lightly
    ),
    CheckpointFormat("lightly checkpoint", (r"^student_backbone\.",), "student_backbone.", "teacher_backbone."),
    CheckpointFormat(
        "solo-learn checkpoint", (r"^backbone\.", r"^classifier\."), "backbone.", "momentum_backbone.",
        MOMENTUM_BRANCH_NAMES
    ),
    CheckpointFormat(
        "solo-learn checkpoint", (r"^encoder\.", r"^classifier\."), "encoder.", "momentum_encoder.",
        MOMENTUM_BRANCH_NAMES
    ),
    CheckpointFormat("DINO checkpoint", (r"^backbone\.", r"^head\.last_layer\."), "backbone."),
    CheckpointFormat("Barlow Twins checkpoint", (r"^backbone\.", r"^projector\.", r"^bn\."), "backbone."),
    CheckpointFormat("VICReg checkpoint", (r"^backbone\.", r"^projector\."), "backbone."),
    CheckpointFormat("SwAV checkpoint", (r"^projection_head\.", r"^prototypes")),
    CheckpointFormat("detectron2 weights", (r"^stem\.conv1\.norm\.",), rename_keys=_apply(FROM_DETECTRON2)),
    CheckpointFormat(
        "torchvision weights", (r"^conv_proj\.", r"^class_token$"), rename_keys=_apply(FROM_TORCHVISION_VIT)
    ),
    # its convolutions pad as TensorFlow does, like those of timm's tf_ models
    CheckpointFormat(
        "EfficientNet-PyTorch weights", (r"^_conv_stem\.",), rename_keys=_from_efficientnet_pytorch,
        architecture_prefix="tf_", generic=True
    ),
    CheckpointFormat("backbone weights", (r"^backbone\.",), "backbone.", generic=True),
    CheckpointFormat("encoder weights", (r"^encoder\.(conv1|patch_embed|conv_stem|stem)\b",), "encoder.", generic=True),
    CheckpointFormat("torchvision or timm weights", (), generic=True),
)  # fmt: skip


def encoder_from_checkpoint(
    checkpoint: Mapping[Any, Any], source: str, branch: str | None, overrides: Mapping[str, Any], label: str = ""
) -> Encoder:
    """Return the encoder of a checkpoint, in evaluation mode; its ``origin`` names the format and the architecture.

    Args:
        checkpoint: the content of the file, as returned by read_weights.
        source: path of the file, for error messages.
        branch: "student" or "teacher"; None selects the one that the project itself evaluates.
        overrides: values for EncoderSpec that take precedence over inferred ones.
        label: used in the origin in place of the format's name.

    Raises:
        InputError: the checkpoint has no tensors or no such branch, no architecture matches its tensors or several
            do, or values are not finite.
    """
    state_dict, branch, stored_alone = _select_state_dict(checkpoint, source, branch)
    format = next(format for format in FORMATS if format.matches(state_dict))
    prefix = format.prefix(branch or "student")
    if prefix is None or not any(key.startswith(prefix) for key in state_dict):
        prefixes = {b: p for b in BRANCHES if (p := format.prefix(b)) is not None}
        available = [b for b, p in prefixes.items() if any(key.startswith(p) for key in state_dict)]
        raise InputError(
            f"encoder: {source} has no {branch or 'student'}; this {format.name} has the {' and the '.join(available)}"
        )
    weights = format.rename_keys(
        {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    )
    conventions = _conventions(format, weights)
    arch = checkpoint.get("arch")
    hint = arch if isinstance(arch, str) else None
    fields, matched = find_architecture(weights, conventions, overrides, source, hint, format.architecture_prefix)
    encoder = create_encoder(**fields)
    _load_weights(encoder, weights, source)
    other_branches = tuple(p for p in (format.student_prefix, format.teacher_prefix) if p and p != prefix)
    ignored = sum(not key.startswith(other_branches) for key in state_dict) - matched
    names = dict(zip(BRANCHES, format.branch_names, strict=True)) if format.teacher_prefix else {}
    branch_name = stored_alone or names.get(branch or "student", "")
    encoder.origin = "".join(
        (
            label or format.name,
            f", {branch_name}" if branch_name else "",
            f": {encoder.spec.backbone}, {matched} of {matched} tensors matched",
            f", {ignored} head tensor{'s' if ignored > 1 else ''} ignored" if ignored else "",
            f"; {conventions.note}" if conventions.note else "",
        )
    )
    return encoder.eval()


class _Selection(NamedTuple):
    """The state dict of a checkpoint that contains the requested branch.

    Attributes:
        state_dict: the tensors.
        branch: branch to select by key prefix; None for the default, or if ``stored_alone``.
        stored_alone: the branch, if the state dict contains no other one.
    """

    state_dict: StateDict
    branch: str | None
    stored_alone: str | None


def _select_state_dict(checkpoint: Mapping[Any, Any], source: str, branch: str | None) -> _Selection:
    """Find the state dict of a branch.

    Checkpoints store their branches either in separate state dicts or in one, under different key prefixes.
    """
    for student_key, teacher_key in STATE_DICT_KEYS:
        state_dicts = {
            name: state_dict
            for name, key in zip(BRANCHES, (student_key, teacher_key), strict=True)
            if (state_dict := _unwrap_state_dict(checkpoint.get(key)))
        }
        if len(state_dicts) == 2:
            # DINO evaluates its teacher, other projects the trained network
            selected = branch or ("teacher" if teacher_key == "teacher" else "student")
            return _Selection(state_dicts[selected], None, selected)
        if state_dicts:
            ((only, state_dict),) = state_dicts.items()
            is_teacher = only == branch == "teacher"
            return _Selection(state_dict, None, only) if is_teacher else _Selection(state_dict, branch, None)
    if state_dict := _unwrap_state_dict(checkpoint):
        return _Selection(state_dict, branch, None)
    keys = ", ".join(map(str, list(checkpoint)[:5])) or "none"
    raise InputError(f"encoder: {source} has no state dict under the usual keys; its keys: {keys}")


def _unwrap_state_dict(state_dict: Any) -> StateDict:
    """Return the tensors and numeric arrays of a mapping by key; empty for anything else.

    The prefixes of torch.compile, DataParallel and wrapper modules are removed.
    """
    if not isinstance(state_dict, Mapping):
        return {}
    tensors: StateDict = {}
    for key, value in state_dict.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.array(value))
        if isinstance(key, str) and isinstance(value, Tensor):
            tensors[re.sub(r"(^|\.)_orig_mod\.", r"\1", key).removeprefix("module.")] = value
    for wrapper in ("model.", "module."):
        if tensors and all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return tensors


def _conventions(format: CheckpointFormat, weights: StateDict) -> Conventions:
    """Return the properties of the encoder that follow from the project's code and not from the tensors' shapes."""
    fields: dict[str, Any] = {}
    note = ""
    stem = weights.get("conv1.weight")
    if format.name.startswith("solo-learn") and stem is not None and stem.shape[-1] == 3:
        # its stem for CIFAR-10 and CIFAR-100, which the checkpoint does not distinguish; their means are nearly equal
        fields = {"stem_padding": 2, "mean": CIFAR10_MEAN, "std": CIFAR10_STD}
        note = "CIFAR-10's mean and standard deviation"
    pos_embed = weights.get("pos_embed")
    is_vit = {"cls_token", "blocks.0.attn.qkv.weight"} <= weights.keys()
    if pos_embed is not None and pos_embed.ndim == 3 and is_vit and not format.name.startswith("lightly"):
        # MoCo v3 fixes the position embedding, with 0 at the class token; its ViTs have 12 heads up to width 768
        is_moco_v3 = bool((pos_embed[0, 0] == 0).all())
        if is_moco_v3 and pos_embed.shape[-1] < 768:
            fields["options"] = {"num_heads": 12}
            note = "12 heads as in MoCo v3"
    return Conventions(fields, note, timm_normalization=format.generic)


def _load_weights(encoder: Encoder, weights: StateDict, source: str) -> None:
    state_dict = encoder.backbone.state_dict()
    for key in state_dict.keys() & weights.keys():
        tensor = weights[key]
        if not bool(torch.isfinite(tensor.float()).all()):
            raise InputError(f"encoder: {source} has values in {key} that are not finite")
        state_dict[key] = tensor.to(state_dict[key].dtype)
    encoder.backbone.load_state_dict(state_dict)
