"""Load the encoder of a training checkpoint, of this package or others; all tensors but those of heads must match.

torchvision's ResNets and common vision transformers are recognized by their shapes; any other timm architecture must be
named, by the checkpoint's "arch" or by the user. Without a known normalization, the former get ImageNet's mean and
standard deviation, and the latter those of timm's configuration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from mec.errors import InputError
from mec.models.checkpoint_formats import FORMATS, Format, StateDict
from mec.models.encoder import Encoder, create_encoder, timm_module

Shapes = dict[str, tuple[int, ...]]  # of a state dict's tensors, by key

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BRANCHES = ("student", "teacher")
STATE_DICT_KEYS = (
    ("student", "teacher"), ("state_dict", "state_dict_ema"), ("model", "model_ema"),
    ("model_state_dict", "model_ema_state_dict"),
)  # fmt: skip
"""Keys of the state dicts in a checkpoint: the trained network, and its moving average."""
HEAD_MODULES = frozenset(
    "fc head heads head_dist classifier linear last_linear logits projector projection_head projection prototypes "
    "predictor prediction_head queue queue_ptr mask_token n_averaged".split()
)
"""First components of the keys of heads and of other modules outside the backbone."""
COMPUTED_BUFFERS = ("num_batches_tracked", "relative_position_index", "attn_mask", "relative_coords_table")
"""Buffers that some versions of a library save and others recompute; the comparison ignores them."""
RESNETS = {
    "resnet18": (3, 64, 64, 2, 2, 2, 2),
    "resnet34": (3, 64, 64, 3, 4, 6, 3),
    "resnet50": (1, 64, 64, 3, 4, 6, 3),
    "resnet101": (1, 64, 64, 3, 4, 23, 3),
    "resnet152": (1, 64, 64, 3, 8, 36, 3),
    "resnext50_32x4d": (1, 128, 4, 3, 4, 6, 3),
    "resnext101_32x8d": (1, 256, 8, 3, 4, 23, 3),
    "resnext101_64x4d": (1, 256, 4, 3, 4, 23, 3),
    "wide_resnet50_2": (1, 128, 128, 3, 4, 6, 3),
    "wide_resnet101_2": (1, 128, 128, 3, 4, 23, 3),
}
"""Kernel size of a block's first convolution, output and group width of its second, number of blocks per stage."""
VIT_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}  # by embedding width


