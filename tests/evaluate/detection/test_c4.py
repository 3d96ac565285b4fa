from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mec.evaluate.detection import c4
from mec.evaluate.detection.c4 import BoxPredictor, C4RoIHeads, build_c4
from mec.evaluate.detection.detectors import Detector
from mec.evaluate.detection.schedules import SCHEDULES
from mec.models import create_encoder
from tests.evaluate.detection.scenes import (
    NARROW_RESNET,
    SMALL,
    confident_detector,
    make_targets,
    random_images,
    tiny_encoder,
)


@pytest.mark.parametrize(("num_classes", "masks", "num_parameters"), [(20, False, 33_234_160), (80, True, 35_966_828)])
def test_parameters_match_detectron2(num_classes: int, masks: bool, num_parameters: int) -> None:
    """MoCo's detectors for VOC and for COCO, with detectron2's number of parameters."""
    with torch.device("meta"):
        detector = Detector(create_encoder("resnet50"), num_classes, masks, "c4", SCHEDULES["coco-2x"])
    assert sum(p.numel() for p in detector.parameters()) == num_parameters
    heads = {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items() if "predictor" in name}
    assert heads["roi_heads.box_predictor.cls_score.weight"] == (num_classes + 1, 2048)
    assert heads["roi_heads.box_predictor.bbox_pred.weight"] == (4 * num_classes, 2048)
    if masks:
        assert heads["roi_heads.mask_predictor.conv5_mask.weight"] == (2048, 256, 2, 2)
        assert heads["roi_heads.mask_predictor.mask_fcn_logits.weight"] == (num_classes, 256, 1, 1)


def test_settings_match_detectron2() -> None:
    with torch.device("meta"):
        detector = Detector(create_encoder("resnet50"), 20, False, "c4", SCHEDULES["voc07+12"])
    rpn, heads = detector.rpn, detector.roi_heads
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (
        {"training": 12000, "testing": 6000},
        {"training": 2000, "testing": 1000},
    )
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold, rpn.nms_thresh) == (0.7, 0.3, 0.7)
    assert (heads.proposal_matcher.high_threshold, heads.proposal_matcher.low_threshold) == (0.5, 0.5)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert (rpn.box_coder.weights, heads.box_coder.weights) == ((1, 1, 1, 1), (10, 10, 5, 5))


def test_shapes_and_gradients_of_bottleneck_blocks() -> None:
    """res5 reduces 14 x 14 to 7 x 7; all parameters are trained, no norm is frozen."""
    torch.manual_seed(0)
    encoder = create_encoder("resnet50", options={"layers": [1, 1, 1, 1]})
    detector = Detector(encoder, 5, True, "c4", SMALL).train()
    heads, shapes = detector.roi_heads, {}
    for name in ("res5", "box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor"):
        heads.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.update({name: (inputs[0].shape[1:], output.shape[1:])})
        )
    losses = detector(random_images((64, 64)), [make_targets()])
    assert shapes == {
        "res5": ((1024, 14, 14), (2048, 7, 7)),
        "box_predictor.cls_score": ((2048,), (6,)),
        "box_predictor.bbox_pred": ((2048,), (20,)),
        "mask_predictor": ((2048, 7, 7), (5, 14, 14)),
    }
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    sum(losses.values()).backward()
    assert [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 18  # one in the stem, four per stage, and the one after res5
    assert all(m.training and m.num_batches_tracked == 1 for m in norms)


def test_encoder_is_copied() -> None:
    encoder = tiny_encoder()
    detector = Detector(encoder, 3, False, "c4", SMALL)
    copied = dict(detector.backbone.named_parameters())
    copied |= {f"layer4.{name}": p for name, p in detector.roi_heads.res5.named_parameters() if "norm." not in name}
    original = dict(encoder.backbone.named_parameters())
    assert set(copied) == set(original)
    assert all(torch.equal(copied[name], p) for name, p in original.items())
    assert not {id(p) for p in copied.values()} & {id(p) for p in original.values()}


def test_anchors_are_not_rounded() -> None:
    """Height over width is the ratio, width times height the square of the size; torchvision rounds to pixels."""
    _, rpn, _ = build_c4(tiny_encoder(), 2, False, SMALL)
    (anchors,) = rpn.anchor_generator.cell_anchors
    sides = anchors[:, 2:] - anchors[:, :2]
    ratios, areas = torch.meshgrid(
        torch.tensor([0.5, 1, 2]), torch.tensor([32.0, 64, 128, 256, 512]) ** 2, indexing="ij"
    )
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], ratios.flatten())
    torch.testing.assert_close(sides.prod(1), areas.flatten())
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])


@pytest.mark.parametrize(
    ("backbone_name", "image_size", "stride"), [("resnet18", 224, 16), ("resnet26d", 224, 16), ("resnet18", 32, 4)]
)
def test_roi_align_is_at_the_coordinates_of_the_box(backbone_name: str, image_size: int, stride: int) -> None:
    """Pooling a map that holds the x and y of its cells' centers gives the centers of the 14 x 14 bins."""
    encoder = create_encoder(backbone_name, image_size, options=NARROW_RESNET)
    backbone, _, heads = build_c4(encoder, 2, False, SMALL)
    (feature_map,) = backbone(torch.zeros(1, 3, 160, 224)).values()
    assert feature_map.shape[2:] == (160 // stride, 224 // stride)
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * stride for n in feature_map.shape[2:]), indexing="ij")
    box = torch.tensor([[21.5, 30.25, 180.0, 121.0]])
    (pooled,) = heads.eval()._pool(torch.stack([x, y])[None], [box])
    x1, y1, x2, y2 = box[0]
    bins = (torch.arange(14) + 0.5) / 14
    torch.testing.assert_close(pooled[0, 0], (x1 + bins * (x2 - x1)).expand(14, 14), atol=1e-3, rtol=0)
    torch.testing.assert_close(pooled[0, 1], (y1 + bins * (y2 - y1))[:, None].expand(14, 14), atol=1e-3, rtol=0)


