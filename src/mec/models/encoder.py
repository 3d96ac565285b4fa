"""Encoders: any timm architecture, with the images' normalization and, for small images, a small stem."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mec.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_IMAGE = 96
"""Below this many pixels a stride-4 stem leaves too little to see (7x7 cells at 28 px become 1x1)."""


@dataclass(frozen=True)
class EncoderSpec:
    """All that is needed, beside the weights, to build an encoder again; stored as encoder.json.

    Attributes:
        backbone: name of a timm architecture.
        image_size: side in pixels of the square images it was made for.
        channels: channels of an image.
        small_stem: 3x3 stride-1 stem without max-pool (ResNets), small patches (vision transformers).
        mean: per channel, of images in [0, 1].
        std: likewise.
        options: further arguments of the architecture, as ``timm.create_model`` takes them.
        value_range: what is 0 and 1 in images of more than 8 bits; None where all have 8.
        background: color behind transparent images.
        stem_padding: of the small stem's convolution; 1 keeps the size, and others have trained with 2.
    """

    backbone: str
    image_size: int
    channels: int
    small_stem: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)
    value_range: tuple[float, float] | None = None
    background: str = "white"
    stem_padding: int = 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Encoder(nn.Module):
    """A timm backbone that gives pooled features: normalized images (n, c, h, w) -> (n, num_features).

    Attributes:
        spec: what it is built of.
        num_features: width of the features.
        image_size: side in pixels of the square images it was made for.
        untrained: whether its weights are fresh.
    """

    mean: Tensor
    std: Tensor
    untrained = False
    origin = ""
    """Where the weights come from, for people."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = _build_backbone(spec)
        # what is pooled may pass one more layer before the classifier would come
        self.num_features = int(getattr(self.backbone, "head_hidden_size", 0) or self.backbone.num_features)  # type: ignore[arg-type]
        self.image_size = spec.image_size
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    @property
    def description(self) -> str:
        """Where its weights come from, for people; where that is not known, its architecture."""
        return self.origin or self.spec.backbone

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (n, c, h, w), or float in [0, 1] -> float, less the mean and over the standard deviation."""
        if not images.is_floating_point():
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone(x)
        return features


def create_encoder(
    backbone: str,
    image_size: int = 224,
    channels: int = 3,
    small_stem: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    options: dict[str, Any] | None = None,
    value_range: tuple[float, float] | None = None,
    background: str = "white",
    stem_padding: int = 1,
) -> Encoder:
    """An untrained encoder.

    Args:
        backbone: a timm architecture, as in ``timm.list_models()``: resnet50, vit_small_patch16_224, ...
            Residual branches start at zero where timm offers it (the ResNets).
        image_size: side of the square images it will see, in pixels.
        channels: channels of an image: 3 for color, 1 for gray, any other number for other instruments.
        small_stem: see EncoderSpec; None takes it for images under 96 px where the architecture has one.
        mean: per channel, of images in [0, 1]; None takes ImageNet's for 3 channels, else 0.5.
        std: likewise; ImageNet's or 0.25.
        options: further arguments of the architecture, as ``timm.create_model`` takes them.
        value_range: see EncoderSpec.
        background: see EncoderSpec.
        stem_padding: see EncoderSpec.

    Raises:
        InputError: unknown architecture, impossible sizes, or small_stem=True where there is none.
    """
    if image_size < 8:
        raise InputError(f"image_size: expected at least 8 pixels, got {image_size}")
    if channels < 1:
        raise InputError(f"channels: expected at least 1, got {channels}")
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() has them all"
        raise InputError(f"backbone: no timm architecture is called {backbone!r}{hint}")
    mean = mean or (IMAGENET_MEAN if channels == 3 else (0.5,) * channels)
    std = std or (IMAGENET_STD if channels == 3 else (0.25,) * channels)
    if len(mean) != channels or len(std) != channels:
        raise InputError(f"mean, std: expected {channels} numbers each, got {len(mean)} and {len(std)}")
    if small_stem is None:
        small_stem = image_size < SMALL_IMAGE and _has_small_stem(backbone)
    elif small_stem and not _has_small_stem(backbone):
        raise InputError(f"small_stem: {backbone} has none; it is for ResNets and vision transformers")
    colors = tuple(mean), tuple(std)
    shown = value_range, background
    return Encoder(
        EncoderSpec(backbone, image_size, channels, small_stem, *colors, options or {}, *shown, stem_padding)
    )


def enable_gradient_checkpointing(encoder: Encoder) -> None:
    """From now on its activations are computed once more on the way back instead of being kept (timm's switch).

    Raises:
        InputError: the architecture has no such switch.
    """
    try:
        encoder.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError, TypeError) as error:
        raise InputError(f"gradient_checkpointing: timm has none for {encoder.spec.backbone}") from error


def _module_of(backbone: str) -> str:
    module: str = timm.models.model_entrypoint(backbone).__module__
    return module.rsplit(".", 1)[-1]


def _has_small_stem(backbone: str) -> bool:
    return _module_of(backbone) in ("resnet", "vision_transformer")


def _build_backbone(spec: EncoderSpec) -> nn.Module:
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": spec.channels, **spec.options}
    is_vit = _module_of(spec.backbone) == "vision_transformer"
    if is_vit and spec.small_stem:
        options.setdefault("patch_size", max(2, spec.image_size // 8))
    try:
        try:
            backbone = timm.create_model(spec.backbone, img_size=spec.image_size, **options)
        except TypeError:  # architectures that take any size of image have no img_size
            backbone = timm.create_model(spec.backbone, **options)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"backbone: timm cannot make {spec.backbone} for {spec.image_size} px with {spec.options} ({error})"
        ) from error
    if spec.small_stem and not is_vit:
        _shrink_stem(backbone, spec.stem_padding)
    return backbone


def _shrink_stem(resnet: Any, padding: int) -> None:
    deep = isinstance(resnet.conv1, nn.Sequential)
    first = resnet.conv1[0] if deep else resnet.conv1
    small = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=padding, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    if deep:
        resnet.conv1[0] = small
    else:
        resnet.conv1 = small
    resnet.maxpool = nn.Identity()
