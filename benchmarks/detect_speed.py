"""What do the detectors cost beside torchvision's own, and how much of C4 is spent in res5?

python benchmarks/detect_speed.py --data coco128 [--device cuda] [--side 800]

The same resized images and targets for all, ResNet-50, boxes only, 80 classes, fresh weights, all layers trained;
the models take turns, and medians of the rounds are compared.
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
from mec.evaluate.detection.loaders import AspectRatioBatchSampler, make_train_loader
from mec.evaluate.detection.network import Detector
from mec.evaluate.detection.schedules import Schedule

PEER = "torchvision, FPN"


def main(
    data: str = "coco128", side: int = 320, batch: int = 2, regions: int = 512, rounds: int = 5, device: str = "cpu"
) -> None:
    """Time training steps and inference in turns.

    Args:
        data: COCO128, or another set.
        side: short side of the images; 800 is the protocols'.
        batch: images in a step.
        regions: of each image in training; 512 is the protocols'.
        rounds: of each model.
        device: cpu or cuda.
    """
    learned, _ = open_annotated(data)
    schedule = Schedule(
        1, (), train_short_sides=(side,), test_short_side=side, max_long_side=2 * side,
        box_batch_size_per_image=regions, batch_size=batch,
    )  # fmt: skip
    images, targets = _batch(learned, schedule, device)
    encoder = mec.load_encoder("resnet50")
    classes = len(learned.categories)
    torch.manual_seed(0)
    models: dict[str, Any] = {
        PEER: fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=1 + classes, min_size=side, max_size=2 * side,
            box_batch_size_per_image=regions,
        ),
        "mec, FPN": Detector(encoder, classes, False, "fpn", schedule),
        "mec, C4": Detector(encoder, classes, False, "c4", schedule),
    }  # fmt: skip
    models = {name: model.to(device) for name, model in models.items()}
    shown = {name: [p / 255 for p in images] if name == PEER else images for name in models}
    steps: dict[str, Callable[[], object]] = {
        name: partial(_step, model, shown[name], targets) for name, model in models.items()
    }
    looks: dict[str, Callable[[], object]] = {
        name: partial(_look, model, shown[name][:1]) for name, model in models.items()
    }
    seconds = {"training step": _in_turns(steps, rounds, device), "one image": _in_turns(looks, rounds, device)}
    res5 = models["mec, C4"].roi_heads.res5
    share = {
        "training step": _in_res5(res5, steps["mec, C4"], True, device) / seconds["training step"]["mec, C4"],
        "one image": _in_res5(res5, looks["mec, C4"], False, device) / seconds["one image"]["mec, C4"],
    }
    table = Table(title=f"seconds, medians of {rounds} rounds; {batch} images of {side} px on {device}")
    for column in ("", "training step", "x", "one image", "x"):
        table.add_column(column)
    for name in models:
        step, look = seconds["training step"][name], seconds["one image"][name]
        of_step, of_look = step / seconds["training step"][PEER], look / seconds["one image"][PEER]
        table.add_row(name, f"{step:.2f}", f"{of_step:.2f}", f"{look:.3f}", f"{of_look:.2f}")
    console = Console()
    console.print(table)
    console.print("of C4 in res5 on the regions: " + ", ".join(f"{k} {v:.0%}" for k, v in share.items()))
    suffix = "" if device == "cpu" else f"_{device}"
    console.print(
        write(
            f"detect_speed{suffix}",
            "time of a training step and of a look at one image, beside torchvision's fasterrcnn_resnet50_fpn",
            setting={"side": side, "batch": batch, "regions": regions, "rounds": rounds, "device": device},
            seconds=seconds,
            ratios={kind: {n: s / of[PEER] for n, s in of.items()} for kind, of in seconds.items()},
            share_of_res5=share,
        )
    )


def _batch(learned: AnnotatedDataset, schedule: Schedule, device: str) -> tuple[list[Any], list[Any]]:
    sampler = AspectRatioBatchSampler(learned.sizes[:, 1] > learned.sizes[:, 0], schedule.batch_size, 1, 0)
    shown = next(iter(make_train_loader(learned, sampler, PixelFormat(), schedule, False, 0)))
    return (
        [p.to(device) for p in shown.images],
        [{k: v.to(device) for k, v in t.items() if k != "masks"} for t in shown.targets],
    )


def _step(model: Any, images: list[Any], targets: list[Any]) -> None:
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    torch.stack(list(model(images, [dict(t) for t in targets]).values())).sum().backward()


@torch.no_grad()
def _look(model: Any, images: list[Any]) -> None:
    model.eval()
    model(images)


def _in_turns(calls: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = _now(device)
            call()
            if number:  # the first warms up
                taken[name].append(_now(device) - started)
    return {name: statistics.median(of) for name, of in taken.items()}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _in_res5(res5: torch.nn.Module, call: Callable[[], object], backward: bool, device: str) -> float:
    """Seconds that res5 takes on as many regions as a call gives it, alone."""
    shapes: list[torch.Size] = []
    hook = res5.register_forward_pre_hook(lambda module, given: shapes.append(given[0].shape))
    call()
    hook.remove()

    def alone() -> None:
        for shape in shapes:
            found = res5(torch.randn(shape, device=device, requires_grad=backward))
            if backward:
                found.mean().backward()

    with torch.set_grad_enabled(backward):
        return _in_turns({"res5": alone}, 3, device)["res5"]


if __name__ == "__main__":
    auto_cli(main)
