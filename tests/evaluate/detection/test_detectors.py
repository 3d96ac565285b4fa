import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from safetensors.torch import save_file
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import Rle
from mec.evaluate.detection.detectors import (
    Detector,
    DetectorSpec,
    load_detector,
    paste_masks,
    resolve_architecture,
    save_detector,
)
from mec.evaluate.detection.loaders import decode_masks
from mec.models import create_encoder
from tests.evaluate.detection.scenes import QUICK, SMALL, confident_detector, make_targets, random_images, tiny_encoder


@pytest.mark.parametrize(("architecture", "strides"), [("c4", [4]), ("fpn", [1, 2, 4, 8, 16])])
def test_stem_padding_of_two_is_reduced_to_one(architecture: Any, strides: list[int]) -> None:
    """Other projects train encoders of small images with a stem padding of 2; strides would not be whole numbers."""
    encoder = create_encoder("resnet18", 32, stem_padding=2, options={"channels": [16, 16, 32, 32]})
    detector = Detector(encoder, 3, False, architecture, SMALL).eval()
    with torch.no_grad():
        maps = detector.backbone(torch.zeros(1, 3, 64, 96)).values()
    assert [tuple(feature_map.shape[2:]) for feature_map in maps] == [(64 // s, 96 // s) for s in strides]
    (stem,) = (m for n, m in detector.backbone.named_modules() if n.endswith("conv1") and n.count(".") < 2)
    assert torch.equal(stem.weight, encoder.backbone.conv1.weight)


def test_batched_images_are_padded_at_the_right_and_bottom() -> None:
    detector = Detector(tiny_encoder(), 2, False, "c4", SMALL)
    mean, std = np.reshape([0.5, 0.25, 0.125], (3, 1, 1)), np.reshape([0.5, 1, 2], (3, 1, 1))
    detector.mean, detector.std = torch.tensor(mean)[None].float(), torch.tensor(std)[None].float()
    images = random_images((40, 70), (33, 20))
    batch = detector._batch_images([images[0], images[1].float() / 255])
    assert batch.tensors.shape == (2, 3, 64, 96)
    assert batch.image_sizes == [(40, 70), (33, 20)]
    for padded, image in zip(batch.tensors.numpy(), images, strict=True):
        expected = np.zeros((3, 64, 96))
        expected[:, : image.shape[1], : image.shape[2]] = (image.numpy() / 255 - mean) / std
        np.testing.assert_allclose(padded, expected, atol=1e-6)


@pytest.mark.parametrize(("architecture", "masks", "mask_size"), [("c4", False, 0), ("fpn", True, 28)])
def test_detections_are_within_their_image_and_sorted_by_score(architecture: Any, masks: bool, mask_size: int) -> None:
    """Padding does not matter: the second image is larger in both dimensions."""
    sizes = ((40, 70), (96, 128))
    with torch.no_grad():
        detections = confident_detector(masks, architecture)(random_images(*sizes))
    for (height, width), image_detections in zip(sizes, detections, strict=True):
        boxes = image_detections["boxes"]
        assert len(boxes) > 0
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert set(image_detections["labels"].tolist()) <= {1, 2, 3}
        assert all(a >= b for a, b in pairwise(image_detections["scores"].tolist()))
        assert not masks or image_detections["masks"].shape == (len(boxes), 1, mask_size, mask_size)


@pytest.mark.parametrize("architecture", ["c4", "fpn"])
def test_boxes_and_losses_are_float32_under_bfloat16_autocast(architecture: Any) -> None:
    """Every parameter has a gradient, too. The height and width are no multiples of 16."""
    detector, dtypes = confident_detector(True, architecture), set()
    first_layer = next(m for m in detector.backbone.modules() if isinstance(m, torch.nn.Conv2d))
    first_layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    detector.rpn.head.register_forward_hook(lambda module, inputs, output: dtypes.update({x.dtype for x in output[0]}))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            (detections,) = detector(random_images((72, 88)))
        losses = detector.train()(random_images((72, 88)), [make_targets(72, 88)])
    assert dtypes == {torch.bfloat16, torch.float32}
    assert {detections[name].dtype for name in ("boxes", "scores", "masks")} == {torch.float32}
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_default_architecture_is_c4_for_resnets_only() -> None:
    resnet, vit = tiny_encoder(), create_encoder("test_vit")
    for architecture, expected in ((None, "c4"), ("c4", "c4"), ("fpn", "fpn")):
        assert resolve_architecture(resnet, architecture) == expected
    assert resolve_architecture(vit, None) == resolve_architecture(vit, "fpn") == "fpn"
    for encoder, architecture in ((vit, "c4"), (resnet, "C4")):
        with pytest.raises(InputError, match=r"^architecture: .*fpn"):
            resolve_architecture(encoder, architecture)


SPEC = DetectorSpec(tiny_encoder().spec, "c4", ["nut", "bolt"], [3, 9], False, QUICK)


def test_save_and_load_detector_are_inverse(tmp_path: Path) -> None:
    detector = SPEC.build(tiny_encoder())
    save_detector(detector, SPEC, tmp_path)
    loaded, spec = load_detector(tmp_path)
    assert asdict(spec) == asdict(SPEC)
    assert spec.schedule == QUICK
    assert not loaded.training
    for name, tensor in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_damaged_files_are_rejected_in_one_line(tmp_path: Path) -> None:
    save_detector(SPEC.build(), SPEC, tmp_path)
    weights, description = tmp_path / "detector.safetensors", tmp_path / "detector.json"
    original = description.read_text()

    def assert_rejected() -> None:
        with pytest.raises(InputError, match=r"^out: .*detector\.(safetensors|json)") as error:
            load_detector(tmp_path)
        assert len(str(error.value).splitlines()) == 1

    one_class = json.dumps(asdict(replace(SPEC, categories=["nut"], category_ids=[3])))
    for text in ("{", "[]", '{"encoder": 1, "schedule": {}}', '{"encoder": {}, "schedule": {}}', "\xff", one_class):
        description.write_text(text, encoding="latin-1")
        assert_rejected()
    description.unlink()
    assert_rejected()
    description.write_text(original)
    save_file({"x": torch.zeros(1)}, weights)
    assert_rejected()
    weights.write_bytes(b"")
    assert_rejected()
    weights.unlink()
    assert_rejected()


def encode(mask: NDArray[np.bool_]) -> Rle:
    rle: Rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return rle


def paste(probabilities: Tensor, box: list[float], size: tuple[int, int] = (12, 16)) -> NDArray[np.uint8]:
    """Paste one mask and decode it with pycocotools, the library of published results."""
    (mask,) = paste_masks(probabilities[None], np.array([box], np.float32), size)
    assert mask["size"] == list(size)
    pixels: NDArray[np.uint8] = coco_mask.decode(mask)
    return pixels


def rectangle(rows: slice, columns: slice, size: tuple[int, int] = (12, 16)) -> NDArray[np.uint8]:
    mask = np.zeros(size, np.uint8)
    mask[rows, columns] = 1
    return mask


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(13, 9), (26, 18), (5, 4), (20, 9)])
def test_decoded_masks_are_resized_by_the_nearest_pixel(size: tuple[int, int], flip: bool) -> None:
    """The value is that of the pixel in which the center of the new pixel lies."""
    masks = np.random.default_rng(0).random((3, 13, 9)) < 0.5
    decoded = decode_masks([encode(mask) for mask in masks], size, flip)
    assert decoded.dtype == torch.uint8
    rows, columns = ([int((i + 0.5) * old / new) for i in range(new)] for old, new in zip((13, 9), size, strict=True))
    expected = masks[:, rows][:, :, columns]
    assert np.array_equal(decoded.numpy(), expected[:, :, ::-1] if flip else expected)


