from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mec.errors import InputError
from mec.evaluate.detection import c4
from mec.evaluate.detection.c4 import BoxPredictor, C4Heads, c4_parts
from mec.evaluate.detection.network import Detector, architecture_for
from mec.evaluate.detection.schedules import SCHEDULES
from mec.models import create_encoder
from tests.evaluate.detection.detectron2_names import as_published, published

SMALL = replace(SCHEDULES["short"], anchors=32, regions=8, proposals=20, proposals_at_test=20)


def targets(masks: bool = True) -> dict[str, Tensor]:
    """Two objects in an image of 64 x 64."""
    found = {"boxes": torch.tensor([[4.0, 6, 40, 38], [20, 24, 60, 64]]), "labels": torch.tensor([1, 3])}
    if masks:
        found["masks"] = torch.zeros(2, 64, 64, dtype=torch.uint8)
        found["masks"][0, 6:38, 4:40] = found["masks"][1, 24:64, 30:60] = 1
    return found


def detecting(masks: bool = True, seed: int = 0) -> Detector:
    """A ResNet-18 with weights under which some classes are certain: untrained, nothing passes the threshold."""
    torch.manual_seed(seed)
    detector = Detector(create_encoder("resnet18"), 3, masks, "c4", SMALL)
    nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=1)
    return detector.eval()


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


@pytest.mark.parametrize(("classes", "masks", "parameters"), [(20, False, 33_234_160), (80, True, 35_966_828)])
def test_the_published_network(classes: int, masks: bool, parameters: int) -> None:
    """MoCo's for VOC and for COCO, whose parameters detectron2 counts so."""
    with torch.device("meta"):
        detector = Detector(create_encoder("resnet50"), classes, masks, "c4", SCHEDULES["coco-2x"])
    assert sum(p.numel() for p in detector.parameters()) == parameters
    found = {name: tuple(tensor.shape) for name, tensor in as_published(detector.state_dict()).items()}
    assert found == published(classes, masks)


def test_its_settings_are_detectron2s() -> None:
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


def test_shapes_and_gradients_of_a_resnet_50() -> None:
    """res5 takes 14 x 14 and gives 7 x 7; all parameters are learned, no norm is frozen."""
    torch.manual_seed(0)
    detector = Detector(create_encoder("resnet50"), 5, True, "c4", SMALL).train()
    heads, shapes = detector.roi_heads, {}
    for name in ("res5", "box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor"):
        heads.get_submodule(name).register_forward_hook(
            lambda module, given, found, name=name: shapes.update({name: (given[0].shape[1:], found.shape[1:])})
        )
    losses = detector(images((64, 64)), [targets()])
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
    assert len(norms) == 54  # 53 of a ResNet-50
    assert all(m.training and m.num_batches_tracked == 1 for m in norms)


def test_the_encoder_is_copied() -> None:
    encoder = create_encoder("resnet18")
    detector = Detector(encoder, 3, False, "c4", SMALL)
    stages = dict(detector.backbone.named_parameters())
    stages |= {f"layer4.{name}": p for name, p in detector.roi_heads.res5.named_parameters() if "norm." not in name}
    own = dict(encoder.backbone.named_parameters())
    assert set(stages) == set(own)
    assert all(torch.equal(stages[name], p) for name, p in own.items())
    assert not {id(p) for p in stages.values()} & {id(p) for p in own.values()}


@pytest.mark.parametrize(
    ("backbone", "side", "stride"), [("resnet18", 224, 16), ("resnet26d", 224, 16), ("resnet18", 32, 4)]
)
def test_regions_are_where_their_boxes_are(backbone: str, side: int, stride: int) -> None:
    """A map holding the x and y of its cells' centers, pooled: the centers of the 14 x 14 bins."""
    encoder = create_encoder(backbone, side)
    trunk, _, heads = c4_parts(encoder, 2, False, SMALL)
    (seen,) = trunk(torch.zeros(1, 3, 160, 224)).values()
    assert seen.shape[2:] == (160 // stride, 224 // stride)
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * stride for n in seen.shape[2:]), indexing="ij")
    box = torch.tensor([[21.5, 30.25, 180.0, 121.0]])
    (pooled,) = heads.eval()._regions(torch.stack([x, y])[None], [box])
    x1, y1, x2, y2 = box[0]
    bins = (torch.arange(14) + 0.5) / 14
    torch.testing.assert_close(pooled[0, 0], (x1 + bins * (x2 - x1)).expand(14, 14), atol=1e-3, rtol=0)
    torch.testing.assert_close(pooled[0, 1], (y1 + bins * (y2 - y1))[:, None].expand(14, 14), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("side", "size", "square"), [(224, 256, (160, 96)), (32, 64, (40, 24))])
