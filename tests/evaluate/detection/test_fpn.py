from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

from mec.errors import InputError
from mec.evaluate.detection.fpn import FeaturePyramid
from mec.evaluate.detection.network import Detector
from mec.evaluate.detection.schedules import SCHEDULES
from mec.models import create_encoder

SMALL = replace(SCHEDULES["short"], anchors=32, regions=8, proposals=20, proposals_at_test=20)
# of each encoder: which of its maps, counted as timm does; a stage each, every third block, all but stride 2
LEVELS = {
    "resnet18": [1, 2, 3, 4],
    "convnext_atto": [0, 1, 2, 3],
    "vit_tiny_patch16_224": [2, 5, 8, 11],
    "efficientnet_b0": [1, 2, 3, 4],
    "swin_tiny_patch4_window7_224": [0, 1, 2, 3],
}


def targets() -> dict[str, Tensor]:
    """Two objects in an image of 80 x 120."""
    masks = torch.zeros(2, 80, 120, dtype=torch.uint8)
    masks[0, 6:38, 4:40] = masks[1, 24:64, 30:60] = 1
    boxes = torch.tensor([[4.0, 6, 40, 38], [20, 24, 60, 64]])
    return {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}


@pytest.mark.parametrize("backbone", LEVELS)
def test_maps_of_strides_4_to_64_of_images_of_any_size(backbone: str) -> None:
    pyramid = FeaturePyramid(create_encoder(backbone)).eval()
    for height, width in ((96, 160), (224, 64)):
        with torch.no_grad():
            maps = pyramid(torch.zeros(1, 3, height, width))
        expected = [(1, 256, height // stride, width // stride) for stride in (4, 8, 16, 32)]
        assert [tuple(found.shape) for found in maps.values()][:4] == expected
        # the last takes every second cell of the one before, the first included
        assert tuple(maps["pool"].shape[2:]) == (-(-height // 64), -(-width // 64))


@pytest.mark.parametrize("backbone", LEVELS)
def test_the_maps_are_the_encoders(backbone: str) -> None:
    """Of its own size, at which none of its weights is adapted."""
    torch.manual_seed(0)
    encoder = create_encoder(backbone).eval()
    pyramid = FeaturePyramid(encoder).eval()
    seen: list[Tensor] = []
    pyramid.fpn.register_forward_pre_hook(lambda module, given: seen.extend(given[0].values()))
    pyramid.resized = nn.ModuleList(nn.Identity() for _ in range(4))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        pyramid(x)
        wanted = encoder.backbone.forward_intermediates(x, output_fmt="NCHW", intermediates_only=True)
    for found, level in zip(seen, LEVELS[backbone], strict=True):
        assert wanted[level].std() > 0
        torch.testing.assert_close(found, wanted[level])


@pytest.mark.parametrize("backbone", LEVELS)
def test_every_parameter_has_a_gradient(backbone: str) -> None:
    """Training on several devices stops at one that has none; the sides of the image are no multiple of 16."""
    torch.manual_seed(0)
    detector = Detector(create_encoder(backbone), 3, True, "fpn", SMALL).train()
    losses = detector([torch.rand(3, 80, 120)], [targets()])
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    sum(losses.values()).backward()
    assert [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_the_encoder_is_left_as_it_was() -> None:
    encoder = create_encoder("vit_tiny_patch16_224")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pyramid = FeaturePyramid(encoder)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert len(encoder.state_dict()) == len(before)
    assert not {id(p) for p in pyramid.parameters()} & {id(p) for p in encoder.parameters()}


@pytest.mark.parametrize("masks", [False, True])
def test_the_heads_are_torchvisions(masks: bool) -> None:
    with torch.device("meta"):
        ours = Detector(create_encoder("resnet50"), 90, masks, "fpn", SCHEDULES["coco-1x"])
        build = maskrcnn_resnet50_fpn if masks else fasterrcnn_resnet50_fpn
        theirs = build(weights=None, weights_backbone=None, num_classes=91)
    for own, there in (
        (ours.rpn, theirs.rpn),
        (ours.roi_heads, theirs.roi_heads),
        (ours.backbone.fpn, theirs.backbone.fpn),
    ):
        shapes = {name: p.shape for name, p in own.state_dict().items()}
        assert shapes == {name: p.shape for name, p in there.state_dict().items()}
    assert ours.rpn.anchor_generator.sizes == theirs.rpn.anchor_generator.sizes
    assert ours.rpn.anchor_generator.aspect_ratios == theirs.rpn.anchor_generator.aspect_ratios


def test_boxes_are_where_the_images_are() -> None:
    """Whatever the padding: the first is smaller both ways."""
    torch.manual_seed(0)
    detector = Detector(create_encoder("convnext_atto"), 3, True, "fpn", SMALL).eval()
    nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=1)
    sizes = ((50, 90), (100, 130))
    with torch.no_grad():
        found = detector([torch.rand(3, *size) for size in sizes])
    for (height, width), one in zip(sizes, found, strict=True):
        assert len(one["boxes"]) > 0
        assert one["masks"].shape == (len(one["boxes"]), 1, 28, 28)
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("mixer_s16_224", {}, "mixer_s16_224 has no feature maps for images of any size (Input width (448)"),
        *(
            (
                "vit_tiny_patch16_224",
                {"patch_size": 14, **options},
                "vit_tiny_patch16_224 has maps of strides [14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14]; a pyramid",
            )
            for options in ({}, {"dynamic_img_size": True, "dynamic_img_pad": True})
        ),
    ],
)
def test_encoders_that_cannot(backbone: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        Detector(create_encoder(backbone, options=options), 2, False, "fpn", SMALL)
    assert str(error.value).startswith(f"encoder: {message}")
    assert "\n" not in str(error.value)
