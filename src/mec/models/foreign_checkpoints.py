"""Recognizing a checkpoint that others wrote: whose it is, which of its tensors are the backbone, what architecture.

The projects' names were read in their published code; tests/models/test_foreign_checkpoints.py and test_libraries.py
name the file of each.
Where a file does not say how its images were normalized, and its project has no rule, ImageNet's mean and standard
deviation are taken for ResNets and vision transformers of the usual kinds, and timm's for other architectures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mec.errors import InputError
from mec.models import key_maps
from mec.models.architectures import Guess, find_architecture
from mec.models.encoder import Encoder, create_encoder

Weights = dict[str, Tensor]

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BRANCHES = ("student", "teacher")
MEC_BACKBONE_PREFIX = "network.encoder.backbone."
# where a checkpoint keeps its tensors: the trained network, and the averaged one beside it
CONTAINERS = (
    ("student", "teacher"),
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("model_state_dict", "model_ema_state_dict"),
)


def _same(weights: Weights) -> Weights:
    return weights


def _by(renames: key_maps.Renames) -> Callable[[Weights], Weights]:
    return lambda weights: {key_maps.renamed(name, renames): tensor for name, tensor in weights.items()}


def _from_lightly(weights: Weights) -> Weights:
    if all(name.startswith("vit.") for name in weights):
        return {name.removeprefix("vit."): tensor for name, tensor in weights.items()}
    # torchvision's ends at 7, after an activation and a pooling that hold no tensors; lightly's own ends at 5
    own = not any(name.startswith("7.") for name in weights)
    return _by(key_maps.FROM_LIGHTLY if own else key_maps.FROM_SEQUENTIAL)(weights)


def _from_efficientnet_pytorch(weights: Weights) -> Weights:
    """Blocks are numbered through; a stage of timm's ends where the number of channels changes."""
    stages: dict[int, tuple[int, int]] = {}
    stage, block, width = -1, 0, 0
    for number in range(sum(name.endswith("._project_conv.weight") for name in weights)):
        channels = len(weights[f"_blocks.{number}._project_conv.weight"])
        stage, block = (stage, block + 1) if channels == width else (stage + 1, 0)
        stages[number], width = (stage, block), channels
    found = {}
    for name, tensor in weights.items():
        if match := re.match(r"_blocks\.(\d+)\.(.*)", name):
            stage, block = stages[int(match[1])]
            expands = f"_blocks.{match[1]}._expand_conv.weight" in weights
            name = f"blocks.{stage}.{block}.{match[2]}"
            name = key_maps.renamed(name, key_maps.EXPANDING if expands else key_maps.NOT_EXPANDING)
            name = name if expands else re.sub(r"\._bn(\d)\.", r".bn\1.", name)
        found[key_maps.renamed(name, key_maps.FROM_EFFICIENTNET_PYTORCH)] = tensor
    return found


@dataclass(frozen=True)
class Layout:
    """How a project writes its checkpoints.

    project: what it is called, for people.
    marks: regular expressions; every one is found in some name, once wrappers are gone.
    student, teacher: what the names of the two backbones begin with; None where there is no such part.
    words: what the project calls its parts.
    rename: from its names within a backbone to timm's.
    family: what the architecture's name begins with, where the layout tells.
    shared: by many projects, so that the architecture alone says how its images were normalized.
    """

    project: str
    marks: tuple[str, ...]
    student: str = ""
    teacher: str | None = None
    words: tuple[str, str] = BRANCHES
    rename: Callable[[Weights], Weights] = _same
    family: str = ""
    shared: bool = False

    def prefix(self, part: str) -> str | None:
        return self.student if part == "student" else self.teacher


