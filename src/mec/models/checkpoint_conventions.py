"""Conventions of a project that weights do not show: image size, normalization, stem, heads, dilation.

They come from the settings that the project stores, in the checkpoint or next to it. The rest is assumed, and stated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm

from mec.models.checkpoint_formats import Format, StateDict
from mec.models.encoder import IMAGENET_MEAN, IMAGENET_STD, SMALL_IMAGE, Encoder, timm_module

SOLO_LEARN_NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
}
LOOKALIKES = {"resnet18": ("resnetblur18",), "resnet50": ("resnetaa50", "resnetblur50")}
"""ResNet -> architectures of timm that have the same tensors and give other features."""
MEAN_STD = "mean and standard deviation"
CROP_PCT = 0.875
"""Fraction of the shorter side that evaluations crop of images from SMALL_IMAGE pixels."""


class Guess(NamedTuple):
    """Arguments of create_encoder, and their description; not ``assumed``: the project stored them."""

    fields: dict[str, Any]
    description: str
    assumed: bool = True


@dataclass(frozen=True)
class Evidence:
    """A checkpoint, its state dict, and the part that holds the backbone, with timm's keys.

    ``solo_learn`` are the settings of a checkpoint of solo-learn, None for other projects.
    """

    content: Mapping[Any, Any]
    state_dict: StateDict
    weights: StateDict
    format: Format
    solo_learn: Mapping[str, Any] | None

    @property
    def arch(self) -> Any:
        """Architecture that the checkpoint names; not always one of timm."""
        return self.content.get("arch")

    def setting(self, name: str) -> Any:
        """Return one of the arguments of the training, such as timm's train.py stores, or None."""
        arguments = self.content.get("args")
        return arguments.get(name) if isinstance(arguments, Mapping) else getattr(arguments, name, None)


def solo_learn_settings(content: Mapping[Any, Any], state_dict: StateDict, source: str) -> dict[str, Any] | None:
    """Return the settings of a checkpoint of solo-learn, {} if none are stored, or None for another project's.

    Many projects have a backbone and a classifier. Signs of solo-learn are its args.json next to the checkpoint, or its
    momentum backbone or its names of the optimizer's parameter groups, each together with its projector.
    """
    try:
        settings = json.loads(Path(source).with_name("args.json").read_bytes())
    except (OSError, ValueError):
        settings = None
    if isinstance(settings, dict) and {"method", "pretrain_method"} & settings.keys() and _solo_learn_dataset(settings):
        return settings
    modules = {key.split(".")[0] for key in state_dict}
    optimizers = content.get("optimizer_states")
    states = [s for s in optimizers if isinstance(s, Mapping)] if isinstance(optimizers, list) else []
    groups = {group.get("name") for state in states for group in state.get("param_groups", ())}
    has_groups = "classifier" in groups and groups & {"backbone", "encoder"}
    has_projector = bool(modules & {"projector", "head", "decoder"})
    return {} if has_projector and (has_groups or modules & {"momentum_backbone", "momentum_projector"}) else None


def _solo_learn_dataset(settings: Mapping[str, Any]) -> str:
    data = settings.get("data")  # versions before its configuration files have no groups
    dataset = (data if isinstance(data, Mapping) else settings).get("dataset")
    return dataset if isinstance(dataset, str) else ""


def guess_fields(
    backbone: str, inferred: Mapping[str, Any], evidence: Evidence, is_common: bool, user_chose: bool
) -> list[Guess]:
    """Return what weights do not show of an encoder; of two guesses of a field, the later one counts.

    ``inferred`` are the fields that follow from shapes; ``is_common``: it has the shapes of a common
    architecture; ``user_chose``: the user named it.
    """
    is_named = evidence.arch == backbone
    config = timm.models.get_pretrained_cfg(backbone)
    guesses = [_normalization(backbone, inferred.get("channels", 3), evidence, is_named or not is_common)]
    small_stem = bool(inferred["small_stem"])
    if "image_size" not in inferred:
        size = 32 if small_stem else config.input_size[-1] if config else 224
        guesses.insert(0, Guess({"image_size": size}, f"{size} px"))
    if small_stem:
        guesses.append(Guess({"stem_padding": 1}, "a 3x3 stem of stride 1 and padding 1 without max-pool"))
    if evidence.solo_learn is not None:
        guesses += _solo_learn(evidence.solo_learn, small_stem)
    if not is_named:
        guesses += [g for g in _recognized(backbone, evidence) if g.fields["options"] or not user_chose]
    return guesses + _arguments(inferred.get("channels", 3), evidence)


def describe_arch(evidence: Evidence, backbone: str) -> list[str]:
    """Return a note if a checkpoint names another architecture than that which was recognized."""
    if not backbone or not evidence.format.generic or evidence.arch in (None, backbone):
        return []
    reason = "its tensors do not match" if timm.is_model(str(evidence.arch)) else "timm has no such architecture"
    return [f"its arch {evidence.arch} was not used ({reason})"]


def describe_guesses(guesses: Sequence[Guess], encoder: Encoder, overrides: Mapping[str, Any]) -> list[str]:
    """Return a note on the settings that the project stored and one on the assumptions, as far as they count."""
    notes: dict[bool, list[str]] = {False: [], True: []}
    remaining = set(asdict(encoder.spec)) - overrides.keys()
    for fields, description, assumed in reversed(guesses):
        if fields.keys() & remaining:
            notes[assumed].insert(0, description)
            remaining -= fields.keys() - {"options"}
    return [
        f"{verb} {', '.join(notes[assumed])}"
        for assumed, verb in ((False, "stored:"), (True, "assumed"))
        if notes[assumed]
    ]


