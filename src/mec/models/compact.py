"""An encoder for short trainings on small images, registered with timm as ``compact_resnet``."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import nn

CONFIG = ByoModelCfg(
    blocks=tuple(ByoBlockCfg(type="basic", d=1, c=c, s=s, gs=0, br=1.0) for c, s in ((64, 1), (128, 2), (256, 2))),
    stem_chs=64,
    stem_type="3x3",
    stem_pool="",
    downsample="avg",
)
"""A convolution with stride 2, then three stages of one basic residual block each; no max-pool."""
default_cfgs = generate_default_cfgs(
    {"compact_resnet": {"input_size": (3, 32, 32), "first_conv": "stem.conv", "classifier": "head.fc"}}
)


class CompactResNet(ByobNet):
    """A ByobNet whose first convolution is 4x4: every pixel enters as many patches, and patches have more components
    to whiten than with timm's 3x3."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        stem: Any = self.stem
        convolution = nn.Conv2d(stem.conv.in_channels, stem.conv.out_channels, 4, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        stem.conv = convolution


@register_model
def compact_resnet(pretrained: bool = False, **options: Any) -> nn.Module:
    """Return a residual network of 1.2 million parameters for images of 24 to 64 px, (n, c, h, w) -> (n, 256) features.

    A forward pass of an image of 32 px takes 98 MFLOP. ``options`` are those of timm's ByobNet, such as
    ``width_factor``, by which all numbers of channels are multiplied. There are no pretrained weights.
    """
    model: nn.Module = build_model_with_cfg(
        CompactResNet,
        "compact_resnet",
        pretrained,
        model_cfg=CONFIG,
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2)},
        **{"zero_init_last": False} | options,
    )
    return model