QUERY_KEY = ("query encoder", "key encoder")
MOMENTUM = ("backbone", "momentum backbone")
# the first whose marks are all there; where others could be mistaken for it, it comes later
LAYOUTS = (
    Layout("mec checkpoint", (r"^network\.encoder\.backbone\.",), MEC_BACKBONE_PREFIX, "network.teacher.0.backbone."),
    Layout("MEC checkpoint", (r"^encoder\.fc\.", r"^predictor\.", r"^teacher\."), "encoder.", "teacher."),
    Layout("SimSiam checkpoint", (r"^encoder\.fc\.", r"^predictor\."), "encoder."),
    Layout(
        "MoCo v3 checkpoint",
        (r"^base_encoder\.",),
        "base_encoder.",
        "momentum_encoder.",
        ("base encoder", "momentum encoder"),
    ),
    Layout("MoCo v2 checkpoint", (r"^encoder_q\.fc\.0\.",), "encoder_q.", "encoder_k.", QUERY_KEY),
    Layout("MoCo v1 checkpoint", (r"^encoder_q\.",), "encoder_q.", "encoder_k.", QUERY_KEY),
    Layout(
        "lightly checkpoint", (r"^backbone\.(0|vit)\.",), "backbone.", "backbone_momentum.", MOMENTUM, _from_lightly
    ),
    Layout(
        "lightly checkpoint",
        (r"^student_backbone\.(0|vit)\.",),
        "student_backbone.",
        "teacher_backbone.",
        BRANCHES,
        _from_lightly,
    ),
    Layout("lightly checkpoint", (r"^student_backbone\.",), "student_backbone.", "teacher_backbone."),
    Layout("solo-learn checkpoint", (r"^backbone\.", r"^classifier\."), "backbone.", "momentum_backbone.", MOMENTUM),
    Layout("solo-learn checkpoint", (r"^encoder\.", r"^classifier\."), "encoder.", "momentum_encoder.", MOMENTUM),
    Layout("DINO checkpoint", (r"^backbone\.", r"^head\.last_layer\."), "backbone."),
    Layout("Barlow Twins checkpoint", (r"^backbone\.", r"^projector\.", r"^bn\."), "backbone."),
    Layout("VICReg checkpoint", (r"^backbone\.", r"^projector\."), "backbone."),
    Layout("SwAV checkpoint", (r"^projection_head\.", r"^prototypes"), ""),
    Layout("detectron2 weights", (r"^stem\.conv1\.norm\.",), "", rename=_by(key_maps.FROM_DETECTRON2)),
    Layout("torchvision weights", (r"^conv_proj\.", r"^class_token$"), "", rename=_by(key_maps.FROM_TORCHVISION_VIT)),
    # its convolutions pad as TensorFlow's do, as those of timm's tf_ models
    Layout(
        "EfficientNet-PyTorch weights",
        (r"^_conv_stem\.",),
        rename=_from_efficientnet_pytorch,
        family="tf_",
        shared=True,
    ),
    Layout("weights of a backbone", (r"^backbone\.",), "backbone.", shared=True),
    Layout("weights of an encoder", (r"^encoder\.(conv1|patch_embed|conv_stem|stem)\b",), "encoder.", shared=True),
    Layout("torchvision or timm weights", (), "", shared=True),
)


