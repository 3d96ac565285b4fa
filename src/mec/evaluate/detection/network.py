"""An encoder made a detector: its feature maps, torchvision's proposals and heads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from mec.errors import InputError
from mec.evaluate.detection.c4 import c4_parts, is_resnet
from mec.evaluate.detection.fpn import fpn_parts
from mec.evaluate.detection.schedules import Schedule
from mec.models.encoder import Encoder, EncoderSpec

Architecture = Literal["c4", "fpn"]
PAD_TO = 32
"""Images of a batch are padded to a multiple of this: the deepest stride of the usual encoders."""


class Detector(nn.Module):
    """Faster R-CNN, or with ``masks`` Mask R-CNN, on an encoder whose layers are trained further.

    The encoder's weights are copied. What torchvision returns it returns: losses in training, else boxes, labels
    (from 1), scores and masks (k, 1, s, s) of each image.

    Args:
        encoder: any for fpn, a ResNet for c4.
        classes: without the background.
        masks: whether a mask is predicted for each object.
        architecture: c4: one map of stride 16, res5 on each region (Ren et al. 2015, He et al. 2017, MoCo); fpn: four
            maps joined from top to bottom (Lin et al. 2017), torchvision's heads.
        schedule: how many anchors, proposals and regions it takes.

    Raises:
        InputError: an architecture that the encoder cannot have.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, encoder: Encoder, classes: int, masks: bool, architecture: Architecture, schedule: Schedule
    ) -> None:
        super().__init__()
        self.spec: EncoderSpec = encoder.spec
        encoder = _with_even_stem(encoder)
        if architecture == "c4":
            self.backbone, self.rpn, self.roi_heads = c4_parts(encoder, classes, masks, schedule)
        else:
            self.backbone, self.rpn, self.roi_heads = fpn_parts(encoder, classes, masks, schedule)
        # boxes are computed from these, and bfloat16 has three digits
        for module in (self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor):
            if module is not None:
                module.register_forward_hook(lambda module, given, found: _floats(found))
        self.register_buffer("mean", encoder.mean.clone(), persistent=False)
        self.register_buffer("std", encoder.std.clone(), persistent=False)
        self.to(memory_format=torch.channels_last)  # faster there, on CPUs and GPUs

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Images (c, h, w), uint8 or in [0, 1], each of its own size.

        Targets are boxes (k, 4) float32 in pixels, labels (k,) int64 from 1, masks (k, h, w) uint8.
        """
        batch = self._joined(images)
        features = {name: found.float() for name, found in self.backbone(batch.tensors).items()}
        proposals, losses = self.rpn(batch, features, targets)
        found, of_heads = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return losses | of_heads if self.training else found

    def _joined(self, images: list[Tensor]) -> ImageList:
        """One tensor (n, c, H, W); the mean color fills it at the right and below."""
        height, width = (math.ceil(max(p.shape[i] for p in images) / PAD_TO) * PAD_TO for i in (1, 2))
        normalized = []
        for image in images:
            x = image if image.is_floating_point() else image.to(self.mean.dtype) / 255
            x = ((x[None] - self.mean) / self.std)[0]
            normalized.append(F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])))
        joined = torch.stack(normalized).contiguous(memory_format=torch.channels_last)
        return ImageList(joined, [(p.shape[1], p.shape[2]) for p in images])


def _with_even_stem(encoder: Encoder) -> Encoder:
    """A small stem that adds pixels makes maps whose strides are no whole numbers; the same weights add none."""
    if encoder.spec.stem_padding == 1:
        return encoder
    even = Encoder(replace(encoder.spec, stem_padding=1))
    even.backbone.load_state_dict(encoder.backbone.state_dict())
    return even


def _floats(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.float()
    return type(found)(_floats(part) for part in found)


def architecture_for(encoder: Encoder, asked: str | None) -> Architecture:
    """c4 for ResNets, as the published figures have it, fpn for all others, when nothing is asked for."""
    if asked is None:
        return "c4" if is_resnet(encoder) else "fpn"
    if asked not in ("c4", "fpn"):
        raise InputError(f"architecture: expected c4 or fpn, got {asked!r}")
    if asked == "c4" and not is_resnet(encoder):
        raise InputError(f"architecture: c4 is made of a ResNet's stages, {encoder.spec.backbone} has none; take fpn")
    return "c4" if asked == "c4" else "fpn"
