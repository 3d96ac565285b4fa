"""Run folders written by hand, and what stands in for looking through an encoder."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mec.report.page import Shown
from mec.report.record import read_records
from mec.report.schema import EmbeddedImage, Learned, Neighbors, Sprites, Views

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="
NASTY = (
    "<script>alert(1)</script>",
    "\"quotes' & ampersands &amp; <b>bold</b>",
    "<img src=x onerror=alert(2)>",
    "</title></script><!-- \u2028 ünïcode 猫",
    "\u05e9\u05dc\u05d5\u05dd \u202eright to left",
    "{{ 7 * 7 }} %{x} $x$",
)
COLUMNS = [
    "step", "epoch", "loss", "coding_length", "spectral_norm", "effective_rank", "rankme", "alpha_req", "distortion",
    "lr", "skipped", "images_per_second", "data_wait", "seconds",
]  # fmt: skip


def metric(step: int, **other: float) -> dict[str, Any]:
    """A row of metrics.csv of a healthy run: ten steps of warm-up, ten steps an epoch."""
    row = dict(zip(COLUMNS, (step, step // 10, 1 / (1 + step), 100 + step, 0.5, 10 + step / 10), strict=False))
    rate = step / 10 if step <= 10 else 1 / step
    row |= {"lr": rate, "skipped": 0, "images_per_second": 500, "data_wait": 0.05, "seconds": 2 * step}
    return row | other


def write_metrics(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def result(task: str = "knn", **other: Any) -> dict[str, Any]:
    figures = {
        "encoder": {"k=20": 0.912, "k=20 top-5": 0.99},
        "untrained": {"k=20": 0.5},
        "raw pixels": {"k=20": 0.25},
    }
    told = {"seconds": 3.0, "broken": {}, "command": f"mec evaluate {task}", "time": "2026-01-02T03:04:05+00:00"}
    return {
        "task": task,
        "protocol": "weighted kNN",
        "data": "digits (9 train, 9 test)",
        "encoder": "an encoder",
        "figures": figures,
        **told,
        **other,
    }


def write_run(folder: Path, steps: int = 40, ended: bool = True, **recipe: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {"backbone": "resnet18", "epochs": 4, "objective": {"form": "pooled", "order": None}, **recipe}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    about = {"data": "digits", "images": 645, "classes": 10, "batch": 64, "command": "mec pretrain digits"}
    (folder / "environment.json").write_text(json.dumps(about | {"packages": {"torch": "2.11.0"}, "devices": []}))
    write_metrics(folder, [metric(step) for step in range(steps)])
    (folder / "probes.csv").write_text("epoch,step,kNN,linear,seconds\n1,10,0.5,0.6,1\n2,20,0.7,0.8,1\n")
    (folder / "results.jsonl").write_text(json.dumps(result()) + "\n")
    if ended:
        (folder / "encoder.safetensors").write_bytes(b"")
    return folder


def image(alt: str = "an image", size: int = 0) -> EmbeddedImage:
    return EmbeddedImage(PIXEL + "A" * size, alt, 32, 32)


def learned(titles: Sequence[str], labels: Sequence[str] | None = None, size: int = 0) -> Learned:
    """On a circle; every second image in cluster 1."""
    n = len(titles)
    turn = 2 * np.pi * np.arange(n) / n
    return Learned(
        images=f"{n} images of digits",
        encoder="the trained encoder",
        points=np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32),
        titles=list(titles),
        labels=None if labels is None else list(labels),
        clusters=np.arange(n) % 2,
        sprites=Sprites(PIXEL + "A" * size, 4, 48),
        neighbors=[Neighbors(image(titles[0]), [(0.87, image(titles[1], size))])],
        singular_values=np.array([0.5, 0.3, 0.2]),
        effective_rank=2.5,
    )


def views(title: str = "one", size: int = 0) -> list[Views]:
    return [Views(image(title, size), [(image(f"view 1 of {title}"), image(f"view 2 of {title}"))])]


def shown(*folders: Path, names: Sequence[str] = ("a", "b", "c", "d"), size: int = 0) -> list[Shown]:
    return [
        Shown(record, learned(names, ["x", "y"] * (len(names) // 2), size), views(size=size), [image("drawn", size)])
        for record in read_records(folders)
    ]
