"""Run folders: with an untrained encoder, or written by hand with the contents of the page."""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from mec.models.checkpoint_formats import MEC_BACKBONE_PREFIX
from mec.models.encoder import Encoder, create_encoder
from mec.models.io import save_encoder
from mec.pretraining import Recipe
from mec.report.analysis import FeatureAnalysis
from mec.report.images import EmbeddedImage, EmbeddedViews, NearestNeighbors, SpriteSheet
from mec.report.page import RunContent
from mec.report.record import read_records
from mec.results import DatasetSummary, Protocol, Result, to_metrics

NARROW_RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32], "stem_type": "deep", "stem_width": 8}
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="
HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "\"quotes' & ampersands &amp; <b>bold</b>",
    "<img src=x onerror=alert(2)>",
    "</title></script><!-- \u2028 ünïcode 猫",
    "\u05e9\u05dc\u05d5\u05dd \u202eright to left",
    "{{ 7 * 7 }} %{x} $x$",
)
COLUMNS = [
    "step", "epoch", "loss", "coding_length", "spectral_norm", "effective_rank", "rankme", "alpha_req", "disagreement",
    "rate_reduction", "distortion", "lr", "skipped_steps", "images_per_second", "data_wait_fraction", "seconds",
]  # fmt: skip
KNN_ROWS = {
    "encoder": {"k=20": 0.912, "k=20 top-5": 0.99},
    "untrained": {"k=20": 0.5},
    "raw pixels": {"k=20": 0.25},
}


def narrow_encoder(seed: int = 0, image_size: int = 32, channels: int = 3, **options: Any) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_encoder("resnet18", image_size, channels, options=NARROW_RESNET, **options)


def make_run(folder: Path, data: Any, encoder: Encoder | None = None, **settings: Any) -> Path:
    encoder = encoder or narrow_encoder()
    save_encoder(encoder, folder)
    (folder / "environment.json").write_text(json.dumps({"data": str(data)}))
    recipe = Recipe(**{"image_size": encoder.image_size, **settings})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
    return folder


def write_checkpoint(folder: Path, encoder: Encoder, step: int) -> Path:
    """Write a checkpoint named as training does, with its checksum."""
    state = {f"{MEC_BACKBONE_PREFIX}{name}": tensor for name, tensor in encoder.backbone.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    path = folder / "checkpoints" / f"step={step:09d}-{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.ckpt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path


def smooth_noise(seed: int, height: int = 40, width: int = 40, channels: int = 3, coarse: int = 3) -> np.ndarray:
    """A smooth random image of ``coarse`` x ``coarse`` patches, which lossy compression barely changes."""
    patches = np.random.default_rng(seed).integers(0, 256, (coarse, coarse, channels), dtype=np.uint8)
    planes = [np.asarray(Image.fromarray(patches[..., c]).resize((width, height))) for c in range(channels)]
    return np.stack(planes, axis=-1)


def write_images(folder: Path, classes: int, images_per_class: int) -> Path:
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(images_per_class):
            Image.fromarray(smooth_noise(100 * c + i)).save(folder / f"class{c}" / f"{i}.png")
    return folder


def decode(embedded: EmbeddedImage | SpriteSheet) -> np.ndarray:
    header, _, content = embedded.uri.partition(",")
    assert header == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(float)


def thumbnail(sprites: SpriteSheet, index: int) -> np.ndarray:
    row, column = divmod(index, sprites.columns)
    side = sprites.cell_size
    return decode(sprites)[row * side : (row + 1) * side, column * side : (column + 1) * side]


def metrics_row(step: int, **changes: float) -> dict[str, Any]:
    """A row of metrics.csv of a healthy run: ten steps of warm-up, ten steps per epoch."""
    row = dict(zip(COLUMNS, (step, step // 10, 1 / (1 + step), 100 + step, 0.5, 10 + step / 10), strict=False))
    row |= {"disagreement": 1 / (2 + step), "rate_reduction": step + 1, "distortion": 2.0 ** (step - 40)}
    lr = step / 10 if step <= 10 else 1 / step
    row |= {"lr": lr, "skipped_steps": 0, "images_per_second": 500, "data_wait_fraction": 0.05, "seconds": 2 * step}
    return row | changes


def write_metrics(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def make_result(
    task: str = "knn", rows: Mapping[str, Mapping[str, float]] = KNN_ROWS, protocol: str = "", **changes: Any
) -> Result:
    fields: dict[str, Any] = {
        "dataset": DatasetSummary("digits", {"train": 9, "test": 9}),
        "encoder": "an encoder",
        "seconds": 3.0,
        "command": f"mec evaluate {task}",
        "time": "2026-01-02T03:04:05+00:00",
        **changes,
    }
    metrics = {row: to_metrics(values) for row, values in rows.items()}
    return Result(task, Protocol(protocol or task, {"temperature": 0.07}), rows=metrics, **fields)


def write_run(folder: Path, num_steps: int = 40, finished: bool = True, **recipe: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {"backbone": "resnet18", "epochs": 4, "objective": {"form": "pooled", "order": None}, **recipe}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    environment = {"data": "digits", "images": 645, "classes": 10, "batch_size": 64, "command": "mec pretrain digits"}
    (folder / "environment.json").write_text(json.dumps(environment | {"packages": {"torch": "2.11.0"}, "gpus": []}))
    write_metrics(folder, [metrics_row(step) for step in range(num_steps)])
    (folder / "probes.csv").write_text("epoch,step,knn_top1,linear_top1,seconds\n1,10,0.5,0.6,1\n2,20,0.7,0.8,1\n")
    make_result().append_to(folder)
    if finished:
        (folder / "encoder.safetensors").write_bytes(b"")
    return folder


def make_image(alt: str = "an image", size: int = 0) -> EmbeddedImage:
    return EmbeddedImage(PIXEL + "A" * size, alt, 32, 32)


def make_analysis(titles: Sequence[str], labels: Sequence[str] | None = None, size: int = 0) -> FeatureAnalysis:
    """Images on a circle, every second one in cluster 1."""
    n = len(titles)
    angle = 2 * np.pi * np.arange(n) / n
    return FeatureAnalysis(
        images=f"{n} images of digits",
        encoder="the trained encoder",
        points=np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32),
        titles=list(titles),
        labels=None if labels is None else list(labels),
        clusters=np.arange(n) % 2,
        sprites=SpriteSheet(PIXEL + "A" * size, 4, 48),
        neighbors=[NearestNeighbors(make_image(titles[0]), [(0.87, make_image(titles[1], size))])],
        singular_values=np.array([0.5, 0.3, 0.2]),
        feature_rank=2.5,
    )


def make_views(title: str = "image", size: int = 0) -> list[EmbeddedViews]:
    pair = make_image(f"view 1 of {title}"), make_image(f"view 2 of {title}")
    return [EmbeddedViews(make_image(title, size), [pair])]


def make_contents(*folders: Path, names: Sequence[str] = ("a", "b", "c", "d"), size: int = 0) -> list[RunContent]:
    """Contents of runs with images named ``names``, whose URIs are ``size`` bytes longer than necessary."""
    features = make_analysis(names, ["x", "y"] * (len(names) // 2), size)
    content = features, make_views(size=size), [make_image("a preview", size)]
    return [RunContent(record, *content) for record in read_records(folders)]
