"""Are targets, losses, masks and metrics of detection consistent? A C4 detector overfits a few images.

python benchmarks/detect_overfit.py --data coco128                 (8 images, ResNet-18, short side 256, a CPU)
python benchmarks/detect_overfit.py --data coco128 --full true     (all images, ResNet-50 at full size, a GPU)

Mask R-CNN from an untrained encoder, all layers trained, tested on its training images: the metrics are no estimate for
other images.
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
from image_grid import image_grid
from machine import write
from mec.data import read_image
from mec.engine.progress import METRICS_FILE
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections
from mec.evaluate.detection.detectors import DetectorSpec
from mec.evaluate.detection.metrics import detection_metrics
from mec.evaluate.detection.schedules import SCHEDULES
from mec.evaluate.detection.training import detection_trainer, run_detector, train
from mec.evaluate.drawing import draw_detections
from mec.results import Protocol, Stopwatch

NUM_IMAGES = 8


def main(
    data: str = "coco128",
    full: bool = False,
    max_steps: int | None = None,
    lr: float | None = None,
    precision: str = "auto",
    image: str | None = None,
    indices: list[int] | None = None,
) -> None:
    """Train on the first images that contain objects, and test on the same images.

    Args:
        data: COCO128, or another detection dataset with masks.
        full: use all images, a ResNet-50 and the sizes of the coco schedules, not 8 images, a ResNet-18 and 256 px.
        max_steps: optimizer steps; null: 430 (600 with full).
        lr: learning rate; null: 0.03 (0.02 with full).
        precision: auto, 32-true or bf16-mixed.
        image: file for drawings of the detections in the training images; with full, in the test images.
        indices: indices of the drawn images, from 0; null: the first eight. Not all of COCO's may be published.
    """
    train_set, test_set = open_annotated(data)
    annotated = [i for i in range(len(train_set)) if len(train_set.targets(i).labels)]
    train_set = train_set.subset(np.array(annotated if full else annotated[:NUM_IMAGES]))
    if full:
        schedule, backbone = SCHEDULES["coco-1x"].with_overrides(max_steps or 600, None, lr, None), "resnet50"
        schedule = replace(schedule, warmup_steps=100, precise_bn_batches=50)
    else:
        schedule, backbone = SCHEDULES["short"].with_overrides(max_steps or 430, None, lr or 0.03, None), "resnet18"
        schedule = replace(schedule, train_short_sides=(256,), precise_bn_batches=20)
    encoder = mec.load_encoder(backbone)
    category_ids = train_set.category_ids.tolist()
    spec = DetectorSpec(encoder.spec, "c4", train_set.categories, category_ids, train_set.has_masks, schedule)
    torch.manual_seed(0)
    detector = spec.build(encoder)
    with tempfile.TemporaryDirectory() as folder:
        clock = Stopwatch()
        trainer = detection_trainer(Path(folder), "overfit", "auto", 1, precision)
        train(detector, train_set, trainer, 0, 2, None)
        training_seconds = clock()
        detections = run_detector(detector, train_set.images, trainer, 2)
        inference_seconds = clock() - training_seconds
        losses = (Path(folder) / METRICS_FILE).read_text().splitlines()
    metrics = detection_metrics(train_set, [detections[i] for i in range(len(train_set))]).overall
    console = Console(soft_wrap=True)
    console.print({name: round(value, 3) for name, value in metrics.items()})
    if image is not None:
        drawn = (test_set if full else train_set).subset(np.array(indices or range(NUM_IMAGES)))
        _draw(drawn, run_detector(detector, drawn.images, trainer, 0), Path(image))
    path = write(
        "detect_overfit_full" if full else "detect_overfit",
        "Mask R-CNN C4 from an untrained encoder, tested on its training images",
        data=f"{Path(data).name}: {len(train_set)} images, {int(train_set.is_target.sum())} objects",
        encoder=backbone,
        schedule=Protocol("schedule", schedule.protocol_settings()).describe(),
        box_batch_size_per_image=schedule.box_batch_size_per_image,
        precision=trainer.precision,
        training_seconds=training_seconds,
        inference_seconds=round(inference_seconds, 2),
        metrics=metrics,
        losses=losses,
    )
    console.print(path)


def _draw(dataset: AnnotatedDataset, detections: dict[int, Detections], path: Path) -> None:
    drawings = [
        draw_detections(read_image(dataset.images, i), detections[i], dataset.categories) for i in range(len(dataset))
    ]
    image_grid(drawings, columns=min(4, len(drawings)), width=min(1600, 800 * len(drawings))).save(path, quality=88)
    print(path)


if __name__ == "__main__":
    auto_cli(main)
