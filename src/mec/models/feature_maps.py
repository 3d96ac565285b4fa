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
"""An image tried on an encoder, of no square; 14 and 32, the usual coarsest cells, divide both sides."""


def extract_feature_maps(body: Any, x: Tensor, levels: Sequence[int] | None = None, **options: Any) -> list[Tensor]:
    """(n, c, h, w) -> those maps (n, d, h', w') of a timm backbone, or all; ``options`` as timm's forward_intermediates
    takes them."""
    maps: list[Tensor] = body.forward_intermediates(
        x, indices=levels, output_fmt="NCHW", intermediates_only=True, **options
    )
    return maps


def probe_image(encoder: Encoder, more: int = 0) -> Tensor:
    """An image (1, c, h, w) to try an encoder on, of PROBE's size or ``more`` each way; where its weights are."""
    height, width = PROBE_SIZE
    return torch.zeros(1, encoder.spec.channels, height + more, width + more, device=encoder.mean.device)


def estimate_stride(found: Tensor) -> int:
    """Pixels from cell to cell of a map of ``probe_image``, by its longer side, where padding at the borders weighs less."""
    return max(1, round(PROBE_SIZE[1] / found.shape[3]))


def dynamic_size_backbone(encoder: Encoder) -> tuple[Any, list[Tensor]]:
    """A copy of the backbone that takes images of any size, and all its maps of an image of PROBE's.

    Raises:
        InputError: it has no feature maps, or takes images of one size only.
    """
    x = probe_image(encoder)
    error: Exception | None = None
    for options in ({}, {"dynamic_img_size": True}, {"strict_img_size": False}):
        try:
            body = _with_options(encoder, options)
            with torch.no_grad():
                return body, extract_feature_maps(body.eval(), x)
        except Exception as refusal:  # timm's architectures refuse a size, or the option, each in its own way
            error = error or refusal
    raise InputError(
        f"encoder: {encoder.spec.backbone} gives no feature maps of images of any size "
        f"({' '.join(str(error).split()) or type(error).__name__})"
    ) from error


def _with_options(encoder: Encoder, options: dict[str, Any]) -> Any:
    if not options:
        return copy.deepcopy(encoder.backbone)
    other = Encoder(replace(encoder.spec, options=encoder.spec.options | options)).to(encoder.mean.device)
    other.backbone.load_state_dict(encoder.backbone.state_dict())
    return other.backbone
