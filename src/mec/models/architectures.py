"""Find the timm architecture whose state dict matches a checkpoint exactly.

All keys and shapes are compared with those of architectures built without allocating weights: first the few that
most checkpoints use, then every timm architecture whose first convolution may be in the checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from mec.errors import InputError
from mec.models.encoder import create_encoder

Shapes = dict[str, tuple[int, ...]]
"""Shapes of a state dict's tensors, by key."""

# first components of the keys of heads and of other modules outside the backbone
HEAD_MODULES = frozenset(
    "fc head heads head_dist classifier linear last_linear logits projector projection_head projection prototypes "
    "predictor prediction_head queue queue_ptr mask_token n_averaged".split()
)
COMPUTED_BUFFERS = ("num_batches_tracked", "relative_position_index", "attn_mask", "relative_coords_table")
"""Buffers that some versions of a library save and others recompute; the comparison ignores them."""
RESNETS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("resnet18", {}),
    ("resnet50", {}),
    ("resnet34", {}),
    ("resnet101", {}),
    ("resnet152", {}),
    ("resnext50_32x4d", {}),
    ("resnext101_32x8d", {}),
    ("resnext101_64x4d", {}),
    ("wide_resnet50_2", {}),
    ("wide_resnet101_2", {}),
    ("resnet18", {"layers": [1, 1, 1, 1]}),  # lightly's ResNet-9
)
VIT_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
"""Names of vision transformers by embedding width."""


@dataclass
class Conventions:
    """Properties of the encoder that follow from the project that wrote a checkpoint, and not from its tensors.

    Attributes:
        fields: arguments of create_encoder.
        note: the assumptions behind them, for the encoder's origin.
        timm_normalization: use timm's mean and standard deviation for the architecture, as the project has no rule.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    timm_normalization: bool = False


@dataclass(frozen=True)
class ArchitectureMatch:
    """Comparison of a checkpoint's tensors with an architecture's state dict.

    Attributes:
        fields: arguments of create_encoder that build the architecture.
        matched: number of the architecture's tensors that the checkpoint has, with equal shapes.
        missing: keys of the architecture that the checkpoint lacks or has with another shape.
        unexpected: keys of the checkpoint that belong neither to the architecture nor to a head.
    """

    fields: dict[str, Any]
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def exact(self) -> bool:
        return not self.missing and not self.unexpected

    def describe_mismatch(self) -> str:
        """Return the name of the architecture and its first missing or unexpected tensor."""
        name = self.fields["backbone"]
        if self.missing:
            total = self.matched + len(self.missing)
            count = len(self.missing)
            return f"{name} ({count} of its {total} tensors missing or of another shape, first {self.missing[0]})"
        return f"{name} ({len(self.unexpected)} unexpected tensors, first {self.unexpected[0]})"


def find_architecture(
    weights: Mapping[str, Tensor],
    conventions: Conventions,
    overrides: Mapping[str, Any],
    source: str,
    hint: str | None = None,
    prefix: str = "",
) -> tuple[dict[str, Any], int]:
    """Return create_encoder's arguments for the architecture that matches, and the number of matched tensors.

    Args:
        weights: tensors of a backbone under timm's keys; a head's may be among them.
        conventions: what the project that wrote them implies.
        overrides: the user's arguments of create_encoder; a ``backbone`` here is the only one tried.
        source: path of the file, for error messages.
        hint: architecture named by the checkpoint; it is tried before others.
        prefix: prefix of the architecture's name.

    Raises:
        InputError: no architecture matches, or several do.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    common = tuple(_common_architectures(shapes))

    def compare(backbone: str, options: Mapping[str, Any], prune: bool = False) -> ArchitectureMatch:
        # common architectures: the project's or ImageNet's normalization; the others are mostly trained with timm
        timm_normalization = conventions.timm_normalization and backbone not in (name for name, _ in common)
        inferred = _infer_fields(backbone, shapes, timm_normalization)
        options = dict(options)
        for values in (inferred, conventions.fields, overrides):
            options |= values.get("options", {})
        fields = {"backbone": backbone, **inferred, **conventions.fields, **overrides, "options": options}
        return _compare(shapes, fields, "backbone" in overrides, prune)

    if "backbone" in overrides:
        matches = [compare(overrides["backbone"], {})]
    else:
        matches = []
        hinted: tuple[tuple[str, dict[str, Any]], ...] = ((hint, {}),) if hint and timm.is_model(hint) else ()
        for backbone, options in (*hinted, *common):
            matches.append(compare(backbone, options))
            if matches[-1].exact:
                break
        if not any(match.exact for match in matches):
            for backbone in _candidates(shapes, prefix):
                # an architecture that timm cannot build with these fields cannot be the checkpoint's
                with contextlib.suppress(Exception):
                    matches.append(compare(backbone, {}, prune=True))
    exact = [match for match in matches if match.exact]
    if len(exact) == 1:
        return exact[0].fields, exact[0].matched
    if exact:
        names = ", ".join(match.fields["backbone"] for match in exact[:4])
        more = f" and {len(exact) - 4} more" if len(exact) > 4 else ""
        raise InputError(
            f"encoder: {source} matches several architectures, {names}{more}; "
            "choose with backbone=..., or in a .json file with the same name"
        )
    if not matches:
        raise InputError(
            f"encoder: {source} matches no timm architecture; it has {len(shapes)} tensors, first {next(iter(shapes))}"
        )
    closest = min(matches, key=lambda match: len(match.missing) + len(match.unexpected))
    if "backbone" in overrides:
        raise InputError(f"encoder: {source} does not match {closest.describe_mismatch()}")
    raise InputError(f"encoder: {source} matches no timm architecture; the closest is {closest.describe_mismatch()}")


