"""Checkpoint formats of other projects: how to recognize one, where its backbone is, and timm's names of its tensors.

tests/models/test_foreign_checkpoints.py and test_libraries.py name the published source file of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

StateDict = dict[str, Tensor]
KeyMap = tuple[tuple[str, str], ...]
"""Pairs of a part of timm's keys and the same part in another library, replaced in order; ^ is the start of a key."""
# detectron2 numbers the stages as the ResNet paper does, and makes each norm a child of its convolution
DETECTRON2: KeyMap = (
    ("^fc.", "^stem.fc."),  # the conversion scripts prefix every key outside the stages with "stem."
    ("^bn1.", "^stem.conv1.norm."),
    ("^conv1.", "^stem.conv1."),
    *((f"^layer{n}.", f"^res{n + 1}.") for n in (1, 2, 3, 4)),
    *((f".bn{n}.", f".conv{n}.norm.") for n in (1, 2, 3)),
    (".downsample.1.", ".shortcut.norm."),
    (".downsample.0.", ".shortcut."),
)
TORCHVISION_VIT: KeyMap = (  # torchvision's ResNets have timm's keys
    ("^cls_token", "^class_token"),
    ("^pos_embed", "^encoder.pos_embedding"),
    ("^patch_embed.proj.", "^conv_proj."),
    ("^norm.", "^encoder.ln."),
    ("^blocks.", "^encoder.layers.encoder_layer_"),
    *((f".norm{n}.", f".ln_{n}.") for n in (1, 2)),
    (".attn.qkv.", ".self_attention.in_proj_"),  # query, key and value in one matrix, in the same order
    (".attn.proj.", ".self_attention.out_proj."),
    (".mlp.fc1.", ".mlp.0."),
    (".mlp.fc2.", ".mlp.3."),
    (".mlp.fc1.", ".mlp.linear_1."),  # of older versions
    (".mlp.fc2.", ".mlp.linear_2."),
)
EFFICIENTNET_PYTORCH: KeyMap = (
    ("^conv_stem.", "^_conv_stem."), ("^conv_head.", "^_conv_head."), ("^bn1.", "^_bn0."), ("^bn2.", "^_bn1."),
    ("^classifier.", "^_fc."), (".se.conv_reduce.", "._se_reduce."), (".se.conv_expand.", "._se_expand."),
    (".conv_dw.", "._depthwise_conv."),
)  # fmt: skip
# its two kinds of blocks, by the names of timm's classes
INVERTED_RESIDUAL: KeyMap = (
    (".conv_pw.", "._expand_conv."), (".conv_pwl.", "._project_conv."),
    *((f".bn{n}.", f"._bn{n - 1}.") for n in (1, 2, 3)),
)  # fmt: skip
DEPTHWISE_SEPARABLE: KeyMap = ((".conv_pw.", "._project_conv."), *((f".bn{n}.", f"._bn{n}.") for n in (1, 2)))


def rename_key(key: str, key_map: KeyMap, to_timm: bool = False) -> str:
    """Return another library's name of a tensor of timm, or timm's of another library's."""
    for pair in key_map:
        old, new = reversed(pair) if to_timm else pair
        if not old.startswith("^"):
            key = key.replace(old, new)
        elif key.startswith(old[1:]):
            key = new[1:] + key.removeprefix(old[1:])
    return key


def _to_timm(key_map: KeyMap) -> Callable[[StateDict], StateDict]:
    return lambda state_dict: {rename_key(key, key_map, to_timm=True): tensor for key, tensor in state_dict.items()}


def _from_lightly(state_dict: StateDict) -> StateDict:
    """Rename keys of a vision transformer under "vit.", or of a ResNet in nn.Sequential."""
    if all(key.startswith("vit.") for key in state_dict):
        return {key.removeprefix("vit."): tensor for key, tensor in state_dict.items()}
    # torchvision's last stage is child 7, after an activation and a max-pool without tensors; lightly's own is child 5
    before_stages = 3 if any(key.startswith("7.") for key in state_dict) else 1
    stages = ((f"^layer{n}.", f"^{n + before_stages}.") for n in (1, 2, 3, 4))
    return _to_timm((("^conv1.", "^0."), ("^bn1.", "^1."), *stages, (".downsample.", ".shortcut.")))(state_dict)


def _from_efficientnet_pytorch(state_dict: StateDict) -> StateDict:
    """Rename keys; blocks are numbered over all stages, and timm starts a stage where the output channels change."""
    renamed, stage, block, width = {}, -1, 0, 0
    prefixes: dict[str, tuple[str, KeyMap]] = {}
    for number in range(sum(key.endswith("._project_conv.weight") for key in state_dict)):
        channels = len(state_dict[f"_blocks.{number}._project_conv.weight"])
        stage, block = (stage, block + 1) if channels == width else (stage + 1, 0)
        has_expansion = f"_blocks.{number}._expand_conv.weight" in state_dict
        block_map = INVERTED_RESIDUAL if has_expansion else DEPTHWISE_SEPARABLE
        prefixes[f"_blocks.{number}"], width = (f"blocks.{stage}.{block}", block_map), channels
    for key, tensor in state_dict.items():
        old_prefix = ".".join(key.split(".")[:2])
        prefix, block_map = prefixes.get(old_prefix, (old_prefix, ()))
        key = prefix + key.removeprefix(old_prefix)
        renamed[rename_key(key, block_map + EFFICIENTNET_PYTORCH, to_timm=True)] = tensor
    return renamed


