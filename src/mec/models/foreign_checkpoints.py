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

import timm
import torch
from torch import nn

from mec.errors import InputError
from mec.models.checkpoint_conventions import (
    Evidence,
    describe_arch,
    describe_guesses,
    guess_fields,
    solo_learn_settings,
)
from mec.models.checkpoint_formats import FORMATS, SOLO_LEARN, StateDict
from mec.models.checkpoint_networks import AVERAGED, BRANCHES, describe_ignored, find_copies, select_state_dict
from mec.models.encoder import Encoder, create_encoder, timm_module

Shapes = dict[str, tuple[int, ...]]  # of a state dict's tensors, by key

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
    """Return the encoder of a checkpoint, in evaluation mode.

    Its ``origin`` names the format, or ``label``; the networks and modules that are not loaded; and what is assumed.

    ``branch`` is "student", "teacher", or None for that which the project evaluates; ``overrides`` are fields of
    EncoderSpec that take precedence over inferred ones.
    """
    state_dict, branch, name, others = select_state_dict(checkpoint, source, branch)
    solo_learn = solo_learn_settings(checkpoint, state_dict, source)
    format = next(f for f in FORMATS if f.matches(state_dict) and (f.name != SOLO_LEARN or solo_learn is not None))
    copies = find_copies(state_dict, format)
    prefixes, names = {"student": format.student_prefix}, dict(zip(BRANCHES, format.branch_names, strict=True))
    if format.teacher_prefix is not None:
        prefixes["teacher"] = format.teacher_prefix
    elif copies and AVERAGED.search(copies[0]):
        prefixes["teacher"] = copies.pop(0)
        names = {branch: prefix.rstrip(".") for branch, prefix in prefixes.items()}
    available = [b for b, prefix in prefixes.items() if any(key.startswith(prefix) for key in state_dict)]
    selected = branch or "student"
    if selected not in available:
        raise InputError(
            f"encoder: {source} has no {selected}; this {format.name} has the {' and the '.join(available)}"
        )
    prefix = prefixes[selected]
    raw = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    weights = format.rename_keys(raw)
    if len(weights) < len(raw):
        raise InputError(f"encoder: {source} has two tensors of one name, once those of this {format.name} are renamed")
    evidence = Evidence(checkpoint, state_dict, weights, format, solo_learn if format.name == SOLO_LEARN else None)
    encoder, notes = _create_matching_encoder(evidence, overrides, source)
    matched = load_weights(encoder, weights, source)
    loaded, timm_keys = {id(weights[key]) for key in matched}, {id(tensor): key for key, tensor in weights.items()}
    others += [f"{names[b]} not loaded{'' if name else f' (:{b} selects it)'}" for b in available if b != selected] + [
        f"{copy.rstrip('.')} not loaded" for copy in copies
    ]
    elsewhere = tuple(p for p in (*prefixes.values(), *copies) if p and p != prefix)
    ignored = [
        timm_keys.get(id(tensor), key)
        for key, tensor in state_dict.items()
        if id(tensor) not in loaded and not key.startswith(elsewhere)
    ]
    loaded_name = name or (names[selected] if "teacher" in prefixes else "")
    encoder.origin = f"{label or format.name}{f', {loaded_name}' if loaded_name else ''}: {encoder.spec.backbone}, "
    encoder.origin += f"{len(matched)} of {len(matched)} tensors matched{describe_ignored(ignored)}"
    encoder.origin = "; ".join([encoder.origin, *others, *notes])
    return encoder.eval()


