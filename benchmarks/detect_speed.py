"""How fast are the detectors compared with torchvision's, and which fraction of the time of C4 is spent in res5?

python benchmarks/detect_speed.py --data coco128 [--device cuda] [--short_side 800]

All models get the same resized images and targets: ResNet-50, boxes only, 80 classes, random weights, all layers
trained. The models alternate, and medians over the rounds are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torchvision.models.detection import fasterrcnn_resnet50_fpn

import mec
from machine import write
from mec.data import PixelFormat
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset
from mec.evaluate.detection.detectors import Detector
from mec.evaluate.detection.loaders import AspectRatioBatchSampler, make_train_loader
from mec.evaluate.detection.schedules import Schedule

REFERENCE = "torchvision, FPN"


def main(
    data: str = "coco128",
    short_side: int = 320,
    batch_size: int = 2,
    box_batch_size_per_image: int = 512,
    rounds: int = 5,
    device: str = "cpu",
) -> None:
    """Time training steps and inference of each model, alternating.

    Args:
        data: COCO128, or another detection dataset.
        short_side: short side of the images; 800 in the published protocols.
        batch_size: images in a step.
        box_batch_size_per_image: sampled proposals of each image in training; 512 in the published protocols.
        rounds: timings of each model.
        device: cpu or cuda.
    """
    train_set, _ = open_annotated(data)
    schedule = Schedule(
        1, (), train_short_sides=(short_side,), test_short_side=short_side, max_long_side=2 * short_side,
        box_batch_size_per_image=box_batch_size_per_image, batch_size=batch_size,
    )  # fmt: skip
    images, targets = _batch(train_set, schedule, device)
    encoder = mec.load_encoder("resnet50")
    classes = len(train_set.categories)
    torch.manual_seed(0)
    models: dict[str, Any] = {
        REFERENCE: fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=1 + classes, min_size=short_side, max_size=2 * short_side,
            box_batch_size_per_image=box_batch_size_per_image,
        ),
        "mec, FPN": Detector(encoder, classes, False, "fpn", schedule),
        "mec, C4": Detector(encoder, classes, False, "c4", schedule),
    }  # fmt: skip
    models = {name: model.to(device) for name, model in models.items()}
    inputs = {name: [image / 255 for image in images] if name == REFERENCE else images for name in models}
    steps: dict[str, Callable[[], object]] = {
        name: partial(_training_step, model, inputs[name], targets) for name, model in models.items()
    }
    inferences: dict[str, Callable[[], object]] = {
        name: partial(_inference, model, inputs[name][:1]) for name, model in models.items()
    }
    seconds = {
        "training step": _alternate(steps, rounds, device),
        "inference": _alternate(inferences, rounds, device),
    }
    res5 = models["mec, C4"].roi_heads.res5
    res5_fraction = {
        "training step": _res5_seconds(res5, steps["mec, C4"], True, device) / seconds["training step"]["mec, C4"],
        "inference": _res5_seconds(res5, inferences["mec, C4"], False, device) / seconds["inference"]["mec, C4"],
    }
    table = Table(title=f"seconds, medians of {rounds} rounds; {batch_size} images of {short_side} px on {device}")
    for column in ("", "training step", "ratio", "inference, one image", "ratio"):
        table.add_column(column)
    for name in models:
        step, inference = seconds["training step"][name], seconds["inference"][name]
        step_ratio = step / seconds["training step"][REFERENCE]
        inference_ratio = inference / seconds["inference"][REFERENCE]
        table.add_row(name, f"{step:.2f}", f"{step_ratio:.2f}", f"{inference:.3f}", f"{inference_ratio:.2f}")
    console = Console()
    console.print(table)
    console.print("fraction of C4's time in res5: " + ", ".join(f"{k} {v:.0%}" for k, v in res5_fraction.items()))
    suffix = "" if device == "cpu" else f"_{device}"
    console.print(
        write(
            f"detect_speed{suffix}",
            "time of a training step and of inference on one image, against torchvision's fasterrcnn_resnet50_fpn",
            settings={
                "short_side": short_side,
                "batch_size": batch_size,
                "box_batch_size_per_image": box_batch_size_per_image,
                "rounds": rounds,
                "device": device,
            },
            seconds=seconds,
            ratios={kind: {n: s / times[REFERENCE] for n, s in times.items()} for kind, times in seconds.items()},
            res5_fraction=res5_fraction,
        )
    )


def _batch(dataset: AnnotatedDataset, schedule: Schedule, device: str) -> tuple[list[Any], list[Any]]:
    sampler = AspectRatioBatchSampler(dataset.sizes[:, 1] > dataset.sizes[:, 0], schedule.batch_size, 1, 0)
    batch = next(iter(make_train_loader(dataset, sampler, PixelFormat(), schedule, False, 0)))
    return (
        [image.to(device) for image in batch.images],
        [{k: v.to(device) for k, v in t.items() if k != "masks"} for t in batch.targets],
    )


def _training_step(model: Any, images: list[Any], targets: list[Any]) -> None:
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    torch.stack(list(model(images, [dict(t) for t in targets]).values())).sum().backward()


@torch.no_grad()
def _inference(model: Any, images: list[Any]) -> None:
    model.eval()
    model(images)


def _alternate(calls: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = _now(device)
            call()
            if number:  # the first round warms up
                seconds[name].append(_now(device) - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _res5_seconds(res5: torch.nn.Module, call: Callable[[], object], backward: bool, device: str) -> float:
    """Time res5 alone on inputs of the shapes that it gets in ``call``."""
    shapes: list[torch.Size] = []
    hook = res5.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    call()
    hook.remove()

    def run() -> None:
        for shape in shapes:
            output = res5(torch.randn(shape, device=device, requires_grad=backward))
            if backward:
                output.mean().backward()

    with torch.set_grad_enabled(backward):
        return _alternate({"res5": run}, 3, device)["res5"]


if __name__ == "__main__":
    auto_cli(main)
