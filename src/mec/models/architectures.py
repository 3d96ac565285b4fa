"""The timm architecture that a set of tensors fills to the last one.

Names and shapes are compared, all of them, with those of architectures built without memory: first the few that nearly
every checkpoint has, then all that timm knows.
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

# what stands on a backbone, by the first part of its tensors' names
HEADS = frozenset(
    "fc head heads head_dist classifier linear last_linear logits projector projection_head projection prototypes "
    "predictor prediction_head queue queue_ptr mask_token n_averaged".split()
)
COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask", "relative_coords_table")
"""Buffers that some versions of a library save and others compute."""
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
VITS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


@dataclass
class Guess:
    """What create_encoder needs, as far as it is known.

    fields: its arguments.
    note: what was assumed, for people.
    own_colors: whether the architecture's own mean and standard deviation hold, for want of a project's.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    own_colors: bool = False


@dataclass(frozen=True)
class Fit:
    """How tensors and an architecture compare.

    fields: create_encoder's arguments that build it.
    matched: its tensors that are filled.
    unfilled: those that are not.
    over: tensors that neither it nor a head has.
    """

    fields: dict[str, Any]
    matched: int
    unfilled: tuple[str, ...]
    over: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.unfilled and not self.over

    def reason(self) -> str:
        name = self.fields["backbone"]
        if self.unfilled:
            of = self.matched + len(self.unfilled)
            return (
                f"{name} would be left with {len(self.unfilled)} of its {of} tensors unfilled, first {self.unfilled[0]}"
            )
        return f"{name} has no place for {len(self.over)} of them, first {self.over[0]}"


def find_architecture(
    weights: Mapping[str, Tensor],
    guess: Guess,
    fields: Mapping[str, Any],
    source: str,
    hint: str | None = None,
    family: str = "",
) -> tuple[dict[str, Any], int]:
    """The arguments of create_encoder for the architecture that the tensors fill, and how many fill it.

    Args:
        weights: the tensors of a backbone, by timm's names; a head's may be among them.
        guess: what the project that wrote them says.
        fields: what the user says; a ``backbone`` here is the only one that is tried.
        source: what the user called the file, for errors.
        hint: an architecture that the checkpoint names; it is tried before others.
        family: what the architecture's name begins with.

    Raises:
        InputError: none is filled, or several are.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}

    common = tuple(_common(shapes))

    def tried(backbone: str, options: Mapping[str, Any], prune: bool = False) -> Fit:
        # the usual architectures were trained in many ways, none of them timm's own; the others as timm says
        own_colors = guess.own_colors and backbone not in (name for name, _ in common)
        read = _read_off(backbone, shapes, own_colors)
        options = dict(options)
        for said in (read, guess.fields, fields):
            options |= said.get("options", {})
        known = {"backbone": backbone, **read, **guess.fields, **fields, "options": options}
        return _compare(shapes, known, "backbone" in fields, prune)

    if "backbone" in fields:
        fits = [tried(fields["backbone"], {})]
    else:
        fits = []
        hinted: tuple[tuple[str, dict[str, Any]], ...] = ((hint, {}),) if hint and timm.is_model(hint) else ()
        for backbone, options in (*hinted, *common):
            fits.append(tried(backbone, options))
            if fits[-1].whole:
                break
        if not any(fit.whole for fit in fits):
            for backbone in _alike(shapes, family):
                # one that this version of timm cannot build for such images is none of the file's either
                with contextlib.suppress(Exception):
                    fits.append(tried(backbone, {}, prune=True))
    whole = [fit for fit in fits if fit.whole]
    if len(whole) == 1:
        return whole[0].fields, whole[0].matched
    if whole:
        several = ", ".join(fit.fields["backbone"] for fit in whole[:4])
        more = f" and {len(whole) - 4} more" if len(whole) > 4 else ""
        raise InputError(
            f"encoder: {source} fits {several}{more}; say which: backbone=..., or in a .json beside the file"
        )
    if not fits:
        raise InputError(
            f"encoder: {source} fits no timm architecture; its {len(shapes)} tensors begin with {next(iter(shapes))}"
        )
    nearest = min(fits, key=lambda fit: len(fit.unfilled) + len(fit.over))
    which = "" if "backbone" in fields else " fits no timm architecture; the nearest,"
    raise InputError(f"encoder: {source}{which or ':'} {nearest.reason()}")


def _common(shapes: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """What nearly every checkpoint is: torchvision's ResNets, and vision transformers with a class token."""
    if "layer1.0.conv1.weight" in shapes and len(shapes.get("conv1.weight", ())) == 4:
        yield from RESNETS
    if {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"} <= shapes.keys():
        width = shapes["pos_embed"][-1]
        patch = shapes.get("patch_embed.proj.weight", (0,))[-1]
        if width in VITS:
            name = f"vit_{VITS[width]}_patch{patch}_224"
            yield (name if timm.is_model(name) else f"vit_{VITS[width]}_patch{14 if width == 1280 else 16}_224"), {}


def _read_off(backbone: str, shapes: Shapes, own_colors: bool) -> dict[str, Any]:
    """What the shapes say of the images, or else what timm's description of the architecture does."""
    published = timm.models.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    known: dict[str, Any] = {"small_stem": False}
    for first in _first_convolutions(published) or ["conv1"]:
        if len(shape := shapes.get(f"{first}.weight", ())) == 4:
            known["channels"] = shape[1]
            break
    if published is not None:
        known["image_size"] = published.input_size[-1]
        if own_colors and known.get("channels", 3) == 3:
            known |= {"mean": tuple(published.mean), "std": tuple(published.std)}
    stem = shapes.get("conv1.weight", ())
    kind = timm.models.model_entrypoint(backbone).__module__ if timm.is_model(backbone) else ""
    if kind == "timm.models.resnet" and len(stem) == 4 and stem[-1] == 3:
        known |= {"small_stem": True, "image_size": 32}
    patches, positions = shapes.get("patch_embed.proj.weight", ()), shapes.get("pos_embed", ())
    if kind == "timm.models.vision_transformer" and len(patches) == 4 and len(positions) == 3:
        patch, side = patches[-1], math.isqrt(positions[1])  # a class token or two do not change the root
        known["image_size"] = side * patch
        if f"patch{patch}_" not in backbone:
            known["options"] = {"patch_size": patch}
    return known


def _compare(shapes: Shapes, fields: dict[str, Any], named: bool, prune: bool) -> Fit:
    with _Skeleton(frozenset(shapes.values()) if prune else None):
        backbone = create_encoder(**fields).backbone
        wanted = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    computed = {name for name in wanted if name.endswith(COMPUTED)}
    unfilled = [name for name, shape in wanted.items() if shapes.get(name) != shape and name not in computed]
    stems = {_stem(name) for name in wanted}
    published = getattr(backbone, "pretrained_cfg", None) or {}
    classifiers = published.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)

    def is_head(name: str) -> bool:
        # where the user says what it is, all that is not of the backbone's own modules is set aside
        return (
            name.split(".")[0] in HEADS
            or name.startswith(tuple(f"{classifier}." for classifier in classifiers))
            or (named and _stem(name) not in stems)
        )

    over = [name for name in shapes if name not in wanted and not name.endswith(COMPUTED) and not is_head(name)]
    matched = sum(shapes.get(name) == shape for name, shape in wanted.items())
    return Fit(fields, matched, tuple(unfilled), tuple(over))