def encoder_from_checkpoint(
    checkpoint: Mapping[Any, Any], source: str, branch: str | None, overrides: Mapping[str, Any], label: str = ""
) -> Encoder:
    """Return the encoder of a checkpoint, in evaluation mode; its ``origin`` names the format, or ``label``.

    ``branch`` is "student", "teacher", or None for that which the project evaluates; ``overrides`` are fields of
    EncoderSpec that take precedence over inferred ones.
    """
    state_dict, branch, stored_alone = _select_state_dict(checkpoint, source, branch)
    format = next(format for format in FORMATS if format.matches(state_dict))
    prefixes = {"student": format.student_prefix, "teacher": format.teacher_prefix}
    available = [b for b, p in prefixes.items() if p is not None and any(key.startswith(p) for key in state_dict)]
    selected = branch or "student"
    prefix = prefixes[selected]
    if prefix is None or selected not in available:
        raise InputError(
            f"encoder: {source} has no {selected}; this {format.name} has the {' and the '.join(available)}"
        )
    weights = format.rename_keys(
        {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    )
    encoder, note = _create_matching_encoder(weights, format, checkpoint.get("arch"), overrides, source)
    matched = load_weights(encoder, weights, source)
    other_branches = tuple(p for p in prefixes.values() if p and p != prefix)
    ignored = sum(not key.startswith(other_branches) for key in state_dict) - matched
    branch_name = stored_alone or (format.teacher_prefix and format.branch_names[BRANCHES.index(selected)])
    encoder.origin = f"{label or format.name}{f', {branch_name}' if branch_name else ''}: {encoder.spec.backbone}, "
    encoder.origin += f"{matched} of {matched} tensors matched"
    if ignored:
        encoder.origin += f", {ignored} head tensor{'s' if ignored > 1 else ''} ignored"
    if note:
        encoder.origin += f"; {note}"
    return encoder.eval()


def _select_state_dict(
    checkpoint: Mapping[Any, Any], source: str, branch: str | None
) -> tuple[StateDict, str | None, str | None]:
    """Return the state dict, the branch to select in it by prefix (None: the default), and the branch stored alone."""
    for keys in STATE_DICT_KEYS:
        state_dicts = {name: _unwrap_state_dict(checkpoint.get(k)) for name, k in zip(BRANCHES, keys, strict=True)}
        state_dicts = {name: state_dict for name, state_dict in state_dicts.items() if state_dict}
        if len(state_dicts) == 2:
            # DINO evaluates its teacher, other projects the trained network
            selected = branch or ("teacher" if keys[1] == "teacher" else "student")
            return state_dicts[selected], None, selected
        if state_dicts:
            ((only, state_dict),) = state_dicts.items()
            return (state_dict, None, only) if only == branch == "teacher" else (state_dict, branch, None)
    if state_dict := _unwrap_state_dict(checkpoint):
        return state_dict, branch, None
    names = ", ".join(map(str, list(checkpoint)[:5])) or "none"
    raise InputError(f"encoder: {source} has no state dict under the usual keys; its keys: {names}")


def _unwrap_state_dict(state_dict: Any) -> StateDict:
    """Return the tensors and numeric arrays of a mapping (else {}), by key without the prefixes of wrapper modules."""
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


def _create_matching_encoder(
    weights: StateDict, format: Format, arch: Any, overrides: Mapping[str, Any], source: str
) -> tuple[Encoder, str]:
    """Return an encoder of the architecture that the weights match, and a note on its assumptions."""
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    conventions, note = _conventions(format, weights)
    known, known_options = _known_architecture(shapes)
    user_chose = "backbone" in overrides  # then every module that the architecture does not have counts as a head
    names = [n for n in dict.fromkeys((arch, known)) if isinstance(n, str) and timm.is_model(n)]
    reason = f"it has {len(shapes)} tensors, first {next(iter(shapes))}"
    for name in [overrides["backbone"]] if user_chose else names:
        # ImageNet's normalization for the known architecture, timm's for others unless the project has its own
        inferred = _infer_fields(name, shapes, use_timm_normalization=format.generic and name != known)
        options = known_options if name == known and not user_chose else {}
        for values in (inferred, conventions, overrides):
            options = options | values.get("options", {})
        encoder = create_encoder(**{"backbone": name, **inferred, **conventions, **overrides, "options": options})
        difference = describe_difference(encoder, weights, user_chose)
        if not difference:
            return encoder, note
        if user_chose:
            raise InputError(f"encoder: {source} does not match {name} ({difference})")
        reason = f"the closest is {name} ({difference})"
    file = Path(source).with_suffix(".json").name
    raise InputError(
        f"encoder: {source} matches no common ResNet or vision transformer; {reason}; for another timm architecture, "
        f'pass backbone="NAME" in Python, or write {{"backbone": "NAME"}} to {file} next to it'
    )


def _conventions(format: Format, weights: StateDict) -> tuple[dict[str, Any], str]:
    """Return create_encoder's arguments that follow from the project's code and not from shapes, and a note on them."""
    stem, pos_embed = weights.get("conv1.weight"), weights.get("pos_embed")
    if format.name.startswith("solo-learn") and stem is not None and stem.shape[-1] == 3:
        # its stem for CIFAR-10 and CIFAR-100, which the checkpoint does not distinguish; their means are nearly equal
        fields = {"stem_padding": 2, "mean": CIFAR10_MEAN, "std": CIFAR10_STD}
        return fields, "CIFAR-10's mean and standard deviation"
    is_vit = {"cls_token", "blocks.0.attn.qkv.weight"} <= weights.keys() and not format.name.startswith("lightly")
    # MoCo v3 fixes the position embedding, with 0 at the class token; its ViTs have 12 heads up to width 768
    is_small_vit = is_vit and pos_embed is not None and pos_embed.ndim == 3 and pos_embed.shape[-1] < 768
    if is_small_vit and bool((weights["pos_embed"][0, 0] == 0).all()):
        return {"options": {"num_heads": 12}}, "12 heads as in MoCo v3"
    return {}, ""


def _known_architecture(shapes: Shapes) -> tuple[str | None, dict[str, Any]]:
    """Return the closest of torchvision's ResNets, or a ViT with a class token, and its options; or None."""
    conv1, conv2 = shapes.get("layer1.0.conv1.weight", ()), shapes.get("layer1.0.conv2.weight", ())
    if len(shapes.get("conv1.weight", ())) == len(conv1) == len(conv2) == 4:
        blocks = [len({k.split(".")[1] for k in shapes if k.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4)]
        if blocks == [1, 1, 1, 1]:  # lightly's ResNet-9
            return "resnet18", {"layers": blocks}
        found = (conv1[-1], *conv2[:2], *blocks)
        return min(RESNETS, key=lambda name: sum(a != b for a, b in zip(RESNETS[name], found, strict=True))), {}
    if {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= shapes.keys():
        size, patch = VIT_SIZES.get(shapes["pos_embed"][-1]), shapes["patch_embed.proj.weight"][-1]
        if "blocks.0.ls1.gamma" in shapes:
            return f"vit_{size}_patch{patch}_{'reg4_' if 'reg_token' in shapes else ''}dinov2", {}
        # if timm has no name for this patch size, _infer_fields changes that of another ViT of this width
        names = (f"vit_{size}_patch{p}_224" for p in (patch, 16, 14))
        return next(filter(timm.is_model, names), None), {}
    return None, {}


def _infer_fields(backbone: str, shapes: Shapes, use_timm_normalization: bool) -> dict[str, Any]:
    """Return create_encoder's arguments that follow from the shapes, or else from timm's configuration."""
    fields: dict[str, Any] = {"small_stem": False}
    if not timm.is_model(backbone):
        return fields  # create_encoder raises an error
    config = timm.models.get_pretrained_cfg(backbone)
    first_conv = (config and config.first_conv) or "conv1"
    first_conv = first_conv if isinstance(first_conv, str) else first_conv[0]
    if len(shape := shapes.get(f"{first_conv}.weight", ())) == 4:
        fields["channels"] = shape[1]
    if config:
        fields["image_size"] = config.input_size[-1]
        if use_timm_normalization and fields.get("channels", 3) == 3:
            fields |= {"mean": tuple(config.mean), "std": tuple(config.std)}
    if timm_module(backbone) == "resnet" and shapes.get("conv1.weight", ())[2:] == (3, 3):
        fields |= {"small_stem": True, "image_size": 32}
    patch_embed, pos_embed = shapes.get("patch_embed.proj.weight", ()), shapes.get("pos_embed", ())
    if timm_module(backbone) == "vision_transformer" and len(patch_embed) == 4 and len(pos_embed) == 3:
        # up to two extra tokens (class, distillation) do not change the integer square root
        patch, grid = patch_embed[-1], math.isqrt(pos_embed[1])
        fields["image_size"] = grid * patch
        if f"patch{patch}_" not in backbone:
            fields["options"] = {"patch_size": patch}
    return fields


def describe_difference(encoder: Encoder, weights: StateDict, user_chose: bool = False) -> str:
    """Describe the tensors that are missing in a checkpoint, or that belong neither to the encoder nor to a head."""
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    expected = {key: tuple(tensor.shape) for key, tensor in encoder.backbone.state_dict().items()}
    missing = [k for k, shape in expected.items() if shapes.get(k) != shape and not k.endswith(COMPUTED_BUFFERS)]
    if missing:
        return f"{len(missing)} of its {len(expected)} tensors missing or of another shape, first {missing[0]}"
    unexpected = [k for k in shapes if k not in expected and not k.endswith(COMPUTED_BUFFERS)]
    unexpected = [k for k in unexpected if k.split(".")[0] not in HEAD_MODULES]
    if user_chose:
        modules = {_top_module(key) for key in expected}
        unexpected = [key for key in unexpected if _top_module(key) in modules]
    return f"{len(unexpected)} unexpected tensors, first {unexpected[0]}" if unexpected else ""


def _top_module(key: str) -> str:
    """Return the key's first component without digits: layer for layer1.0.conv1.weight."""
    return re.sub(r"\d+", "", key.split(".")[0])


def load_weights(encoder: Encoder, weights: StateDict, source: str) -> int:
    """Load the tensors, all finite, in the encoder's data types, and return their number."""
    state_dict = encoder.backbone.state_dict()
    matched = state_dict.keys() & weights.keys()
    for key in matched:
        tensor = weights[key]
        if not bool(torch.isfinite(tensor.float()).all()):
            raise InputError(f"encoder: {source} has values in {key} that are not finite")
        state_dict[key] = tensor.to(state_dict[key].dtype)
    encoder.backbone.load_state_dict(state_dict)
    return len(matched)