def _normalization(backbone: str, channels: int, evidence: Evidence, is_named: bool) -> Guess:
    if channels != 3:
        return Guess({"mean": (0.5,) * channels, "std": (0.25,) * channels}, "mean 0.5 and standard deviation 0.25")
    config = timm.models.get_pretrained_cfg(backbone) if evidence.format.generic and is_named else None
    if config:
        mean, std = tuple(config.mean), tuple(config.std)
        is_imagenet = (mean, std) == (IMAGENET_MEAN, IMAGENET_STD)
        values = "ImageNet's" if is_imagenet else f"{_numbers(mean)} and {_numbers(std)}"
        return Guess({"mean": mean, "std": std}, f"{MEAN_STD} of timm's {backbone} ({values})")
    return Guess({"mean": IMAGENET_MEAN, "std": IMAGENET_STD}, f"ImageNet's {MEAN_STD}")


def _solo_learn(settings: Mapping[str, Any], small_stem: bool) -> list[Guess]:
    dataset = _solo_learn_dataset(settings)
    guesses = []
    if small_stem:  # of its ResNets for CIFAR-10 and CIFAR-100
        guesses.append(Guess({"stem_padding": 2}, "a 3x3 stem of stride 1 and padding 2 without max-pool"))
    if small_stem or dataset in SOLO_LEARN_NORMALIZATION:
        # without its settings, CIFAR-10 and CIFAR-100 are not distinguished; their means are nearly equal
        name = dataset if dataset in SOLO_LEARN_NORMALIZATION else "cifar10"
        mean, std = SOLO_LEARN_NORMALIZATION[name]
        guesses.append(Guess({"mean": mean, "std": std}, f"{MEAN_STD} of solo-learn's {name}", name != dataset))
    return guesses


def _recognized(backbone: str, evidence: Evidence) -> list[Guess]:
    """Return what an architecture that was recognized by shapes assumes."""
    weights, pos_embed = evidence.weights, evidence.weights.get("pos_embed")
    if timm_module(backbone) == "resnet":
        # torchvision's FCN and DeepLabV3 dilate the last two stages
        heads = [evidence.state_dict.get(f"classifier.{name}") for name in ("1.running_mean", "4.weight")]
        if heads[1] is not None and heads[1].ndim == 4 and evidence.format.generic:
            return [Guess({"options": {"output_stride": 8}}, "stride 8 as in torchvision's segmentation networks")]
        same = " and ".join(LOOKALIKES.get(backbone, ()))
        note = f" ({same} would match too)" if same else ""
        return [Guess({"options": {}}, f"no dilation and no anti-aliasing{note}")] if evidence.format.generic else []
    if evidence.format.name.startswith("lightly") or pos_embed is None:
        return []
    # MoCo v3 fixes the position embedding, with 0 at the class token; its ViTs have 12 heads up to width 768
    if pos_embed.ndim == 3 and pos_embed.shape[-1] < 768 and bool((weights["pos_embed"][0, 0] == 0).all()):
        return [Guess({"options": {"num_heads": 12}}, "12 heads as in MoCo v3")]
    return [Guess({"options": {}}, f"the number of heads of {backbone}")] if evidence.format.generic else []


def _arguments(channels: int, evidence: Evidence) -> list[Guess]:
    """Return what a training script like timm's was told, from the arguments in its checkpoint."""
    guesses = []
    mean, std = (_per_channel(evidence.setting(name), channels) for name in ("mean", "std"))
    if mean and std:
        guesses.append(Guess({"mean": mean, "std": std}, f"{MEAN_STD} {_numbers(mean)} and {_numbers(std)}", False))
    size, input_size = evidence.setting("img_size"), evidence.setting("input_size")
    size = size or (input_size[-1] if isinstance(input_size, Sequence) and input_size else input_size)
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        guesses.append(Guess({"image_size": size}, f"{size} px", False))
    options = evidence.setting("model_kwargs")
    options = {str(k): v for k, v in options.items()} if isinstance(options, Mapping) else {}
    if isinstance(pool := evidence.setting("gp"), str):
        options["global_pool"] = pool
    if options:
        guesses.append(Guess({"options": options}, ", ".join(f"{k} {v}" for k, v in options.items()), False))
    return guesses


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """Return one number per channel, () if the values are none."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) for value in values):
        return ()
    return tuple(values) * (channels if len(values) == 1 else 1)


def _numbers(values: Sequence[float]) -> str:
    """Format one number for equal values."""
    return " ".join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))


def describe_preprocessing(config: Mapping[str, Any], image_size: int) -> str:
    """Describe how a timm configuration crops and resizes images, where the evaluations here do otherwise."""
    ours = {
        "crop_pct": CROP_PCT if image_size >= SMALL_IMAGE else 1.0,
        "crop_mode": "center",
        "interpolation": "bilinear",
    }
    theirs = {name: config[name] for name in ours if config.get(name) not in (None, "", ours[name])}
    if not theirs:
        return ""
    different = ", ".join(f"{name} {value}" for name, value in theirs.items())
    return f"{different}; evaluations here, and exports, use {', '.join(f'{name} {ours[name]}' for name in theirs)}"