@dataclass(frozen=True)
class Format:
    """The checkpoint format of a project. ``name`` and ``branch_names``, of student and teacher, are for messages."""

    name: str
    signature_keys: tuple[str, ...]  # expressions that each match at least one key, once wrapper prefixes are removed
    student_prefix: str = ""  # of the trained backbone's keys
    teacher_prefix: str | None = None  # of the averaged backbone's keys; None if the format has no teacher
    branch_names: tuple[str, str] = ("student", "teacher")
    rename_keys: Callable[[StateDict], StateDict] = dict  # to timm's
    generic: bool = False  # many projects write this format, so conventions are inferred from the architecture

    def matches(self, state_dict: StateDict) -> bool:
        return all(any(re.search(pattern, key) for key in state_dict) for pattern in self.signature_keys)


MEC_BACKBONE_PREFIX = "network.encoder.backbone."
MOCO_BRANCHES, MOMENTUM_BRANCHES = ("query encoder", "key encoder"), ("backbone", "momentum backbone")
LIGHTLY, SOLO_LEARN = "lightly checkpoint", "solo-learn checkpoint"
LIGHTLY_DINO = ("student_backbone.", "teacher_backbone.")
# the first format that matches is used; special cases of a format precede it
FORMATS = (
    Format(
        "mec-ssl checkpoint", (r"^network\.encoder\.backbone\.",), MEC_BACKBONE_PREFIX, "network.teacher.0.backbone."
    ),
    Format(
        "checkpoint of the paper's code", (r"^encoder\.fc\.", r"^predictor\.", r"^teacher\."), "encoder.", "teacher."
    ),
    Format("SimSiam checkpoint", (r"^encoder\.fc\.", r"^predictor\."), "encoder."),
    Format(
        "MoCo v3 checkpoint", (r"^base_encoder\.",), "base_encoder.", "momentum_encoder.",
        ("base encoder", "momentum encoder"),
    ),
    Format("MoCo v2 checkpoint", (r"^encoder_q\.fc\.0\.",), "encoder_q.", "encoder_k.", MOCO_BRANCHES),
    Format("MoCo v1 checkpoint", (r"^encoder_q\.",), "encoder_q.", "encoder_k.", MOCO_BRANCHES),
    Format(LIGHTLY, (r"^backbone\.(0|vit)\.",), "backbone.", "backbone_momentum.", MOMENTUM_BRANCHES, _from_lightly),
    Format(LIGHTLY, (r"^student_backbone\.(0|vit)\.",), *LIGHTLY_DINO, rename_keys=_from_lightly),
    Format(LIGHTLY, (r"^student_backbone\.",), *LIGHTLY_DINO),
    Format(SOLO_LEARN, (r"^backbone\.", r"^classifier\."), "backbone.", "momentum_backbone.", MOMENTUM_BRANCHES),
    Format(SOLO_LEARN, (r"^encoder\.", r"^classifier\."), "encoder.", "momentum_encoder.", MOMENTUM_BRANCHES),
    Format("backbone weights", (r"^backbone\.", r"^classifier\."), "backbone.", generic=True),
    Format("DINO checkpoint", (r"^backbone\.", r"^head\.last_layer\."), "backbone."),
    Format("Barlow Twins checkpoint", (r"^backbone\.", r"^projector\.", r"^bn\."), "backbone."),
    Format("VICReg checkpoint", (r"^backbone\.", r"^projector\."), "backbone."),
    Format("SwAV checkpoint", (r"^projection_head\.", r"^prototypes")),
    Format("detectron2 weights", (r"^stem\.conv1\.norm\.",), rename_keys=_to_timm(DETECTRON2)),
    Format("torchvision weights", (r"^conv_proj\.", r"^class_token$"), rename_keys=_to_timm(TORCHVISION_VIT)),
    Format("EfficientNet-PyTorch weights", (r"^_conv_stem\.",), rename_keys=_from_efficientnet_pytorch, generic=True),
    Format("backbone weights", (r"^backbone\.",), "backbone.", generic=True),
    Format("student and teacher", (r"^student\.backbone\.",), "student.backbone.", "teacher.backbone.", generic=True),
    Format("model weights", (r"^model\.(conv1|patch_embed|conv_stem|stem)\b",), "model.", generic=True),
    Format("encoder weights", (r"^encoder\.(conv1|patch_embed|conv_stem|stem)\b",), "encoder.", generic=True),
    Format("torchvision or timm weights", (), generic=True),
)  # fmt: skip
