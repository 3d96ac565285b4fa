"""Faster and Mask R-CNN on an encoder, from torchvision's RPN and heads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from mec.errors import InputError
from mec.evaluate.detection.c4 import build_c4, is_resnet
from mec.evaluate.detection.fpn import build_fpn
from mec.evaluate.detection.schedules import Schedule
from mec.models.encoder import Encoder, EncoderSpec

Architecture = Literal["c4", "fpn"]
SIZE_DIVISOR = 32
"""Images of a batch are padded to a multiple of this: the largest stride of common encoders."""


class Detector(nn.Module):
    """Faster R-CNN, or Mask R-CNN if ``masks``, on a trainable copy of an encoder.

    The outputs are torchvision's: losses in training, otherwise boxes, labels (from 1), scores and masks (k, 1, s, s)
    of each image.

    Args:
        encoder: any encoder for fpn, a ResNet for c4.
        num_classes: without the background.
        masks: predict a mask for each object.
        architecture: c4: one feature map of stride 16, res5 on each region (Ren et al. 2015, He et al. 2017, MoCo);
            fpn: a feature pyramid of four maps (Lin et al. 2017), torchvision's heads.
        schedule: numbers of anchors and proposals.

    Raises:
        InputError: an architecture that the encoder does not support.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, encoder: Encoder, num_classes: int, masks: bool, architecture: Architecture, schedule: Schedule
    ) -> None:
        super().__init__()
        self.spec: EncoderSpec = encoder.spec
        encoder = _with_aligned_stem(encoder)
        build = build_c4 if architecture == "c4" else build_fpn
        self.backbone, self.rpn, self.roi_heads = build(encoder, num_classes, masks, schedule)
        # boxes are computed from these outputs, and bfloat16 has only three significant digits
        for module in (self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor):
            if module is not None:
                module.register_forward_hook(lambda module, inputs, output: _to_float32(output))
        self.register_buffer("mean", encoder.mean.clone(), persistent=False)
        self.register_buffer("std", encoder.std.clone(), persistent=False)
        self.to(memory_format=torch.channels_last)  # faster on CPUs and GPUs

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Detect objects, or compute the losses in training.

        Args:
            images: (c, h, w) each, uint8 or in [0, 1], of different sizes.
            targets: per image boxes (k, 4) float32 in pixels, labels (k,) int64 from 1, and masks (k, h, w) uint8.
        """
        batch = self._batch_images(images)
        features = {name: feature_map.float() for name, feature_map in self.backbone(batch.tensors).items()}
        proposals, rpn_losses = self.rpn(batch, features, targets)
        detections, head_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return rpn_losses | head_losses if self.training else detections

    def _batch_images(self, images: list[Tensor]) -> ImageList:
        """Normalize images and pad them at the right and below with the mean color: (n, c, H, W)."""
        height, width = (
            math.ceil(max(image.shape[i] for image in images) / SIZE_DIVISOR) * SIZE_DIVISOR for i in (1, 2)
        )
        padded = []
        for image in images:
            x = image if image.is_floating_point() else image.to(self.mean.dtype) / 255
            x = ((x[None] - self.mean) / self.std)[0]
            padded.append(F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])))
        batch = torch.stack(padded).contiguous(memory_format=torch.channels_last)
        return ImageList(batch, [(image.shape[1], image.shape[2]) for image in images])


def _with_aligned_stem(encoder: Encoder) -> Encoder:
    """Return an encoder of the same weights whose stem padding is 1. With more, strides are not whole numbers."""
    if encoder.spec.stem_padding == 1:
        return encoder
    aligned = Encoder(replace(encoder.spec, stem_padding=1))
    aligned.backbone.load_state_dict(encoder.backbone.state_dict())
    return aligned


def _to_float32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_to_float32(item) for item in output)


def resolve_architecture(encoder: Encoder, architecture: str | None) -> Architecture:
    """Return the architecture; None: c4 for ResNets, as in published results, and fpn for other encoders."""
    if architecture is None:
        return "c4" if is_resnet(encoder) else "fpn"
    if architecture not in ("c4", "fpn"):
        raise InputError(f"architecture: expected c4 or fpn, got {architecture!r}")
    if architecture == "c4" and not is_resnet(encoder):
        raise InputError(f"architecture: c4 requires a ResNet, got {encoder.spec.backbone}; use fpn")
    return "c4" if architecture == "c4" else "fpn"