def test_no_masks() -> None:
    assert decode_masks([], (4, 5)).shape == (0, 4, 5)
    assert decode_masks([], (4, 5)).dtype == torch.uint8
    assert paste_masks(torch.zeros(0, 14, 14), np.zeros((0, 4), np.float32), (12, 16)) == []


def test_a_full_mask_covers_the_pixels_whose_centers_are_in_the_box() -> None:
    full = torch.ones(14, 14)
    assert np.array_equal(paste(full, [3, 2, 11, 7]), rectangle(slice(2, 7), slice(3, 11)))
    assert np.array_equal(paste(full, [3.4, 1.6, 11.6, 7.4]), rectangle(slice(2, 7), slice(3, 12)))
    assert np.array_equal(paste(full, [3.6, 1.4, 11.4, 7.6]), rectangle(slice(1, 8), slice(4, 11)))


def test_masks_beyond_the_image_and_smaller_than_a_pixel() -> None:
    full, upper_left = torch.ones(14, 14), torch.zeros(14, 14)
    upper_left[:7, :7] = 1
    assert np.array_equal(paste(full, [12, 9, 40, 30]), rectangle(slice(9, 12), slice(12, 16)))
    # the quarter of the box to the left of 2 and above 1
    assert np.array_equal(paste(upper_left, [-6, -5, 10, 7]), rectangle(slice(0, 1), slice(0, 2)))
    assert np.array_equal(paste(full, [5.25, 4.25, 5.75, 4.75]), rectangle(slice(4, 5), slice(5, 6)))
    assert paste(torch.full((14, 14), 0.49), [2, 1, 14, 11]).sum() == 0
    for empty in ([-9, -9, -1, -1], [16, 12, 20, 20], [5.6, 4.6, 5.9, 4.9], [5.3, 4.3, 5.3, 4.3]):
        assert paste(full, empty).sum() == 0


@pytest.mark.parametrize("mask_size", [14, 28])
def test_pasted_masks_match_a_float64_interpolation(mask_size: int) -> None:
    """Bilinear interpolation between the centers of the cells, and zero beyond the edges of the box."""
    rng = np.random.default_rng(mask_size)
    size = (31, 42)
    corners = rng.uniform(-8, 30, (25, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.5, 40, (25, 2))], 1).astype(np.float32)
    probabilities = torch.from_numpy(rng.random((25, mask_size, mask_size)).astype(np.float32))
    masks = coco_mask.decode(paste_masks(probabilities, boxes, size)).transpose(2, 0, 1)
    num_uncertain = 0
    for mask, p, (x1, y1, x2, y2) in zip(masks, probabilities.double().numpy(), boxes.astype(float), strict=True):
        weights_x = linear_weights((np.arange(size[1]) + 0.5 - x1) / (x2 - x1) * mask_size, mask_size)
        weights_y = linear_weights((np.arange(size[0]) + 0.5 - y1) / (y2 - y1) * mask_size, mask_size)
        values = weights_y @ p @ weights_x.T
        certain = abs(values - 0.5) > 1e-4
        num_uncertain += (~certain).sum()
        assert np.array_equal(mask[certain], values[certain] >= 0.5)
    assert masks.any()
    assert num_uncertain < 10


def linear_weights(positions: NDArray[np.float64], num_cells: int) -> NDArray[np.float64]:
    """Return the weights (n, num_cells) of the two nearest cells; positions are in cells from the edge of the box."""
    return np.maximum(0, 1 - abs(positions[:, None] - 0.5 - np.arange(num_cells)))