def test_rpn_losses_match_a_float64_reference() -> None:
    """Of 6 anchors in two images 4 are sampled, 2 of them positive."""
    _, rpn, _ = build_c4(tiny_encoder(), 2, False, SMALL)
    rng = np.random.default_rng(0)
    logits, deltas, targets = rng.normal(size=6), rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    labels = np.array([1.0, 0, -1, 1, 0, -1])
    logits_, deltas_, labels_, targets_ = (
        torch.tensor(values, dtype=torch.float32) for values in (logits[:, None], deltas, labels, targets)
    )
    objectness_loss, box_loss = rpn.compute_loss(logits_, deltas_, labels_.chunk(2), targets_.chunk(2))
    cross_entropy = np.log1p(np.exp(-np.where(labels == 1, logits, -logits)))
    assert objectness_loss.item() == pytest.approx(cross_entropy[labels >= 0].mean(), rel=1e-5)
    assert box_loss.item() == pytest.approx(np.abs(deltas - targets)[labels == 1].sum() / 4, rel=1e-5)


def test_head_losses_match_a_float64_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five regions, three of them positive; the mask's edge lies between the 7th and 8th of 14 cells of 2 px."""
    num_classes, labels = 3, np.array([0, 2, 1, 0, 3])
    rng = np.random.default_rng(0)
    logits, deltas, box_targets = rng.normal(size=(5, 4)), rng.normal(size=(5, 12)), rng.normal(size=(5, 4))
    mask_logits = rng.normal(size=(3, num_classes, 14, 14))
    heads = C4RoIHeads(nn.Sequential(nn.Identity()), 8, 16, num_classes, True, 8).train()
    padded_deltas = np.concatenate([np.zeros((5, 4)), deltas], 1)
    heads.box_predictor = Constant(logits, padded_deltas)
    heads.mask_predictor = Constant(mask_logits)
    boxes, masks = torch.tensor([[10.0, 10, 38, 38]]).repeat(5, 1), torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[1, :, 24:] = 1
    samples = (
        [boxes],
        [torch.ones(5, dtype=torch.int64)],
        [torch.tensor(labels)],
        [torch.tensor(box_targets).float()],
    )
    monkeypatch.setattr(heads, "select_training_samples", lambda *_: samples)
    _, losses = heads(
        {"res4": torch.rand(1, 8, 4, 4)}, [boxes], [(64, 64)], [{"labels": torch.tensor([2, 2]), "masks": masks}]
    )
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(probabilities[np.arange(5), labels]).mean()
    assert losses["loss_classifier"].item() == pytest.approx(expected, rel=1e-5)
    error = sum(np.abs(deltas[i, 4 * n - 4 : 4 * n] - box_targets[i]).sum() for i, n in enumerate(labels) if n)
    assert losses["loss_box_reg"].item() == pytest.approx(error / 5, rel=1e-5)
    signs = np.where(np.arange(14) >= 7, 1, -1)
    cross_entropy = np.log1p(np.exp(-signs * mask_logits[:, 1]))  # the object is of the second class
    assert losses["loss_mask"].item() == pytest.approx(cross_entropy.mean(), rel=1e-5)


def test_background_is_the_first_class_and_has_no_box() -> None:
    predictor, x = BoxPredictor(8, 3), torch.randn(5, 8)
    logits, deltas = predictor(x)
    assert logits.shape == (5, 4)
    assert deltas.shape == (5, 16)
    assert not deltas[:, :4].any()
    deltas_of_last_class = x @ predictor.bbox_pred.weight[8:].T  # the biases are initialized with zeros
    torch.testing.assert_close(deltas[:, 12:], deltas_of_last_class)


class Constant(nn.Module):
    """A layer that ignores its input."""

    def __init__(self, *values: Any) -> None:
        super().__init__()
        self.values = [torch.tensor(value, dtype=torch.float32) for value in values]

    def forward(self, x: Tensor) -> Any:
        return self.values[0] if len(self.values) == 1 else tuple(self.values)


def test_chunks_of_regions_do_not_change_the_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, images = confident_detector(), random_images((64, 96), (96, 64))
    with torch.no_grad():
        expected = detector(images)
        monkeypatch.setattr(c4, "ROI_CHUNK_SIZE", 7)
        chunked = detector(images)
    for a, b in zip(expected, chunked, strict=True):
        assert len(a["boxes"]) > 7
        assert a["masks"].shape == (len(a["boxes"]), 1, 14, 14)
        for name, values in a.items():
            torch.testing.assert_close(b[name], values, atol=1e-4, rtol=1e-4)


def test_no_detections_have_empty_masks() -> None:
    detector = confident_detector()
    nn.init.constant_(detector.roi_heads.box_predictor.cls_score.bias, 0)
    detector.roi_heads.box_predictor.cls_score.weight.data.zero_()
    detector.roi_heads.box_predictor.cls_score.bias.data[0] = 9  # background everywhere
    with torch.no_grad():
        detections = detector(random_images((64, 64), (64, 64)))
    assert [{name: tuple(value.shape) for name, value in d.items()} for d in detections] == [
        {"boxes": (0, 4), "labels": (0,), "scores": (0,), "masks": (0, 1, 14, 14)}
    ] * 2
