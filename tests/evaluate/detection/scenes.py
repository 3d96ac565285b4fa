"""Small detection datasets that a tiny detector can learn: colored discs and rectangles on noise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mec.evaluate.detection import detect as detect_module
from mec.evaluate.detection.detectors import Architecture, Detector
from mec.evaluate.detection.schedules import SCHEDULES, Schedule
from mec.models.encoder import Encoder, create_encoder

NARROW_RESNET = {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]}
QUICK = Schedule(
    max_steps=4, milestones=(3,), warmup_steps=2, batch_size=2, lr=0.005, train_short_sides=(64, 72),
    test_short_side=64, max_long_side=128, rpn_batch_size_per_image=16, box_batch_size_per_image=8,
    rpn_post_nms_top_n_train=20, rpn_post_nms_top_n_test=10, precise_bn_batches=2,
)  # fmt: skip
SMALL = replace(
    SCHEDULES["short"], rpn_batch_size_per_image=32, box_batch_size_per_image=8, rpn_post_nms_top_n_train=20,
    rpn_post_nms_top_n_test=20,
)  # fmt: skip
COLOR = (230, 40, 40)


def tiny_encoder(channels: int = 3) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_encoder("resnet18", 64, channels, small_stem=False, options=NARROW_RESNET)


def confident_detector(masks: bool = True, architecture: Architecture = "c4") -> Detector:
    """Return a detector of three classes with random weights large enough for scores above the threshold."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = Detector(tiny_encoder(), 3, masks, architecture, SMALL)
        nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=1)
    return detector.eval()


def random_images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def make_targets(height: int = 64, width: int = 64) -> dict[str, Tensor]:
    """Return two objects in an image."""
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 6:38, 4:40] = masks[1, 24:64, 30:60] = 1
    boxes = torch.tensor([[4.0, 6, 40, 38], [20, 24, 60, 64]])
    return {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}


def use_quick_schedule(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Schedule:
    """Replace the schedule "short" by QUICK with other settings."""
    quick = replace(QUICK, **settings)
    monkeypatch.setitem(detect_module.SCHEDULES, "short", quick)
    return quick


def noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(90, 150, (height, width, 3)).astype(np.uint8)


def disc(height: int, width: int, seed: int) -> tuple[NDArray[np.uint8], list[float], list[float]]:
    """Return an image of a disc, its box (x, y, width, height) and a polygon of 24 corners."""
    rng = np.random.default_rng((seed, 1))
    radius = rng.uniform(14, 22)
    x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
    rows, columns = np.mgrid[:height, :width] + 0.5
    image = noise(height, width, seed)
    image[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = COLOR
    angles = np.arange(24) * np.pi / 12
    polygon = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).ravel().tolist()
    return image, [x - radius, y - radius, 2 * radius, 2 * radius], polygon


def rectangle_dataset(folder: Path) -> Path:
    """Write a COCO JSON of images with a rectangle each, left of the center."""
    (folder / "images").mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "box"}]}
    for i in range(8):
        height, width = (60, 90) if i % 4 < 2 else (90, 60)
        x, y, w, h = 3 + i, 10 + 2 * i, 20 + i, 30
        image = noise(height, width, i)
        image[y : y + h, x : x + w] = COLOR
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        content["annotations"].append(
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [x, y, w, h], "segmentation": [polygon]}
        )
    (folder / "all.json").write_text(json.dumps(content))
    return folder


def coco_dataset(
    folder: Path, train: int = 6, test: int = 4, masks: bool = True, sizes: tuple[int, int] = (80, 96)
) -> Path:
    """Write images of discs in COCO's folders; every other image is in portrait format."""
    for split, first, count in (("train", 0, train), ("val", 1000, test)):
        (folder / f"{split}2017").mkdir(parents=True)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "disc"}]}
        for i in range(first, first + count):
            height, width = sizes if i % 2 else sizes[::-1]
            image, box, polygon = disc(height, width, i)
            Image.fromarray(image).save(folder / f"{split}2017" / f"{i:04}.png")
            content["images"].append({"id": i + 5, "file_name": f"{i:04}.png", "height": height, "width": width})
            annotation = {
                "id": i + 1, "image_id": i + 5, "category_id": 7, "bbox": box, "iscrowd": 0, "area": box[2] * box[3],
            }  # fmt: skip
            content["annotations"].append(annotation | ({"segmentation": [polygon]} if masks else {}))
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return folder


def voc_dataset(folder: Path, train: int = 4, test: int = 3) -> Path:
    """Write images of discs in a VOCdevkit with VOC2007, annotated as bottles, one of VOC's classes."""
    voc = folder / "VOCdevkit" / "VOC2007"
    for subfolder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (voc / subfolder).mkdir(parents=True)
    for i in range(train + test):
        image, (x, y, width, height), _ = disc(80, 96, i)
        Image.fromarray(image).save(voc / "JPEGImages" / f"{i:06}.png")
        edges = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        box = "".join(f"<{tag}>{round(value)}</{tag}>" for tag, value in edges.items())
        (voc / "Annotations" / f"{i:06}.xml").write_text(
            "<annotation><size><width>96</width><height>80</height></size>"
            f"<object><name>bottle</name><bndbox>{box}</bndbox></object></annotation>"
        )
    for name, numbers in (("trainval", range(train)), ("test", range(train, train + test))):
        (voc / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{i:06}\n" for i in numbers))
    return folder / "VOCdevkit"
