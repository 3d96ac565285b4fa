"""The FPN architecture, for any encoder: a feature pyramid of four maps with torchvision's heads."""

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
from mec.models.encoder import Encoder, dynamic_size_backbone, estimate_stride, extract_feature_maps

CHANNELS = 256
STRIDES = (4, 8, 16, 32)


def build_fpn(
    encoder: Encoder, num_classes: int, masks: bool, schedule: Schedule
) -> tuple[nn.Module, RegionProposalNetwork, RoIHeads]:
    """Build backbone, RPN and heads from a copy of the encoder."""
    backbone = FeaturePyramid(encoder)
    # the model's own resizing and normalization are not used
    model = (MaskRCNN if masks else FasterRCNN)(
        backbone,
        1 + num_classes,
        rpn_batch_size_per_image=schedule.rpn_batch_size_per_image,
        rpn_post_nms_top_n_train=schedule.rpn_post_nms_top_n_train,
        rpn_post_nms_top_n_test=schedule.rpn_post_nms_top_n_test,
        box_batch_size_per_image=schedule.box_batch_size_per_image,
    )
    return backbone, model.rpn, model.roi_heads


class FeaturePyramid(nn.Module):
    """(n, c, h, w) -> five maps of 256 channels and decreasing size; the last is a max-pooled fourth.

    The pyramid is built from the encoder's four deepest feature maps of different stride. If all maps have the same
    stride, as in vision transformers, it is built from four maps at equal distances in depth, resized to strides 4 to
    32 (Li et al. 2021, arXiv 2111.11429).
    """

    out_channels = CHANNELS

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.body: Any
        self.body, maps = dynamic_size_backbone(encoder)
        strides = [estimate_stride(feature_map) for feature_map in maps]
        last_of_stride = {stride: level for level, stride in enumerate(strides)}
        if len(last_of_stride) >= 4:
            self.levels = list(last_of_stride.values())[-4:]
            resize_layers: list[nn.Module] = [nn.Identity() for _ in self.levels]
        elif len(last_of_stride) == 1 and math.log2(strides[0]).is_integer():
            self.levels = [round(len(maps) * quarter / 4) - 1 for quarter in (1, 2, 3, 4)]
            resize_layers = [_resize_layer(maps[-1].shape[1], strides[0], stride) for stride in STRIDES]
        else:
            raise InputError(
                f"encoder: {encoder.spec.backbone} has feature maps of strides {strides}; fpn requires four different "
                "strides, each twice the one before, or a single stride that is a power of two"
            )
        self.resize_layers = nn.ModuleList(resize_layers)
        # layers after the last map would get no gradient, and DDP waits for the gradient of every parameter
        if hasattr(self.body, "prune_intermediate_layers"):
            self.body.prune_intermediate_layers(self.levels, prune_norm=True, prune_head=True)
        if hasattr(self.body, "head"):  # timm before 1.0.31 keeps the norm in the head
            self.body.head = nn.Identity()
        self.fpn = FeaturePyramidNetwork([maps[i].shape[1] for i in self.levels], CHANNELS, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = extract_feature_maps(self.body, x, self.levels)
        resized = [layer(feature_map) for layer, feature_map in zip(self.resize_layers, maps, strict=True)]
        pyramid: dict[str, Tensor] = self.fpn(OrderedDict(zip("0123", resized, strict=True)))
        return pyramid


def _resize_layer(channels: int, stride: int, target_stride: int) -> nn.Module:
    """Create a layer that changes the stride of a feature map, both powers of two."""
    if target_stride >= stride:
        return nn.MaxPool2d(target_stride // stride) if target_stride > stride else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(int(math.log2(stride // target_stride))):
        layers += [nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.GroupNorm(1, channels), nn.GELU()]
    return nn.Sequential(*layers[:-2])
