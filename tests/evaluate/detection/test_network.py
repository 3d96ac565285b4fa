from typing import Any

import pytest
import torch

from mec.evaluate.detection.c4 import build_c4
from mec.evaluate.detection.detectors import Detector
from mec.models import create_encoder
from tests.evaluate.detection.scenes import SMALL


def test_anchors_are_not_rounded() -> None:
    """Height over width is the ratio, width times height the square of the size; torchvision rounds to pixels."""
    _, rpn, _ = build_c4(create_encoder("resnet18"), 2, False, SMALL)
    (anchors,) = rpn.anchor_generator.cell_anchors
    sides = anchors[:, 2:] - anchors[:, :2]
    ratios, areas = torch.meshgrid(
        torch.tensor([0.5, 1, 2]), torch.tensor([32.0, 64, 128, 256, 512]) ** 2, indexing="ij"
    )
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], ratios.flatten())
    torch.testing.assert_close(sides.prod(1), areas.flatten())
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])


@pytest.mark.parametrize(("architecture", "strides"), [("c4", [4]), ("fpn", [1, 2, 4, 8, 16])])
def test_stem_padding_of_two_is_reduced_to_one(architecture: Any, strides: list[int]) -> None:
    """Other projects train encoders of small images with a stem padding of 2; strides would not be whole numbers."""
    encoder = create_encoder("resnet18", 32, stem_padding=2)
    detector = Detector(encoder, 3, False, architecture, SMALL).eval()
    with torch.no_grad():
        maps = detector.backbone(torch.zeros(1, 3, 64, 96)).values()
    assert [tuple(feature_map.shape[2:]) for feature_map in maps] == [(64 // s, 96 // s) for s in strides]
    (stem,) = (m for n, m in detector.backbone.named_modules() if n.endswith("conv1") and n.count(".") < 2)
    assert torch.equal(stem.weight, encoder.backbone.conv1.weight)