def _common_architectures(shapes: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and options of the most frequent architectures: torchvision's ResNets, and ViTs with a class token."""
    if "layer1.0.conv1.weight" in shapes and len(shapes.get("conv1.weight", ())) == 4:
        yield from RESNETS
    if {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"} <= shapes.keys():
        width = shapes["pos_embed"][-1]
        patch = shapes.get("patch_embed.proj.weight", (0,))[-1]
        if width in VIT_SIZES:
            size = VIT_SIZES[width]
            name = f"vit_{size}_patch{patch}_224"
            # if timm has no name for this patch size, _infer_fields changes that of another ViT of this width
            yield (name if timm.is_model(name) else f"vit_{size}_patch{14 if width == 1280 else 16}_224"), {}


def _infer_fields(backbone: str, shapes: Shapes, timm_normalization: bool) -> dict[str, Any]:
    """Return create_encoder's arguments that follow from the shapes, or else from timm's configuration."""
    config = timm.models.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    fields: dict[str, Any] = {"small_stem": False}
    for conv in _first_convolutions(config) or ["conv1"]:
        if len(shape := shapes.get(f"{conv}.weight", ())) == 4:
            fields["channels"] = shape[1]
            break
    if config is not None:
        fields["image_size"] = config.input_size[-1]
        if timm_normalization and fields.get("channels", 3) == 3:
            fields |= {"mean": tuple(config.mean), "std": tuple(config.std)}
    stem = shapes.get("conv1.weight", ())
    module = timm.models.model_entrypoint(backbone).__module__ if timm.is_model(backbone) else ""
    if module == "timm.models.resnet" and len(stem) == 4 and stem[-1] == 3:
        fields |= {"small_stem": True, "image_size": 32}
    patch_embed, pos_embed = shapes.get("patch_embed.proj.weight", ()), shapes.get("pos_embed", ())
    if module == "timm.models.vision_transformer" and len(patch_embed) == 4 and len(pos_embed) == 3:
        # up to two extra tokens (class, distillation) do not change the integer square root
        patch, grid = patch_embed[-1], math.isqrt(pos_embed[1])
        fields["image_size"] = grid * patch
        if f"patch{patch}_" not in backbone:
            fields["options"] = {"patch_size": patch}
    return fields


def _compare(shapes: Shapes, fields: dict[str, Any], user_chose: bool, prune: bool) -> ArchitectureMatch:
    """Compare a checkpoint's shapes with the architecture that create_encoder builds from ``fields``.

    Raises:
        _ShapeMismatchError: with ``prune``, more parameters than ``MAX_MISMATCHES`` differ.
    """
    with _WithoutWeights(frozenset(shapes.values()) if prune else None):
        backbone = create_encoder(**fields).backbone
        expected = {key: tuple(tensor.shape) for key, tensor in backbone.state_dict().items()}
    differing = (key for key, shape in expected.items() if shapes.get(key) != shape)
    missing = [key for key in differing if not key.endswith(COMPUTED_BUFFERS)]
    modules = {_top_module(key) for key in expected}
    config = getattr(backbone, "pretrained_cfg", None) or {}
    classifiers = config.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)

    def is_head(key: str) -> bool:
        # if the user chose the architecture, every module that it does not have counts as a head
        return (
            key.split(".")[0] in HEAD_MODULES
            or key.startswith(tuple(f"{classifier}." for classifier in classifiers))
            or (user_chose and _top_module(key) not in modules)
        )

    unexpected = [
        key for key in shapes if key not in expected and not key.endswith(COMPUTED_BUFFERS) and not is_head(key)
    ]
    matched = sum(shapes.get(key) == shape for key, shape in expected.items())
    return ArchitectureMatch(fields, matched, tuple(missing), tuple(unexpected))


def _top_module(key: str) -> str:
    """Return the key's first component without digits: layer for layer1.0.conv1.weight."""
    return re.sub(r"\d+", "", key.split(".")[0])


def _candidates(shapes: Shapes, prefix: str) -> Iterator[str]:
    """Yield timm's architectures whose first convolution is in the checkpoint, or is not recorded by timm."""
    for name in timm.list_models(f"{prefix}*"):
        convolutions = _first_convolutions(timm.models.get_pretrained_cfg(name))
        if not convolutions or any(f"{conv}.weight" in shapes for conv in convolutions):
            yield name


def _first_convolutions(config: Any) -> list[str]:
    names = getattr(config, "first_conv", None) or []
    return [names] if isinstance(names, str) else list(names)


class _ShapeMismatchError(Exception):
    pass


class _WithoutWeights(TorchFunctionMode):
    """Build modules on the meta device: keys and shapes only, no allocation and no initialization.

    With ``allowed_shapes``, construction raises _ShapeMismatchError once more than MAX_MISMATCHES parameters have
    shapes that the checkpoint does not contain, so that trying all timm architectures takes seconds. The limit is not
    zero because some architectures create a few parameters (up to 4, in timm 1.0.31) that they discard.
    """

    MAX_MISMATCHES = 8

    def __init__(self, allowed_shapes: frozenset[tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.allowed_shapes = allowed_shapes
        self.mismatches = 0
        self.thread = threading.get_ident()

    def __enter__(self) -> Any:
        self.hook = register_module_parameter_registration_hook(self._check_shape)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self.hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _check_shape(self, module: Any, name: str, parameter: Any) -> None:
        # the hook is global: other threads may build modules at the same time
        if self.allowed_shapes is not None and parameter is not None and threading.get_ident() == self.thread:
            self.mismatches += tuple(parameter.shape) not in self.allowed_shapes
            if self.mismatches > self.MAX_MISMATCHES:
                raise _ShapeMismatchError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is torch.empty:  # weights are allocated with it; constructors compute with the other tensors
            kwargs["device"] = "meta"
        if name.endswith("_") and not name.endswith("__"):  # in-place initialization
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, Tensor):
                return target
        return func(*args, **kwargs)
