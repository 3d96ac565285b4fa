"""An encoder for short trainings on small images, registered with timm as ``compact_resnet`` and
``compact_resnet_s4``."""

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
"""A convolution, then three stages of one basic residual block each; no max-pool."""
default_cfgs = generate_default_cfgs(
    {
        name: {"input_size": (3, size, size), "first_conv": "stem.conv", "classifier": "head.fc"}
        for name, size in (("compact_resnet", 32), ("compact_resnet_s4", 96))
    }
)


class CompactResNet(ByobNet):
    """A ByobNet with a larger first convolution, whose kernel is twice its stride: every pixel enters as many patches,
    and patches have more components to whiten than with timm's 3x3."""

    def __init__(self, *args: Any, stem_stride: int = 2, **options: Any) -> None:
        super().__init__(*args, **options)
        stem: Any = self.stem
        stem.conv = nn.Conv2d(
            stem.conv.in_channels,
            stem.conv.out_channels,
            2 * stem_stride,
            stride=stem_stride,
            padding=stem_stride // 2,
            bias=False,
        )
        nn.init.kaiming_normal_(stem.conv.weight, mode="fan_out", nonlinearity="relu")
        for stage in self.feature_info:
            stage["reduction"] = stage["reduction"] * stem_stride // 2


@register_model
def compact_resnet(pretrained: bool = False, **options: Any) -> nn.Module:
    """Return a residual network of 1.2 million parameters for images of 24 to 64 px, (n, c, h, w) -> (n, 256) features.

    A forward pass of an image of 32 px takes 98 MFLOP. ``options`` are ``stem_stride``, the stride of the first
    convolution, and those of timm's ByobNet, such as ``width_factor``, by which all numbers of channels are multiplied.
    There are no pretrained weights.
    """
    return _build("compact_resnet", pretrained, options)


@register_model
def compact_resnet_s4(pretrained: bool = False, **options: Any) -> nn.Module:
    """Return a ``compact_resnet`` with a first convolution of stride 4, for images of 64 px and more: 103 MFLOP at 64
    px."""
    return _build("compact_resnet_s4", pretrained, {"stem_stride": 4} | options)


def _build(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = build_model_with_cfg(
        CompactResNet,
        name,
        pretrained,
        model_cfg=CONFIG,
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2)},
        **{"zero_init_last": False} | options,
    )
    return model
