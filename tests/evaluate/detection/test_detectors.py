import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mec.errors import InputError
from mec.evaluate.detection.detectors import (
    Detector,
    DetectorSpec,
    load_detector,
    resolve_architecture,
    save_detector,
)
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("detector.safetensors", None),
        ("detector.safetensors", b""),
        ("detector.json", None),
        ("detector.json", b"{"),
        ("detector.json", b"[]"),
        ("detector.json", b'{"encoder": 1, "schedule": {}}'),
        ("detector.json", b'{"encoder": {}, "schedule": {}}'),
        ("detector.json", b"\xff\xfe"),
        ("weights", None),
        ("classes", None),
    ],
)
def test_damaged_files_are_rejected_in_one_line(tmp_path: Path, name: str, content: bytes | None) -> None:
    save_detector(SPEC.build(), SPEC, tmp_path)
    if name == "weights":
        save_file({"x": torch.zeros(1)}, tmp_path / "detector.safetensors")
    elif name == "classes":
        one_class = replace(SPEC, categories=["nut"], category_ids=[3])
        (tmp_path / "detector.json").write_text(json.dumps(asdict(one_class)))
    elif content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"^out: .*detector\.(safetensors|json)") as error:
        load_detector(tmp_path)
    assert len(str(error.value).splitlines()) == 1
