"""The C4 architecture, detectron2's R50-C4 (Res5ROIHeads) as in MoCo's protocol, which torchvision lacks.

All layers are trained. RoIAlign extracts 14 x 14 cells from res4 (stride 16); res5 and BatchNorm give maps of 7 x 7.
Boxes are predicted from their mean, masks by one deconvolution.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import RoIAlign
from torchvision.ops._utils import convert_boxes_to_roi_format

from mec.evaluate.detection.schedules import Schedule
from mec.models.encoder import Encoder

ANCHOR_SIZES, ANCHOR_RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
ROI_SIZE = 14
MASK_CHANNELS = 256
PRE_NMS_TOP_N = {"training": 12_000, "testing": 6_000}
ROI_CHUNK_SIZE = 256  # regions in a forward pass of res5 at inference: all 1,000 at once would take several GB


def build_c4(
    encoder: Encoder, num_classes: int, masks: bool, schedule: Schedule
) -> tuple[nn.Module, RegionProposalNetwork, RoIHeads]:
    """Build backbone, RPN and heads from a copy of the encoder."""
    resnet: Any = copy.deepcopy(encoder.backbone)
    backbone = C4Backbone(resnet)
    with torch.no_grad():
        (feature_map,) = backbone.eval()(torch.zeros(1, encoder.spec.channels, 64, 64)).values()
    channels, stride = feature_map.shape[1], 64 // feature_map.shape[2]
    anchor_generator = AnchorGenerator((ANCHOR_SIZES,), (ANCHOR_RATIOS,))
    anchor_generator.cell_anchors = [_unrounded_anchors()]
    rpn = L1RegionProposalNetwork(
        anchor_generator,
        RPNHead(channels, anchor_generator.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=schedule.rpn_batch_size_per_image,
        positive_fraction=0.5,
        pre_nms_top_n=PRE_NMS_TOP_N,
        post_nms_top_n={"training": schedule.rpn_post_nms_top_n_train, "testing": schedule.rpn_post_nms_top_n_test},
        nms_thresh=0.7,
    )
    batch_size = schedule.box_batch_size_per_image
    return backbone, rpn, C4RoIHeads(resnet.layer4, resnet.num_features, stride, num_classes, masks, batch_size)


def _unrounded_anchors() -> Tensor:
    """Return the anchors (15, 4), not rounded to whole pixels as torchvision's are, as in detectron2."""
    sizes, ratio_roots = torch.tensor(ANCHOR_SIZES).float(), torch.tensor(ANCHOR_RATIOS).sqrt()
    heights, widths = (ratio_roots[:, None] * sizes).flatten(), (sizes / ratio_roots[:, None]).flatten()
    return torch.stack([-widths, -heights, widths, heights], 1) / 2


class C4Backbone(nn.Module):
    """conv1 to res4: (n, c, h, w) -> one feature map, (n, 1024, h / 16, w / 16) for a ResNet-50."""

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1, self.maxpool = resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool
        self.layer1, self.layer2, self.layer3 = resnet.layer1, resnet.layer2, resnet.layer3

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        return {"res4": self.layer3(self.layer2(self.layer1(x)))}


class L1RegionProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's, with detectron2's box loss: L1, where torchvision's is smooth near 0."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (torch.cat(masks) > 0 for masks in self.fg_bg_sampler(labels))
        sampled = positive | negative
        box_error = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        objectness_loss = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], torch.cat(labels)[sampled])
        return objectness_loss, box_error / sampled.sum()


class BoxPredictor(nn.Module):
    """(n, channels) -> logits (n, 1 + num_classes), background first, and deltas (n, 4 (1 + num_classes)), constant
    zeros for the background, which has no box."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(channels, 1 + num_classes), nn.Linear(channels, 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), F.pad(self.bbox_pred(x), (4, 0))


class C4RoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's matching, sampling and postprocessing, with res5 shared by boxes and masks."""

    def __init__(
        self, res5: nn.Sequential, channels: int, stride: int, num_classes: int, masks: bool, batch_size_per_image: int
    ) -> None:
        super().__init__(
            box_roi_pool=None,
            box_head=None,
            box_predictor=BoxPredictor(channels, num_classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=batch_size_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
        )
        self.roi_align = RoIAlign(ROI_SIZE, 1 / stride, sampling_ratio=0, aligned=True)
        self.res5 = nn.Sequential(OrderedDict([*res5.named_children(), ("norm", nn.BatchNorm2d(channels))]))
        if masks:
            self.mask_predictor = MaskRCNNPredictor(channels, MASK_CHANNELS, num_classes)
            nn.init.normal_(self.mask_predictor.mask_fcn_logits.weight, std=0.001)

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Any, targets: Any = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        (feature_map,) = features.values()
        if self.training:
            return [], self._losses(feature_map, proposals, targets)
        logits, deltas = self.box_predictor(
            torch.cat([self.res5(x).mean((2, 3)) for x in self._pool(feature_map, proposals)])
        )
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        detections = [
            dict(zip(("boxes", "scores", "labels"), values, strict=True))
            for values in zip(boxes, scores, labels, strict=True)
        ]
        if self.mask_predictor is not None:
            # pooled from the predicted boxes, no longer from the proposals
            mask_logits = torch.cat([self.mask_predictor(self.res5(x)) for x in self._pool(feature_map, boxes)])
            masks = maskrcnn_inference(mask_logits, [n - 1 for n in labels])
            for image_detections, image_masks in zip(detections, masks, strict=True):
                image_detections["masks"] = image_masks
        return detections, {}

    def _losses(self, feature_map: Tensor, proposals: list[Tensor], targets: Any) -> dict[str, Tensor]:
        proposals, matched_indices, labels, box_targets = self.select_training_samples(proposals, targets)
        (pooled,) = self._pool(feature_map, proposals)
        x = self.res5(pooled)
        logits, deltas = self.box_predictor(x.mean((2, 3)))
        all_labels = torch.cat(labels)
        positive = all_labels > 0
        deltas_of_label = deltas.view(len(deltas), -1, 4)[positive, all_labels[positive]]
        box_error = F.l1_loss(deltas_of_label, torch.cat(box_targets)[positive], reduction="sum")
        losses = {"loss_classifier": F.cross_entropy(logits, all_labels), "loss_box_reg": box_error / len(all_labels)}
        if self.mask_predictor is not None:
            is_positive = [image_labels > 0 for image_labels in labels]
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(x[positive]),
                # torchvision crops the target masks with the unaligned RoIAlign, which adds half a pixel to x and y
                [boxes[mask] - 0.5 for boxes, mask in zip(proposals, is_positive, strict=True)],
                [t["masks"] for t in targets],
                [t["labels"] - 1 for t in targets],
                [indices[mask] for indices, mask in zip(matched_indices, is_positive, strict=True)],
            )
        return losses

    def _pool(self, feature_map: Tensor, boxes: list[Tensor]) -> list[Tensor]:
        """Extract (k, channels, 14, 14) from all boxes, in one tensor for training and in chunks at inference."""
        rois = convert_boxes_to_roi_format(boxes)
        chunks = (rois,) if self.training else rois.split(ROI_CHUNK_SIZE)
        return [self.roi_align(feature_map, chunk) for chunk in chunks]
