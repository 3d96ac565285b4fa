"""Do targets, losses, masks and figures of detection fit together? A C4 detector learns some images by heart.

python benchmarks/detect_overfit.py --data coco128                 (8 images, ResNet-18, short side 256, a CPU)
python benchmarks/detect_overfit.py --data coco128 --full true     (all images, ResNet-50 at full size, a GPU)

Mask R-CNN from an untrained encoder, all layers trained, tested on the very images it learned: it says nothing of
others.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console

import mec
from machine import write
from mec.data import read_image
from mec.embedding.images import pixel_format_of
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections
from mec.evaluate.detection.detectors import DetectorSpec
from mec.evaluate.detection.metrics import detection_metrics
from mec.evaluate.detection.schedules import SCHEDULES
from mec.evaluate.detection.trainer import METRICS_CSV, detection_trainer
from mec.evaluate.detection.training import run_detector, train
from mec.evaluate.drawing.detections import draw_detections, image_grid
from mec.results import Stopwatch

DRAWN = 8


def main(
    data: str = "coco128",
    full: bool = False,
    max_steps: int | None = None,
    lr: float | None = None,
    precision: str = "auto",
    image: str | None = None,
    shown: list[int] | None = None,
) -> None:
    """Train on the first images that have objects, and test on the same.

    Args:
        data: COCO128, or another set with masks.
        full: all images, a ResNet-50 and the sizes of the coco schedules; else 8, a ResNet-18 and 256 px.
        max_steps: optimizer steps; None: 430 (600 for full).
        lr: learning rate; None: 0.03 (0.02 for full).
        precision: auto, 32-true or bf16-mixed.
        image: a file for a sheet of detections: in the images learned, for full in the first of those for testing.
        shown: numbers of the images on the sheet, from 0; absent: eight. Not all of COCO's may be published.
    """
    learned, tested = open_annotated(data)
    having = [i for i in range(len(learned)) if len(learned.targets(i).labels)]
    learned = learned.subset(np.array(having if full else having[:DRAWN]))
    if full:
        plan, name = SCHEDULES["coco-1x"].with_overrides(max_steps or 600, None, lr, None), "resnet50"
        plan = replace(plan, warmup_steps=100, precise_bn_batches=50)
    else:
        plan, name = SCHEDULES["short"].with_overrides(max_steps or 430, None, lr or 0.03, None), "resnet18"
        plan = replace(plan, train_short_sides=(256,), precise_bn_batches=20)
    encoder = mec.load_encoder(name)
    reading = pixel_format_of(encoder)
    spec = DetectorSpec(encoder.spec, "c4", learned.categories, learned.category_ids.tolist(), learned.has_masks, plan)
    torch.manual_seed(0)
    detector = spec.build(encoder)
    with tempfile.TemporaryDirectory() as folder:
        clock = Stopwatch()
        trainer = detection_trainer(plan, Path(folder), "overfit", "auto", 1, precision)
        train(detector, learned, reading, plan, trainer, 0, 2, None)
        training_seconds = clock()
        found = run_detector(detector, learned.images, reading, plan, trainer, 2)
        looking_seconds = clock() - training_seconds
        losses = (Path(folder) / METRICS_CSV).read_text().splitlines()
    measured = detection_metrics(learned, [found[i] for i in range(len(learned))]).overall
    console = Console(soft_wrap=True)
    console.print({name: round(value, 3) for name, value in measured.items()})
    if image is not None:
        drawn = (tested if full else learned).subset(np.array(shown or range(DRAWN)))
        again = run_detector(detector, drawn.images, reading, plan, trainer, 0)
        _sheet(drawn, again, Path(image))
    path = write(
        "detect_overfit_full" if full else "detect_overfit",
        "Mask R-CNN C4 from an untrained encoder, on the very images it learned",
        data=f"{Path(data).name}: {len(learned)} images, {int(learned.is_target.sum())} objects",
        encoder=name,
        schedule=plan.protocol_settings(),
        box_batch_size_per_image=plan.box_batch_size_per_image,
        precision=trainer.precision,
        training_seconds=training_seconds,
        looking_seconds=round(looking_seconds, 2),
        metrics=measured,
        losses=losses,
    )
    console.print(path)


def _sheet(annotated: AnnotatedDataset, found: dict[int, Detections], path: Path) -> None:
    drawn = [
        draw_detections(read_image(annotated.images, i), found[i], annotated.categories) for i in range(len(annotated))
    ]
    image_grid(drawn, columns=min(4, len(drawn)), width=min(1600, 800 * len(drawn))).save(path, quality=88)
    print(path)


if __name__ == "__main__":
    auto_cli(main)