def encoder_from_checkpoint(
    content: Mapping[Any, Any], source: str, part: str | None, fields: Mapping[str, Any], called: str = ""
) -> Encoder:
    """The encoder in a checkpoint, in evaluation mode; its ``origin`` says what was recognized.

    Args:
        content: what read_weights gave.
        source: what the user called it, for errors.
        part: "student" or "teacher"; None takes the one that the project itself evaluates.
        fields: EncoderSpec's that are known already and overrule what would be recognized.
        called: what the origin calls it, for want of a project.

    Raises:
        InputError: no tensors, no such part, no architecture that they fill to the last one, several that they fill,
            or values that are not numbers.
    """
    state, part, chosen = _choose(content, source, part)
    layout = next(layout for layout in LAYOUTS if all(any(map(re.compile(m).search, state)) for m in layout.marks))
    part = part if chosen is None else None
    prefix = layout.prefix(part or "student")
    if prefix is None or not any(name.startswith(prefix) for name in state):
        there = [p for p in BRANCHES if (q := layout.prefix(p)) is not None and any(n.startswith(q) for n in state)]
        raise InputError(f"encoder: {source} holds no {part}; this {layout.project} has the {' and the '.join(there)}")
    weights = layout.rename({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
    guess = _conventions(layout, weights)
    hint = content.get("arch")
    named = hint if isinstance(hint, str) else None
    found, matched = find_architecture(weights, guess, fields, source, named, layout.family)
    encoder = create_encoder(**found)
    _fill(encoder, weights, source)
    elsewhere = tuple(other for other in (layout.student, layout.teacher) if other and other != prefix)
    left = sum(not name.startswith(elsewhere) for name in state) - matched
    words = chosen or (layout.words[BRANCHES.index(part or "student")] if layout.teacher else "")
    encoder.origin = "".join(
        (
            called or layout.project,
            f", {words}" if words else "",
            f": {encoder.spec.backbone}, {matched} of {matched} tensors matched",
            f", {left} of heads left out" if left else "",
            f"; {guess.note}" if guess.note else "",
        )
    )
    return encoder.eval()


def _choose(content: Mapping[Any, Any], source: str, part: str | None) -> tuple[Weights, str | None, str | None]:
    """The state dict that holds the part; the part that is yet to be found in it; and the part that it is itself."""
    for student, teacher in CONTAINERS:
        pair = {p: _tensors(content.get(key)) for p, key in zip(BRANCHES, (student, teacher), strict=True)}
        found = {p: state for p, state in pair.items() if state}
        if len(found) == 2:
            # DINO evaluates its teacher; others, what they have trained
            chosen = part or ("teacher" if teacher == "teacher" else "student")
            return found[chosen], None, chosen
        if found:
            ((only, state),) = found.items()
            return (state, None, only) if only == part == "teacher" else (state, part, None)
    if state := _tensors(content):
        return state, part, None
    keys = ", ".join(map(str, list(content)[:5]))
    raise InputError(f"encoder: {source} holds no tensors where checkpoints keep them (it has {keys or 'nothing'})")


def _tensors(state: Any) -> Weights:
    """Name -> tensor, without what data-parallel training and compilation put before the key_maps."""
    if not isinstance(state, Mapping):
        return {}
    found: Weights = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.array(value))
        if isinstance(name, str) and isinstance(value, Tensor):
            found[re.sub(r"(^|\.)_orig_mod\.", r"\1", name).removeprefix("module.")] = value
    for wrapper in ("model.", "module."):
        if found and all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): value for name, value in found.items()}
    return found


def _conventions(layout: Layout, weights: Weights) -> Guess:
    """What a project does alike in all its checkpoints, and the tensors' shapes do not show."""
    fields: dict[str, Any] = {}
    note = ""
    first = weights.get("conv1.weight")
    if layout.project.startswith("solo-learn") and first is not None and first.shape[-1] == 3:
        # its stem for CIFAR; CIFAR-100's images have nearly the same mean, and nothing tells which it was
        fields = {"stem_padding": 2, "mean": CIFAR10_MEAN, "std": CIFAR10_STD}
        note = "CIFAR-10's mean and standard deviation"
    positions = weights.get("pos_embed")
    is_vit = (
        positions is not None and positions.ndim == 3 and {"cls_token", "blocks.0.attn.qkv.weight"} <= weights.keys()
    )
    if positions is not None and is_vit and not layout.project.startswith("lightly"):
        # MoCo v3's fixed positions, 0 at the class token; its ViTs have 12 heads at every width up to 768
        fixed = bool((positions[0, 0] == 0).all())
        if fixed and positions.shape[-1] < 768:
            fields["options"] = {"num_heads": 12}
            note = "12 heads as in MoCo v3"
    return Guess(fields, note, own_colors=layout.shared)


def _fill(encoder: Encoder, weights: Weights, source: str) -> None:
    wanted = encoder.backbone.state_dict()
    for name in wanted.keys() & weights.keys():
        tensor = weights[name]
        if not bool(torch.isfinite(tensor.float()).all()):
            raise InputError(f"encoder: {source} has values in {name} that are not finite numbers")
        wanted[name] = tensor.to(wanted[name].dtype)
    encoder.backbone.load_state_dict(wanted)