def test_an_object_is_seen_in_the_region_over_it(side: int, size: int, square: tuple[int, int]) -> None:
    """A white square on black changes what is pooled over it most."""
    torch.manual_seed(0)
    trunk, _, heads = c4_parts(create_encoder("resnet18", side), 2, False, SMALL)
    (left, top), wide = square, size // 8
    shown = torch.zeros(2, 3, size, size)
    shown[1, :, top : top + wide, left : left + wide] = 5
    (found,) = trunk.eval()(shown).values()
    changed = (found[1] - found[0]).abs()[None]
    places = [(x, y) for y in range(0, size, wide) for x in range(0, size, wide)]
    boxes = torch.tensor([[x, y, x + wide, y + wide] for x, y in places]).float()
    (pooled,) = heads.eval()._regions(changed, [boxes])
    assert places[int(pooled.mean((1, 2, 3)).argmax())] == square


def test_losses_of_proposals() -> None:
    """Of 6 anchors in two images 4 are sampled, 2 of them objects; by hand in float64."""
    _, rpn, _ = c4_parts(create_encoder("resnet18"), 2, False, SMALL)
    rng = np.random.default_rng(0)
    logits, deltas, wanted = rng.normal(size=6), rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    labels = np.array([1.0, 0, -1, 1, 0, -1])
    given = [torch.tensor(part, dtype=torch.float32) for part in (logits[:, None], deltas, labels, wanted)]
    of_logits, of_boxes = rpn.compute_loss(given[0], given[1], given[2].chunk(2), given[3].chunk(2))
    right = np.log1p(np.exp(-np.where(labels == 1, logits, -logits)))
    assert of_logits.item() == pytest.approx(right[labels >= 0].mean(), rel=1e-5)
    assert of_boxes.item() == pytest.approx(np.abs(deltas - wanted)[labels == 1].sum() / 4, rel=1e-5)


def test_losses_of_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five regions, three of them objects; the mask's edge lies between the 7th and 8th of 14 cells of 2 px."""
    classes, labels = 3, np.array([0, 2, 1, 0, 3])
    rng = np.random.default_rng(0)
    logits, deltas, wanted = rng.normal(size=(5, 4)), rng.normal(size=(5, 12)), rng.normal(size=(5, 4))
    cells = rng.normal(size=(3, classes, 14, 14))
    heads = C4Heads(nn.Sequential(nn.Identity()), 8, 16, classes, True, 8).train()
    padded = np.concatenate([np.zeros((5, 4)), deltas], 1)
    heads.box_predictor = Says(logits, padded)
    heads.mask_predictor = Says(cells)
    boxes, masks = torch.tensor([[10.0, 10, 38, 38]]).repeat(5, 1), torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[1, :, 24:] = 1
    sampled = [boxes], [torch.ones(5, dtype=torch.int64)], [torch.tensor(labels)], [torch.tensor(wanted).float()]
    monkeypatch.setattr(heads, "select_training_samples", lambda *given: sampled)
    _, losses = heads(
        {"res4": torch.rand(1, 8, 4, 4)}, [boxes], [(64, 64)], [{"labels": torch.tensor([2, 2]), "masks": masks}]
    )
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert losses["loss_classifier"].item() == pytest.approx(-np.log(likely[np.arange(5), labels]).mean(), rel=1e-5)
    error = sum(np.abs(deltas[i, 4 * n - 4 : 4 * n] - wanted[i]).sum() for i, n in enumerate(labels) if n)
    assert losses["loss_box_reg"].item() == pytest.approx(error / 5, rel=1e-5)
    signs = np.where(np.arange(14) >= 7, 1, -1)
    right = np.log1p(np.exp(-signs * cells[:, 1]))  # the object's class is the second
    assert losses["loss_mask"].item() == pytest.approx(right.mean(), rel=1e-5)


def test_the_background_is_first_and_has_no_box() -> None:
    predictor, x = BoxPredictor(8, 3), torch.randn(5, 8)
    logits, deltas = predictor(x)
    assert logits.shape == (5, 4)
    assert deltas.shape == (5, 16)
    assert not deltas[:, :4].any()
    of_last = x @ predictor.bbox_pred.weight[8:].T  # the biases begin as zeros
    torch.testing.assert_close(deltas[:, 12:], of_last)


