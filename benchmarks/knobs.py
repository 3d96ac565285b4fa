"""How do batch size, distortion and order of the series affect a small run on CIFAR-10?

python benchmarks/knobs.py --device cpu --threads 1     (or repeat with --minutes 9 until all rows are complete)

A narrow ResNet on a tenth of CIFAR-10 for a few epochs, one seed: the runs show which values fail and the direction of
an effect, not differences of a percentage point. One setting changes at a time; the others are the recipe's.
"""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from cells import Cells, Clock, until_deadline
from cifar10 import QUICK, Data, Settings, measure, open_data, resolve_device, train
from mec.coding import health
from mec.data.datasets.arrays import data_home
from mec.embedding.extract import feature_function
from mec.models.encoder import Encoder
from mec.models.siamese import Projector
from methods import METHODS, Network, mec_loss, mec_with_teacher

NARROWER = {"layers": [1, 1, 1, 1], "channels": [32, 64, 96, 128], "zero_init_last": False}
SMALL = replace(QUICK, subsample=10, epochs=14, max_width=256, backbone_options=NARROWER)
RANK_IMAGES = 2048
"""Test images for the effective rank of the codes, which is at most the number of images: the same for every cell."""


@dataclass(frozen=True)
class Knobs:
    """Settings of a cell. ``teacher``: the paper's form, cross with predictor and teacher, instead of pooled."""

    batch_size: int = QUICK.batch_size
    distortion: float = 1 / 32
    order: int | None = None
    teacher: bool = False


TABLES: dict[str, list[Knobs]] = {
    "batch size": [Knobs(batch_size=m) for m in (64, 128, 256, 512, 1024)],
    "distortion": [Knobs(distortion=x) for x in (1 / 512, 1 / 128, 1 / 32, 1 / 8, 1 / 2, 2.0)],
    "order": [Knobs(order=n) for n in (1, 2, 3, 4, None)],
    "order, cross with teacher": [Knobs(order=n, teacher=True) for n in (1, 2, 3, 4, None)],
}


def build(encoder: Encoder, max_width: int, knobs: Knobs) -> Network:
    if knobs.teacher:
        return mec_with_teacher(encoder, max_width, knobs.distortion, knobs.order)
    projector = Projector(encoder.num_features, max_width, max_width)
    return Network(encoder, mec_loss(knobs.distortion, knobs.order), projector)


@torch.no_grad()
def effective_rank(network: Network, data: Data) -> float:
    """Return the effective rank of the codes of test images, in evaluation mode."""
    codes = network.projector(feature_function(network.encoder, data.test.device)(data.test[:RANK_IMAGES]))
    return health(codes, codes, 1.0).effective_rank


def cell(knobs: Knobs, data: Data, settings: Settings, checkpoint: Path, clock: Clock) -> dict[str, Any]:
    settings = replace(settings, batch_size=knobs.batch_size)
    method = replace(METHODS["MEC"], build=functools.partial(build, knobs=knobs))
    try:
        network, seconds, loss = train(method, data, settings, 0, checkpoint, clock)
    except ValueError as error:  # MECLoss raises on codes that are not finite
        return asdict(knobs) | {"diverged": str(error)}
    network.eval()
    row = asdict(knobs) | {"training_seconds": seconds, "loss": loss, "effective_rank": effective_rank(network, data)}
    started = time.perf_counter()
    row |= measure(data, feature_function(network.encoder, data.train.device))
    return row | {"evaluation_seconds": time.perf_counter() - started}


def print_tables(rows: list[dict[str, Any]], settings: Settings) -> None:
    for title, cells in TABLES.items():
        table = Table(title=f"{title}: {settings.epochs} epochs of {50_000 // settings.subsample:,} images, top-1 %")
        for column in (title.split(",")[0], "kNN, k=20", "kNN, k=200", "linear", "effective rank", "loss", "seconds"):
            table.add_column(column, justify="right")
        for knobs in cells:
            row = next((r for r in rows if asdict(knobs).items() <= r.items()), None)
            if row is not None:
                table.add_row(_value(title, knobs), *_metrics(row))
        if table.row_count:
            Console().print(table)


def _value(title: str, knobs: Knobs) -> str:
    if title == "batch size":
        return str(knobs.batch_size)
    if title == "distortion":
        return f"1/{1 / knobs.distortion:g}" if knobs.distortion < 1 else f"{knobs.distortion:g}"
    return "exact" if knobs.order is None else str(knobs.order)


def _metrics(row: dict[str, Any]) -> list[str]:
    if "diverged" in row:
        return ["diverged"]
    accuracies = [f"{row[name]:.2f}" for name in ("kNN, k=20", "kNN, k=200", "linear")]
    return [*accuracies, f"{row['effective_rank']:.1f}", f"{row['loss']:.4f}", f"{row['training_seconds']:.0f}"]


def main(
    data: str = "cifar10",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    epochs: int = SMALL.epochs,
    tables: list[str] | None = None,
    minutes: float | None = None,
    work: Path | None = None,
    threads: int | None = None,
) -> None:
    """Train and evaluate every cell. A repeated call continues.

    Args:
        data: cifar10, or a folder with train and test.
        device: device of images and networks.
        epochs: epochs of each cell.
        tables: names among "batch size", "distortion", "order" and "order, cross with teacher"; null: all.
        minutes: time limit of this call; a later call continues.
        work: folder for checkpoints; null: benchmarks/ in the folder of the built-in datasets.
        threads: CPU threads; null: PyTorch's default.
    """
    clock = Clock(minutes)
    if threads is not None:
        torch.set_num_threads(threads)
    settings = replace(SMALL, epochs=epochs)
    question = "effect of batch size, distortion and order of the series on a small run on CIFAR-10, top-1 %"
    cells = Cells("knobs", question, settings.as_dict() | {"method": METHODS["MEC"].source})
    folder = work or data_home() / "benchmarks"
    with until_deadline():
        tensors = open_data(data, settings.subsample, resolve_device(device))
        for knobs in (k for name in tables or TABLES for k in TABLES[name]):
            if not cells.has(**asdict(knobs)):
                checkpoint = folder / f"knobs-{'-'.join(map(str, asdict(knobs).values()))}-{epochs}.pt".lower()
                cells.add(cell(knobs, tensors, settings, checkpoint, clock))
                checkpoint.unlink(missing_ok=True)
    print_tables(cells.rows, settings)


if __name__ == "__main__":
    auto_cli(main)
