import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

from mec.errors import InputError
from mec.evaluate.detection.detectors import Detector
from mec.evaluate.detection.fpn import FeaturePyramid
from mec.evaluate.detection.schedules import SCHEDULES
from mec.models import create_encoder
from tests.evaluate.detection.scenes import SMALL

LEVELS = {
    "resnet18": [1, 2, 3, 4],
    "convnext_atto": [0, 1, 2, 3],
    "vit_tiny_patch16_224": [2, 5, 8, 11],
    "efficientnet_b0": [1, 2, 3, 4],
    "swin_tiny_patch4_window7_224": [0, 1, 2, 3],
}
"""Backbone -> timm's indices of its maps in the pyramid: each stage, every third block, or all but stride 2."""


def make_targets() -> dict[str, Tensor]:
    """Return two objects in an image of 80 x 120."""
    masks = torch.zeros(2, 80, 120, dtype=torch.uint8)
    masks[0, 6:38, 4:40] = masks[1, 24:64, 30:60] = 1
    boxes = torch.tensor([[4.0, 6, 40, 38], [20, 24, 60, 64]])
    return {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}


@pytest.mark.parametrize("backbone_name", LEVELS)
def test_pyramid_has_strides_4_to_64_for_any_image_size(backbone_name: str) -> None:
    pyramid = FeaturePyramid(create_encoder(backbone_name)).eval()
    for height, width in ((96, 160), (224, 64)):
        with torch.no_grad():
            maps = pyramid(torch.zeros(1, 3, height, width))
        expected = [(1, 256, height // stride, width // stride) for stride in (4, 8, 16, 32)]
        assert [tuple(feature_map.shape) for feature_map in maps.values()][:4] == expected
        # max pooling of kernel size 1 and stride 2 rounds up
        assert tuple(maps["pool"].shape[2:]) == (-(-height // 64), -(-width // 64))


@pytest.mark.parametrize("backbone_name", LEVELS)
def test_pyramid_inputs_are_the_encoders_feature_maps(backbone_name: str) -> None:
    """At the encoder's own image size, for which no weights are interpolated."""
    torch.manual_seed(0)
    encoder = create_encoder(backbone_name).eval()
    pyramid = FeaturePyramid(encoder).eval()
    fpn_inputs: list[Tensor] = []
    pyramid.fpn.register_forward_pre_hook(lambda module, inputs: fpn_inputs.extend(inputs[0].values()))
    pyramid.resize_layers = nn.ModuleList(nn.Identity() for _ in range(4))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        pyramid(x)
        expected = encoder.backbone.forward_intermediates(x, output_fmt="NCHW", intermediates_only=True)
    for feature_map, level in zip(fpn_inputs, LEVELS[backbone_name], strict=True):
        assert expected[level].std() > 0
        torch.testing.assert_close(feature_map, expected[level])


@pytest.mark.parametrize("backbone_name", LEVELS)
def test_every_parameter_has_a_gradient(backbone_name: str) -> None:
    """DDP stops at a parameter without a gradient. The height and width are no multiples of 16."""
    torch.manual_seed(0)
    detector = Detector(create_encoder(backbone_name), 3, True, "fpn", SMALL).train()
    losses = detector([torch.rand(3, 80, 120)], [make_targets()])
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    sum(losses.values()).backward()
    assert [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_encoder_is_copied() -> None:
    encoder = create_encoder("vit_tiny_patch16_224")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pyramid = FeaturePyramid(encoder)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert len(encoder.state_dict()) == len(before)
    assert not {id(p) for p in pyramid.parameters()} & {id(p) for p in encoder.parameters()}


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


def test_boxes_are_within_their_image() -> None:
    """Padding does not matter: the first image is smaller in both dimensions."""
    torch.manual_seed(0)
    detector = Detector(create_encoder("convnext_atto"), 3, True, "fpn", SMALL).eval()
    nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=1)
    sizes = ((50, 90), (100, 130))
    with torch.no_grad():
        detections = detector([torch.rand(3, *size) for size in sizes])
    for (height, width), image_detections in zip(sizes, detections, strict=True):
        boxes = image_detections["boxes"]
        assert len(boxes) > 0
        assert image_detections["masks"].shape == (len(boxes), 1, 28, 28)
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize(
    ("backbone_name", "options", "message"),
    [
        ("mixer_s16_224", {}, "mixer_s16_224 has no feature maps for images of any size (Input width (448)"),
        *(
            (
                "vit_tiny_patch16_224",
                {"patch_size": 14, **options},
                "vit_tiny_patch16_224 has feature maps of strides [14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14]; ",
            )
            for options in ({}, {"dynamic_img_size": True, "dynamic_img_pad": True})
        ),
    ],
)
def test_encoders_without_suitable_feature_maps_are_rejected(
    backbone_name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError) as error:
        Detector(create_encoder(backbone_name, options=options), 2, False, "fpn", SMALL)
    assert str(error.value).startswith(f"encoder: {message}")
    assert "\n" not in str(error.value)