def _create_matching_encoder(
    evidence: Evidence, overrides: Mapping[str, Any], source: str
) -> tuple[Encoder, list[str]]:
    """Return an encoder of the architecture that the weights match, and notes on what was assumed."""
    weights, arch = evidence.weights, evidence.arch
    if isinstance(overrides.get("backbone"), nn.Module):
        return _fill_network(weights, overrides, source)
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    known, known_options = _known_architecture(shapes)
    user_chose = "backbone" in overrides  # then every module that the architecture does not have counts as a head
    names = [n for n in dict.fromkeys((arch, known)) if isinstance(n, str) and timm.is_model(n)]
    reason = f"it has {len(shapes)} tensors, first {next(iter(shapes))}"
    for name in [overrides["backbone"]] if user_chose else names:
        inferred = _infer_fields(name, shapes)
        guesses = guess_fields(name, inferred, evidence, name == known, user_chose) if timm.is_model(name) else []
        arguments, options = {"backbone": name}, known_options if name == known and not user_chose else {}
        for values in (inferred, *(guess.fields for guess in guesses), overrides):
            arguments |= values
            options = options | values.get("options", {})
        encoder = create_encoder(**arguments | {"options": options})
        difference = describe_difference(encoder, weights, user_chose)
        if not difference:
            return encoder, [
                *describe_arch(evidence, name if not user_chose else ""),
                *describe_guesses(guesses, encoder, overrides),
            ]
        if user_chose:
            raise InputError(f"encoder: {source} does not match {name} ({difference})")
        reason = f"the closest is {name} ({difference})"
    file = Path(source).with_suffix(".json").name
    raise InputError(
        f"encoder: {source} matches no common ResNet or vision transformer; {reason}; for another timm architecture, "
        f'pass backbone="NAME" in Python, or write {{"backbone": "NAME"}} to {file} next to it'
    )


def _fill_network(weights: StateDict, fields: Mapping[str, Any], source: str) -> tuple[Encoder, list[str]]:
    """Return an encoder of the user's network, which must match the weights, and a note on what was assumed."""
    encoder = create_encoder(**fields)
    if difference := describe_difference(encoder, weights, user_chose=True):
        raise InputError(f"encoder: {source} does not match {encoder.spec.backbone} ({difference})")
    assumed = [f"{n} {getattr(encoder.spec, n)}" for n in ("image_size", "channels", "mean", "std") if n not in fields]
    return encoder, [f"assumed {', '.join(assumed)}"] if assumed else []


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


def _infer_fields(backbone: str, shapes: Shapes) -> dict[str, Any]:
    """Return create_encoder's arguments that follow from the shapes."""
    fields: dict[str, Any] = {"small_stem": False}
    if not timm.is_model(backbone):
        return fields  # create_encoder raises an error
    config = timm.models.get_pretrained_cfg(backbone)
    first_conv = (config and config.first_conv) or "conv1"
    first_conv = first_conv if isinstance(first_conv, str) else first_conv[0]
    if len(shape := shapes.get(f"{first_conv}.weight", ())) == 4:
        fields["channels"] = shape[1]
    if timm_module(backbone) == "resnet" and shapes.get("conv1.weight", ())[2:] == (3, 3):
        fields["small_stem"] = True
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


def load_weights(encoder: Encoder, weights: StateDict, source: str) -> list[str]:
    """Load the tensors, all finite, in the encoder's data types, and return their names."""
    state_dict = encoder.backbone.state_dict()
    matched = [key for key, tensor in state_dict.items() if key in weights and weights[key].shape == tensor.shape]
    for key in matched:
        tensor, dtype = weights[key], state_dict[key].dtype
        if dtype.is_floating_point and not tensor.dtype.is_floating_point:
            raise InputError(
                f"encoder: {source} has whole numbers ({str(tensor.dtype).removeprefix('torch.')}) in {key}, as "
                "quantized networks do; expected floating-point weights: save those of the network before quantization"
            )
        if not bool(torch.isfinite(tensor.float()).all()):
            raise InputError(f"encoder: {source} has values in {key} that are not finite")
        state_dict[key] = tensor.to(dtype)
    if not any(bool(weights[key].float().any()) for key in matched if weights[key].ndim > 1):
        raise InputError(
            f"encoder: {source} has only zeros as weights, such as a moving average that was never updated"
        )
    encoder.backbone.load_state_dict(state_dict)
    return matched
