"""The C4 variant: conv1 to res4 of a ResNet as the backbone, res5 with one more BatchNorm on each region.

It is detectron2's R50-C4 (Res5ROIHeads) as MoCo's protocol has it: all layers trained, RoIAlign 14 x 14 from the map
of stride 16, res5 halves it to 7 x 7, BatchNorm after it, its mean goes to the box predictor; masks are predicted from
the same 7 x 7 maps by one deconvolution. torchvision has the parts, but no detector of this form.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import RoIAlign
from torchvision.ops._utils import convert_boxes_to_roi_format

from mec.evaluate.detection.schedules import Schedule
from mec.models.encoder import Encoder

ANCHOR_SIDES, ANCHOR_RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
REGION = 14
MASK_CHANNELS = 256
BEFORE_NMS = {"training": 12_000, "testing": 6_000}
REGIONS_AT_ONCE = 256
"""Regions that go through res5 together where no gradient is kept: 1,000 would take some gigabytes."""


def is_resnet(encoder: Encoder) -> bool:
    return isinstance(encoder.backbone, ResNet)


def c4_parts(
    encoder: Encoder, classes: int, masks: bool, schedule: Schedule
) -> tuple[nn.Module, RegionProposalNetwork, RoIHeads]:
    """Backbone, proposals and heads; the encoder is copied."""
    resnet: Any = copy.deepcopy(encoder.backbone)
    trunk = Trunk(resnet)
    with torch.no_grad():
        (seen,) = trunk.eval()(torch.zeros(1, encoder.spec.channels, 64, 64)).values()
    channels, stride = seen.shape[1], 64 // seen.shape[2]
    anchors = _Anchors((ANCHOR_SIDES,), (ANCHOR_RATIOS,))
    rpn = _Proposals(
        anchors, RPNHead(channels, anchors.num_anchors_per_location()[0]), 0.7, 0.3, schedule.anchors, 0.5, BEFORE_NMS,
        {"training": schedule.proposals, "testing": schedule.proposals_at_test}, 0.7,
    )  # fmt: skip
    return trunk, rpn, C4Heads(resnet.layer4, resnet.num_features, stride, classes, masks, schedule.regions)


class Trunk(nn.Module):
    """conv1 to res4: (n, c, h, w) -> one map (n, 1024, h / 16, w / 16) of a ResNet-50."""

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1, self.maxpool = resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool
        self.layer1, self.layer2, self.layer3 = resnet.layer1, resnet.layer2, resnet.layer3

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        return {"res4": self.layer3(self.layer2(self.layer1(x)))}


class _Anchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's, whose edges it rounds to whole pixels, as detectron2 has them."""

    def generate_anchors(
        self, scales: Any, aspect_ratios: Any, dtype: Any = torch.float32, device: Any = "cpu"
    ) -> Tensor:
        sides, ratios = (torch.tensor(given, dtype=dtype, device=device) for given in (scales, aspect_ratios))
        heights = (ratios.sqrt()[:, None] * sides).flatten()
        widths = (sides / ratios.sqrt()[:, None]).flatten()
        return torch.stack([-widths, -heights, widths, heights], 1) / 2


class _Proposals(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's, with detectron2's loss: the absolute error of the boxes, not smoothed near 0."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (torch.cat(chosen) for chosen in self.fg_bg_sampler(labels))
        sampled = (positive > 0) | (negative > 0)
        positive = positive > 0
        error = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        objects = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], torch.cat(labels)[sampled])
        return objects, error / sampled.sum()


class BoxPredictor(nn.Module):
    """(n, channels) -> logits (n, 1 + classes), the background first, and deltas (n, 4 (1 + classes)).

    The background has no box: its deltas are zeros, not predictions.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(channels, 1 + classes), nn.Linear(channels, 4 * classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), F.pad(self.bbox_pred(x), (4, 0))


class C4Heads(RoIHeads):  # type: ignore[misc]
    """torchvision's matching, sampling and choice of detections; res5 of each region for boxes and masks alike."""

    def __init__(
        self, res5: nn.Sequential, channels: int, stride: int, classes: int, masks: bool, regions: int
    ) -> None:
        super().__init__(None, None, BoxPredictor(channels, classes), 0.5, 0.5, regions, 0.25, None, 0.05, 0.5, 100)
        self.align = RoIAlign(REGION, 1 / stride, sampling_ratio=0, aligned=True)
        self.res5 = nn.Sequential(OrderedDict([*res5.named_children(), ("norm", nn.BatchNorm2d(channels))]))
        if masks:
            self.mask_predictor = MaskRCNNPredictor(channels, MASK_CHANNELS, classes)
            nn.init.normal_(self.mask_predictor.mask_fcn_logits.weight, std=0.001)

    def has_mask(self) -> bool:
        return self.mask_predictor is not None

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        (feature,) = features.values()
        if self.training:
            return [], self._losses(feature, proposals, targets)
        logits, deltas = self.box_predictor(
            torch.cat([self.res5(x).mean((2, 3)) for x in self._regions(feature, proposals)])
        )
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        found = [{"boxes": b, "labels": n, "scores": s} for b, n, s in zip(boxes, labels, scores, strict=True)]
        if self.has_mask():
            # from the boxes as they are now, no longer from the proposals
            mask_logits = torch.cat([self.mask_predictor(self.res5(x)) for x in self._regions(feature, boxes)])
            masks = maskrcnn_inference(mask_logits, [n - 1 for n in labels])
            for one, mask in zip(found, masks, strict=True):
                one["masks"] = mask
        return found, {}

    def _losses(self, feature: Tensor, proposals: list[Tensor], targets: Any) -> dict[str, Tensor]:
        proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
        (regions,) = self._regions(feature, proposals)
        x = self.res5(regions)
        logits, deltas = self.box_predictor(x.mean((2, 3)))
        joined = torch.cat(labels)
        positive = joined > 0
        own = deltas.view(len(deltas), -1, 4)[positive, joined[positive]]
        error = F.l1_loss(own, torch.cat(wanted)[positive], reduction="sum")
        losses = {"loss_classifier": F.cross_entropy(logits, joined), "loss_box_reg": error / len(joined)}
        if self.has_mask():
            of_objects = [n > 0 for n in labels]
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(x[positive]),
                # it crops the masks by the older RoIAlign, which sees an image half a pixel further right and below
                [boxes[chosen] - 0.5 for boxes, chosen in zip(proposals, of_objects, strict=True)],
                [t["masks"] for t in targets],
                [t["labels"] - 1 for t in targets],
                [numbers[chosen] for numbers, chosen in zip(matched, of_objects, strict=True)],
            )
        return losses

    def _regions(self, feature: Tensor, boxes: list[Tensor]) -> list[Tensor]:
        """(n, channels, 14, 14) of all boxes, in parts where no gradient is kept."""
        rois = convert_boxes_to_roi_format(boxes)
        parts = (rois,) if self.training else rois.split(REGIONS_AT_ONCE)
        return [self.align(feature, part) for part in parts]
