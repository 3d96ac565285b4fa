"""The FPN variant, for any encoder: four feature maps joined from top to bottom, with torchvision's heads."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from mec.errors import InputError
from mec.evaluate.detection.schedules import Schedule
from mec.models.encoder import Encoder
from mec.models.feature_maps import dynamic_size_backbone, estimate_stride, extract_feature_maps

CHANNELS = 256
STRIDES = (4, 8, 16, 32)


def fpn_parts(
    encoder: Encoder, classes: int, masks: bool, schedule: Schedule
) -> tuple[nn.Module, RegionProposalNetwork, RoIHeads]:
    """Backbone, proposals and heads; the encoder is copied.

    Raises:
        InputError: the encoder has no feature maps, or takes images of one size only.
    """
    pyramid = Pyramid(encoder)
    build = MaskRCNN if masks else FasterRCNN
    # its own resizing and normalizing of images goes unused
    built = build(
        pyramid,
        1 + classes,
        rpn_batch_size_per_image=schedule.anchors,
        rpn_post_nms_top_n_train=schedule.proposals,
        rpn_post_nms_top_n_test=schedule.proposals_at_test,
        box_batch_size_per_image=schedule.regions,
    )
    return pyramid, built.rpn, built.roi_heads


class Pyramid(nn.Module):
    """(n, c, h, w) -> maps of 256 channels, each half the size of the one before, and one more below them.

    The four deepest maps of different size that the encoder has; where all are of one size, as in vision
    transformers, those at four equal distances, made larger or smaller (Li et al. 2021, arXiv 2111.11429).
    """

    out_channels = CHANNELS

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.body: Any
        self.body, maps = dynamic_size_backbone(encoder)
        strides = [estimate_stride(found) for found in maps]
        deepest = {stride: level for level, stride in enumerate(strides)}
        if len(deepest) >= 4:
            self.levels = list(deepest.values())[-4:]
            resized: list[nn.Module] = [nn.Identity() for _ in self.levels]
        elif len(deepest) == 1 and math.log2(strides[0]).is_integer():
            count = len(maps)
            self.levels = [round(count * quarter / 4) - 1 for quarter in (1, 2, 3, 4)]
            resized = [_resizing(maps[-1].shape[1], strides[0], wanted) for wanted in STRIDES]
        else:
            raise InputError(
                f"encoder: {encoder.spec.backbone} has maps of strides {strides}; a pyramid needs four, each twice the "
                "one before, or one that is a power of two"
            )
        self.resized = nn.ModuleList(resized)
        # else what comes after the last map gets no gradient, for which training on several devices would wait
        if hasattr(self.body, "prune_intermediate_layers"):
            self.body.prune_intermediate_layers(self.levels, prune_norm=True, prune_head=True)
        if hasattr(self.body, "head"):  # timm before 1.0.31 leaves its norm
            self.body.head = nn.Identity()
        self.fpn = FeaturePyramidNetwork([maps[i].shape[1] for i in self.levels], CHANNELS, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = extract_feature_maps(self.body, x, self.levels)
        joined: dict[str, Tensor] = self.fpn(
            OrderedDict(
                (str(i), resize(found)) for i, (resize, found) in enumerate(zip(self.resized, maps, strict=True))
            )
        )
        return joined


def _resizing(channels: int, stride: int, wanted: int) -> nn.Module:
    """From a map of one stride to another, both powers of two."""
    if wanted >= stride:
        return nn.MaxPool2d(wanted // stride) if wanted > stride else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(int(math.log2(stride // wanted))):
        layers += [nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.GroupNorm(1, channels), nn.GELU()]
    return nn.Sequential(*layers[:-2])
