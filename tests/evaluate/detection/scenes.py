"""Small detection sets that a tiny detector can learn: colored discs and rectangles on noise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mec.evaluate.detection import detect as module
from mec.evaluate.detection.schedules import Schedule
from mec.models.encoder import Encoder, create_encoder

NARROW = {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]}
QUICK = Schedule(
    4, (3,), warmup=2, batch_size=2, rate=0.005, sides=(64, 72), side_at_test=64, longest=128, anchors=16, regions=8,
    proposals=20, proposals_at_test=10, precise=2,
)  # fmt: skip
COLOR = (230, 40, 40)


def tiny_encoder(channels: int = 3) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_encoder("resnet18", 64, channels, small_stem=False, options=NARROW)


def make_quick(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Schedule:
    """In place of the schedule "short"."""
    quick = replace(QUICK, **settings)
    monkeypatch.setitem(module.SCHEDULES, "short", quick)
    return quick


def noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(90, 150, (height, width, 3)).astype(np.uint8)


def disc(height: int, width: int, seed: int) -> tuple[NDArray[np.uint8], list[float], list[float]]:
    """An image of a disc, its box (x, y, width, height) and a polygon of 24 corners."""
    rng = np.random.default_rng((seed, 1))
    radius = rng.uniform(14, 22)
    x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
    rows, columns = np.mgrid[:height, :width] + 0.5
    image = noise(height, width, seed)
    image[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = COLOR
    angles = np.arange(24) * np.pi / 12
    polygon = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).ravel().tolist()
    return image, [x - radius, y - radius, 2 * radius, 2 * radius], polygon


def rectangles(folder: Path) -> Path:
    """COCO's json of images with a rectangle each, nearer to the left."""
    (folder / "images").mkdir(parents=True)
    described: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "box"}]}
    for i in range(8):
        height, width = (60, 90) if i % 4 < 2 else (90, 60)
        x, y, w, h = 3 + i, 10 + 2 * i, 20 + i, 30
        image = noise(height, width, i)
        image[y : y + h, x : x + w] = COLOR
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        described["images"].append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        one = {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [x, y, w, h], "segmentation": [polygon]}
        described["annotations"].append(one)
    (folder / "all.json").write_text(json.dumps(described))
    return folder


def coco_set(
    folder: Path, train: int = 6, test: int = 4, masks: bool = True, sizes: tuple[int, int] = (80, 96)
) -> Path:
    """COCO's own folders; every other image is high, not wide."""
    for part, first, count in (("train", 0, train), ("val", 1000, test)):
        (folder / f"{part}2017").mkdir(parents=True)
        described: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "disc"}]}
        for i in range(first, first + count):
            height, width = sizes if i % 2 else sizes[::-1]
            image, box, polygon = disc(height, width, i)
            Image.fromarray(image).save(folder / f"{part}2017" / f"{i:04}.png")
            described["images"].append({"id": i + 5, "file_name": f"{i:04}.png", "height": height, "width": width})
            one = {"id": i + 1, "image_id": i + 5, "category_id": 7, "bbox": box, "iscrowd": 0, "area": box[2] * box[3]}
            described["annotations"].append(one | ({"segmentation": [polygon]} if masks else {}))
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(described))
    return folder


def voc_set(folder: Path, train: int = 4, test: int = 3) -> Path:
    """A VOCdevkit of 2007 in which discs are called ball bearings... of the class bottle."""
    voc = folder / "VOCdevkit" / "VOC2007"
    for inner in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (voc / inner).mkdir(parents=True)
    for i in range(train + test):
        image, (x, y, width, height), _ = disc(80, 96, i)
        Image.fromarray(image).save(voc / "JPEGImages" / f"{i:06}.png")
        edges = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        box = "".join(f"<{tag}>{round(value)}</{tag}>" for tag, value in edges.items())
        (voc / "Annotations" / f"{i:06}.xml").write_text(
            "<annotation><size><width>96</width><height>80</height></size>"
            f"<object><name>bottle</name><bndbox>{box}</bndbox></object></annotation>"
        )
    for kind, numbers in (("trainval", range(train)), ("test", range(train, train + test))):
        (voc / "ImageSets" / "Main" / f"{kind}.txt").write_text("".join(f"{i:06}\n" for i in numbers))
    return folder / "VOCdevkit"