class Says(nn.Module):
    """A layer that gives the same whatever comes."""

    def __init__(self, *values: Any) -> None:
        super().__init__()
        self.values = [torch.tensor(value, dtype=torch.float32) for value in values]

    def forward(self, x: Tensor) -> Any:
        return self.values[0] if len(self.values) == 1 else tuple(self.values)


def test_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, shown = detecting(), images((64, 96), (96, 64))
    with torch.no_grad():
        whole = detector(shown)
        monkeypatch.setattr(c4, "REGIONS_AT_ONCE", 7)
        parts = detector(shown)
    for a, b in zip(whole, parts, strict=True):
        assert len(a["boxes"]) > 7
        assert a["masks"].shape == (len(a["boxes"]), 1, 14, 14)
        for name, found in a.items():
            torch.testing.assert_close(b[name], found, atol=1e-4, rtol=1e-4)


def test_what_is_found_lies_within_its_image_best_first() -> None:
    """However much the image is padded: the second is larger both ways."""
    sizes = ((40, 70), (96, 128))
    with torch.no_grad():
        found = detecting(masks=False)(images(*sizes))
    for (height, width), one in zip(sizes, found, strict=True):
        assert len(one["boxes"]) > 0
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert set(one["labels"].tolist()) <= {1, 2, 3}
        assert all(a >= b for a, b in pairwise(one["scores"].tolist()))


def test_nothing_found_has_masks_of_nothing() -> None:
    detector = detecting()
    nn.init.constant_(detector.roi_heads.box_predictor.cls_score.bias, 0)
    detector.roi_heads.box_predictor.cls_score.weight.data.zero_()
    detector.roi_heads.box_predictor.cls_score.bias.data[0] = 9  # background everywhere
    with torch.no_grad():
        found = detector(images((64, 64), (64, 64)))
    assert [{name: tuple(value.shape) for name, value in one.items()} for one in found] == [
        {"boxes": (0, 4), "labels": (0,), "scores": (0,), "masks": (0, 1, 14, 14)}
    ] * 2


def test_images_are_joined_at_the_top_left() -> None:
    encoder = create_encoder("resnet18", mean=(0.5, 0.25, 0.125), std=(0.5, 1, 2))
    shown = images((40, 70), (33, 20))
    joined = Detector(encoder, 2, False, "c4", SMALL)._joined([shown[0], shown[1].float() / 255])
    assert joined.tensors.shape == (2, 3, 64, 96)
    assert joined.image_sizes == [(40, 70), (33, 20)]
    for padded, image in zip(joined.tensors.numpy(), shown, strict=True):
        expected = np.zeros((3, 64, 96))
        normal = (image.numpy() / 255 - np.reshape([0.5, 0.25, 0.125], (3, 1, 1))) / np.reshape([0.5, 1, 2], (3, 1, 1))
        expected[:, : image.shape[1], : image.shape[2]] = normal
        np.testing.assert_allclose(padded, expected, atol=1e-6)


def test_boxes_and_losses_are_float32_where_the_layers_are_bfloat16() -> None:
    detector, seen = detecting(), set()
    detector.roi_heads.res5.register_forward_hook(lambda module, given, found: seen.add(found.dtype))
    detector.rpn.head.register_forward_hook(lambda module, given, found: seen.update({x.dtype for x in found[0]}))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            (found,) = detector(images((64, 64)))
        losses = detector.train()(images((64, 64)), [targets()])
    assert seen == {torch.bfloat16, torch.float32}
    assert {found[name].dtype for name in ("boxes", "scores", "masks")} == {torch.float32}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize(
    ("backbone", "asked", "expected"),
    [
        ("resnet18", None, "c4"),
        ("resnet18", "fpn", "fpn"),
        ("resnet18", "c4", "c4"),
        ("test_vit", None, "fpn"),
        ("test_vit", "fpn", "fpn"),
    ],
)
def test_which_architecture(backbone: str, asked: str | None, expected: str) -> None:
    assert architecture_for(create_encoder(backbone), asked) == expected


@pytest.mark.parametrize(
    ("backbone", "asked", "message"),
    [
        ("test_vit", "c4", "c4 is made of a ResNet's stages, test_vit has none; take fpn"),
        ("resnet18", "C4", "expected c4 or fpn, got 'C4'"),
    ],
)
def test_architectures_that_cannot_be(backbone: str, asked: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        architecture_for(create_encoder(backbone), asked)
    assert str(error.value) == f"architecture: {message}"
