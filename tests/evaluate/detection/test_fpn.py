from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

from mec.errors import InputError
from mec.evaluate.detection.detectors import Detector
from mec.evaluate.detection.fpn import FeaturePyramid
from mec.evaluate.detection.schedules import SCHEDULES
from mec.models import create_encoder
from tests.evaluate.detection.scenes import NARROW_RESNET, SMALL

NARROW_VIT = {"embed_dim": 48, "num_heads": 2}
BACKBONES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "resnet18": (NARROW_RESNET, [1, 2, 3, 4]),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, [0, 1, 2, 3]),
    "vit_tiny_patch16_224": (NARROW_VIT, [2, 5, 8, 11]),
    "efficientnet_b0": ({}, [1, 2, 3, 4]),
    "swin_tiny_patch4_window7_224": ({"embed_dim": 24, "depths": (1, 1, 1, 1)}, [0, 1, 2, 3]),
}
"""Backbone -> options of a small one, and timm's indices of its maps in the pyramid: each stage, every third block, or
all but stride 2."""


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pyramid_of_the_encoders_feature_maps(backbone: str) -> None:
    """It has strides 4 to 64 for any image size, and its inputs are the encoder's maps, at the encoder's own image
    size, for which no weights are interpolated. Every parameter has a gradient: DDP stops at one without."""
    torch.manual_seed(0)
    options, levels = BACKBONES[backbone]
    encoder = create_encoder(backbone, 224, options=options).eval()
    pyramid = FeaturePyramid(encoder).eval()
    inputs: list[Tensor] = []
    layers = pyramid.resize_layers
    pyramid.fpn.register_forward_pre_hook(lambda module, args: inputs.extend(args[0].values()))
    pyramid.resize_layers = nn.ModuleList(nn.Identity() for _ in range(4))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        pyramid(x)
        expected = encoder.backbone.forward_intermediates(x, output_fmt="NCHW", intermediates_only=True)
    for feature_map, level in zip(inputs, levels, strict=True):
        assert expected[level].std() > 0
        torch.testing.assert_close(feature_map, expected[level])
    pyramid.resize_layers = layers
    height, width = 96, 160
    maps = pyramid.train()(torch.randn(2, 3, height, width))
    assert [tuple(m.shape) for m in maps.values()] == [
        # the last is max-pooled with kernel size 1 and stride 2, which rounds up
        (2, 256, -(-height // stride), -(-width // stride))
        for stride in (4, 8, 16, 32, 64)
    ]
    sum(m.square().sum() for m in maps.values()).backward()
    assert [n for n, p in pyramid.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("masks", [False, True])
def test_heads_match_torchvision(masks: bool) -> None:
    with torch.device("meta"):
        detector = Detector(create_encoder("resnet50"), 90, masks, "fpn", SCHEDULES["coco-1x"])
        build = maskrcnn_resnet50_fpn if masks else fasterrcnn_resnet50_fpn
        reference = build(weights=None, weights_backbone=None, num_classes=91)
    for module, reference_module in (
        (detector.rpn, reference.rpn),
        (detector.roi_heads, reference.roi_heads),
        (detector.backbone.fpn, reference.backbone.fpn),
    ):
        shapes = {name: p.shape for name, p in module.state_dict().items()}
        assert shapes == {name: p.shape for name, p in reference_module.state_dict().items()}
    assert detector.rpn.anchor_generator.sizes == reference.rpn.anchor_generator.sizes
    assert detector.rpn.anchor_generator.aspect_ratios == reference.rpn.anchor_generator.aspect_ratios


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("vit_tiny_patch16_224", {"patch_size": 14, **NARROW_VIT}, "has feature maps of strides [14, 14, "),
        (
            "vit_tiny_patch16_224",
            {"patch_size": 14, "dynamic_img_size": True, "dynamic_img_pad": True, **NARROW_VIT},
            "has feature maps of strides [14, 14, ",
        ),
    ],
)
def test_encoders_without_suitable_feature_maps_are_rejected(
    backbone: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        Detector(create_encoder(backbone, options=options), 2, False, "fpn", SMALL)
    assert str(error.value).startswith(f"encoder: {backbone} ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
