"""Feature maps of an encoder, for images of any size."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mec.errors import InputError
from mec.models.encoder import Encoder

PROBE_SIZE = (224, 448)
"""Height and width of the image that probes a backbone: not square, and divisible by 14 and 32, the usual strides."""


def extract_feature_maps(
    backbone: Any, x: Tensor, indices: Sequence[int] | None = None, **options: Any
) -> list[Tensor]:
    """Return feature maps (n, d, h', w') of a timm backbone for images (n, c, h, w), finest first.

    Args:
        backbone: a timm model.
        x: normalized images.
        indices: stages or blocks whose maps are returned; None returns all.
        options: further arguments of timm's ``forward_intermediates``.
    """
    maps: list[Tensor] = backbone.forward_intermediates(
        x, indices=indices, output_fmt="NCHW", intermediates_only=True, **options
    )
    return maps


def probe_image(encoder: Encoder, margin: int = 0) -> Tensor:
    """Return a zero image (1, c, h, w) of PROBE_SIZE, ``margin`` larger each way, on the encoder's device."""
    height, width = PROBE_SIZE
    return torch.zeros(1, encoder.spec.channels, height + margin, width + margin, device=encoder.mean.device)


def estimate_stride(feature_map: Tensor) -> int:
    """Return the stride in pixels of a feature map of ``probe_image``.

    The longer side is measured because padding at the borders affects it less.
    """
    return max(1, round(PROBE_SIZE[1] / feature_map.shape[3]))


def dynamic_size_backbone(encoder: Encoder) -> tuple[Any, list[Tensor]]:
    """Return a copy of the backbone that accepts images of any size, and all its feature maps of ``probe_image``.

    Raises:
        InputError: the backbone has no feature maps, or accepts a single image size only.
    """
    x = probe_image(encoder)
    first_error: Exception | None = None
    for options in ({}, {"dynamic_img_size": True}, {"strict_img_size": False}):
        try:
            backbone = _with_options(encoder, options)
            with torch.no_grad():
                return backbone, extract_feature_maps(backbone.eval(), x)
        except Exception as error:  # timm's architectures reject a size or an option with many kinds of exceptions
            first_error = first_error or error
    reason = " ".join(str(first_error).split()) or type(first_error).__name__
    raise InputError(
        f"encoder: {encoder.spec.backbone} has no feature maps for images of any size ({reason})"
    ) from first_error


def _with_options(encoder: Encoder, options: dict[str, Any]) -> Any:
    if not options:
        return copy.deepcopy(encoder.backbone)
    rebuilt = Encoder(replace(encoder.spec, options=encoder.spec.options | options)).to(encoder.mean.device)
    rebuilt.backbone.load_state_dict(encoder.backbone.state_dict())
    return rebuilt.backbone