def _stem(name: str) -> str:
    return re.sub(r"\d+", "", name.split(".")[0])


def _alike(shapes: Shapes, family: str) -> Iterator[str]:
    """timm's architectures whose first convolution is called as one of these tensors."""
    for name in timm.list_models(f"{family}*"):
        first = _first_convolutions(timm.models.get_pretrained_cfg(name))
        if not first or any(f"{convolution}.weight" in shapes for convolution in first):
            yield name


def _first_convolutions(published: Any) -> list[str]:
    first = getattr(published, "first_conv", None) or []
    return [first] if isinstance(first, str) else list(first)


class _OtherShapesError(Exception):
    pass


class _Skeleton(TorchFunctionMode):
    """Modules built in this are names and shapes: their weights have no memory, and none are drawn.

    Where ``allowed`` shapes are given, building ends when some parameters have had others, so that trying the thousand
    architectures of timm takes seconds. Not with the first: some architectures make a few (up to 4, in timm 1.0.31)
    that they then put aside.
    """

    PUT_ASIDE = 8

    def __init__(self, allowed: frozenset[tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.allowed = allowed
        self.others = 0
        self.thread = threading.get_ident()

    def __enter__(self) -> Any:
        self.hook = register_module_parameter_registration_hook(self._look)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self.hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _look(self, module: Any, name: str, parameter: Any) -> None:
        # the hook is for all modules, whoever builds them
        if self.allowed is not None and parameter is not None and threading.get_ident() == self.thread:
            self.others += tuple(parameter.shape) not in self.allowed
            if self.others > self.PUT_ASIDE:
                raise _OtherShapesError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is torch.empty:  # weights; what is computed with while building stays as it is
            kwargs["device"] = "meta"
        if name.endswith("_") and not name.endswith("__"):
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, Tensor):
                return target
        return func(*args, **kwargs)
