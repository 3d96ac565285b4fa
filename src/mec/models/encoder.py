"""Encoders: a timm architecture or any network, with image normalization; small stems; feature maps."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mec.errors import InputError, did_you_mean
from mec.models.compact import compact_resnet  # noqa: F401  # registered with timm
from mec.models.own_network import MODULE_PREFIX, average_pool, copy_network, dry_run, network_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_IMAGE = 96
"""Images below this size in pixels get a small stem. A stride-4 stem leaves 7x7 of 28 px, and the last stage 1x1."""
PROBE_SIZE = (224, 448)
"""Height and width of the image that probes a backbone: not square, and divisible by 14 and 32, the usual strides."""


@dataclass(frozen=True)
class EncoderSpec:
    """Everything except the weights that is needed to rebuild an encoder; stored as encoder.json.

    Attributes:
        backbone: name of a timm architecture; of another network, the qualified name of its class after ``module:``.
        image_size: side in pixels of the square input images.
        channels: number of image channels.
        small_stem: 3x3 stride-1 stem without max-pool (ResNets), small patches (vision transformers).
        mean: mean per channel, of images in [0, 1].
        std: standard deviation per channel, of images in [0, 1].
        options: further arguments of the architecture, as ``timm.create_model`` takes them.
        value_range: pixel values mapped to 0 and 1, for images of more than 8 bits; None for 8-bit images.
        background: color behind transparent images.
        stem_padding: padding of the small stem's convolution; 1 preserves the size, some projects trained with 2.
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

    @property
    def is_module(self) -> bool:
        """Whether the network is not from timm: it cannot be rebuilt from this description."""
        return self.backbone.startswith(MODULE_PREFIX)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Encoder(nn.Module):
    """A backbone that returns pooled features: normalized images (n, c, h, w) -> (n, num_features).

    Args:
        spec: description of the encoder.
        backbone: the network, which is not copied; None builds timm's architecture of the spec, untrained.

    Attributes:
        spec: the EncoderSpec it was built from.
        num_features: number of features per image.
        image_size: side in pixels of the square input images.
        memory_format: memory format of weights and images in which the network is fastest.
        untrained: whether its weights are freshly initialized.
        start_file: file of the weights with which its run started, in the run folder; None if there is none.
        origin: a sentence on where the weights come from; may be empty.
    """

    mean: Tensor
    std: Tensor
    memory_format = torch.channels_last
    untrained = False
    start_file: Path | None = None
    origin = ""

    def __init__(self, spec: EncoderSpec, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = _build_backbone(spec) if backbone is None else backbone
        if backbone is None and timm_module(spec.backbone):
            # some architectures have a hidden layer between pooling and the classifier
            self.num_features = int(getattr(self.backbone, "head_hidden_size", 0) or self.backbone.num_features)  # type: ignore[arg-type]
        else:
            self.num_features, self.memory_format = dry_run(
                self.backbone, spec.backbone, spec.channels, spec.image_size
            )
        self.image_size = spec.image_size
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    @property
    def description(self) -> str:
        """Origin of the weights, or the name of the architecture if the origin is unknown."""
        return self.origin or self.spec.backbone

    @property
    def is_trained(self) -> bool:
        """Whether it was loaded with trained weights."""
        return bool(self.origin) and not self.untrained

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images (n, c, h, w), uint8 or float in [0, 1], by mean and standard deviation."""
        if not images.is_floating_point():
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        if self.memory_format == torch.contiguous_format:  # contiguous() leaves one channel in channels-last order
            x = x.clone(memory_format=torch.contiguous_format)
        return average_pool(self.backbone(x))


EncoderLike = Encoder | str | os.PathLike[str]
"""An encoder, or a run folder, a file of weights or a timm name for ``mec.load_encoder``."""


def create_encoder(
    backbone: str | nn.Module,
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
    """Create an encoder: an untrained one of timm's, or one of any network with its weights.

    Args:
        backbone: a timm architecture, as in ``timm.list_models()``: resnet50, vit_small_patch16_224, ...
            Residual branches are zero-initialized where timm offers it (the ResNets). Or any network from normalized
            images (n, c, h, w) to features (n, d), which is copied; of maps (n, d, h, w) the average is taken.
        image_size: side of the square input images, in pixels.
        channels: number of image channels: 3 for color, 1 for grayscale, any other number for other sensors.
        small_stem: see EncoderSpec; None enables it for images under 96 px if the architecture has one.
        mean: mean per channel, of images in [0, 1]; None takes ImageNet's for 3 channels, else 0.5.
        std: standard deviation per channel; None takes ImageNet's for 3 channels, else 0.25.
        options: see EncoderSpec.
        value_range: see EncoderSpec.
        background: see EncoderSpec.
        stem_padding: see EncoderSpec.

    Raises:
        InputError: the architecture is unknown, a size is invalid, small_stem=True and the architecture has none, or
            the network fails or returns something else.
    """
    if image_size < 8:
        raise InputError(f"image_size: expected at least 8 pixels, got {image_size}")
    if channels < 1:
        raise InputError(f"channels: expected at least 1, got {channels}")
    if isinstance(backbone, str) and not timm.is_model(backbone):
        hint = did_you_mean(backbone, timm.list_models())
        raise InputError(f"backbone: expected a timm architecture, got {backbone!r}{hint}")
    mean = mean or (IMAGENET_MEAN if channels == 3 else (0.5,) * channels)
    std = std or (IMAGENET_STD if channels == 3 else (0.25,) * channels)
    if len(mean) != channels or len(std) != channels:
        raise InputError(f"mean, std: expected {channels} numbers each, got {len(mean)} and {len(std)}")
    if max(mean) > 1:
        raise InputError(f"mean: expected those of images in [0, 1], got {max(mean):g}; divide mean and std by 255")
    more = options or {}, value_range, background, stem_padding
    if isinstance(backbone, nn.Module):
        if small_stem or options or stem_padding != 1:
            raise InputError("small_stem, options, stem_padding: expected a timm architecture with them, got a module")
        network = copy_network(backbone)
        spec = EncoderSpec(network_name(network), image_size, channels, False, tuple(mean), tuple(std), *more)
        return Encoder(spec, network)
    has_small_stem = timm_module(backbone) in ("resnet", "vision_transformer")
    if small_stem is None:
        small_stem = image_size < SMALL_IMAGE and has_small_stem
    elif small_stem and not has_small_stem:
        raise InputError(f"small_stem: expected a ResNet or vision transformer of timm, got {backbone}")
    return Encoder(EncoderSpec(backbone, image_size, channels, small_stem, tuple(mean), tuple(std), *more))


def enable_gradient_checkpointing(encoder: Encoder) -> None:
    """Recompute activations in the backward pass instead of storing them; raise InputError if that is unsupported."""
    try:
        encoder.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError, TypeError) as error:
        name = encoder.spec.backbone
        raise InputError(f"gradient_checkpointing: expected set_grad_checkpointing(True) of {name} to work") from error


def timm_module(backbone: str) -> str:
    """Return the name of the timm module that defines the architecture; "" if a user registered it with timm."""
    package, _, module = timm.models.model_entrypoint(backbone).__module__.rpartition(".")
    return module if package == "timm.models" else ""


def registering_module(backbone: str) -> str:
    """Return the name of the module that registers an architecture with timm when it is imported; "" for timm's own."""
    return "" if timm_module(backbone) else timm.models.model_entrypoint(backbone).__module__


def _build_backbone(spec: EncoderSpec) -> nn.Module:
    if spec.is_module:
        raise InputError(f"encoder: {spec.backbone} is not from timm and cannot be rebuilt; pass the network itself")
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": spec.channels, **spec.options}
    is_vit = timm_module(spec.backbone) == "vision_transformer"
    if is_vit and spec.small_stem:
        options.setdefault("patch_size", max(2, spec.image_size // 8))
    try:
        try:
            backbone = timm.create_model(spec.backbone, img_size=spec.image_size, **options)
        except TypeError:  # architectures without a fixed input size have no img_size argument
            backbone = timm.create_model(spec.backbone, **options)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"backbone: timm cannot create {spec.backbone} for {spec.image_size} px with {spec.options} ({error})"
        ) from error
    if spec.small_stem and not is_vit:
        _shrink_stem(backbone, spec.stem_padding)
    return backbone


def _shrink_stem(resnet: Any, padding: int) -> None:
    """Replace the stem's first convolution by a 3x3 stride-1 convolution, and remove the max-pool."""
    parent, name = (resnet.conv1, "0") if isinstance(resnet.conv1, nn.Sequential) else (resnet, "conv1")
    conv: Any = parent.get_submodule(name)
    small_conv = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=1, padding=padding, bias=False)
    nn.init.kaiming_normal_(small_conv.weight, mode="fan_out", nonlinearity="relu")
    parent.add_module(name, small_conv)
    resnet.maxpool = nn.Identity()


def extract_feature_maps(
    backbone: Any, x: Tensor, indices: Sequence[int] | None = None, **options: Any
) -> list[Tensor]:
    """Return maps (n, d, h', w') of stages or blocks (None: all) for normalized images (n, c, h, w), finest first."""
    maps: list[Tensor] = backbone.forward_intermediates(
        x, indices=indices, output_fmt="NCHW", intermediates_only=True, **options
    )
    return maps


def probe_image(encoder: Encoder, margin: int = 0) -> Tensor:
    """Return a zero image (1, c, h, w) of PROBE_SIZE, ``margin`` larger each way, on the encoder's device."""
    height, width = PROBE_SIZE
    return torch.zeros(1, encoder.spec.channels, height + margin, width + margin, device=encoder.mean.device)


def estimate_stride(feature_map: Tensor) -> int:
    """Return the stride in pixels of a feature map of ``probe_image``, from the side that padding affects less."""
    return max(1, round(PROBE_SIZE[1] / feature_map.shape[3]))


def dynamic_size_backbone(encoder: Encoder) -> tuple[Any, list[Tensor]]:
    """Return a copy of the backbone that accepts images of any size, and all its feature maps of ``probe_image``."""
    first_error: Exception | None = None
    for options in ({}, {"dynamic_img_size": True}, {"strict_img_size": False}):
        try:
            backbone: Any = copy.deepcopy(encoder.backbone)
            if options:
                rebuilt = Encoder(replace(encoder.spec, options=encoder.spec.options | options))
                rebuilt.backbone.load_state_dict(backbone.state_dict())
                backbone = rebuilt.to(encoder.mean.device).backbone
            with torch.no_grad():
                return backbone, extract_feature_maps(backbone.eval(), probe_image(encoder))
        except Exception as error:  # timm's architectures reject a size or an option with many kinds of exceptions
            first_error = first_error or error
    reason = " ".join(str(first_error).split()) or type(first_error).__name__
    raise InputError(
        f"encoder: {encoder.spec.backbone} has no feature maps for images of any size ({reason})"
    ) from first_error
