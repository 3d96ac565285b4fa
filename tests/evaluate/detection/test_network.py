from dataclasses import replace
from typing import Any

import pytest
import torch

from mec.evaluate.detection.c4 import c4_parts
from mec.evaluate.detection.network import Detector
from mec.evaluate.detection.schedules import SCHEDULES
from mec.models import create_encoder

SMALL = replace(SCHEDULES["short"], anchors=32, regions=8, proposals=20, proposals_at_test=20)


def test_anchors_are_not_rounded() -> None:
    """Height over width is the ratio, width times height the square of the side; torchvision's are whole pixels."""
    _, rpn, _ = c4_parts(create_encoder("resnet18"), 2, False, SMALL)
    (cells,) = rpn.anchor_generator.cell_anchors
    sides = cells[:, 2:] - cells[:, :2]
    ratios, areas = torch.meshgrid(
        torch.tensor([0.5, 1, 2]), torch.tensor([32.0, 64, 128, 256, 512]) ** 2, indexing="ij"
    )
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], ratios.flatten())
    torch.testing.assert_close(sides.prod(1), areas.flatten())
    torch.testing.assert_close(cells[:, :2], -cells[:, 2:])


@pytest.mark.parametrize(("architecture", "strides"), [("c4", [4]), ("fpn", [1, 2, 4, 8, 16])])
def test_a_stem_that_adds_pixels_adds_none_in_a_detector(architecture: Any, strides: list[int]) -> None:
    """Of small images, padded by 2: other projects train so; the strides would be no whole numbers."""
    encoder = create_encoder("resnet18", 32, stem_padding=2)
    detector = Detector(encoder, 3, False, architecture, SMALL).eval()
    with torch.no_grad():
        maps = detector.backbone(torch.zeros(1, 3, 64, 96)).values()
    assert [tuple(found.shape[2:]) for found in maps] == [(64 // stride, 96 // stride) for stride in strides]
    (stem,) = (m for n, m in detector.backbone.named_modules() if n.endswith("conv1") and n.count(".") < 2)
    assert torch.equal(stem.weight, encoder.backbone.conv1.weight)
