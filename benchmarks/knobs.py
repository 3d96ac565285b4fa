"""Batch size, distortion and order of the series: what each does to a small run on CIFAR-10.

python benchmarks/knobs.py --device cpu --threads 1     (again with --minutes 9, until it says that all is done)

A narrow ResNet on a tenth of CIFAR-10 for a few epochs, one seed: it shows where a knob breaks a run and which way it
leans, not the last point of accuracy. One knob is turned at a time, the rest stays at the recipe's settings.
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

from cells import Cells, Clock, until_time_is_out
from cifar10 import QUICK, Data, Setting, measure, on, open_data, train
from mec.coding import health
from mec.data.datasets.builtin import data_home
from mec.embedding.extract import feature_function
from mec.models.encoder import Encoder
from mec.models.heads import Projector
from methods import METHODS, Network, mec_loss, mec_with_teacher

NARROWER = {"layers": [1, 1, 1, 1], "channels": [32, 64, 96, 128], "zero_init_last": False}
SMALL = replace(QUICK, every=10, epochs=14, widest=256, encoder=NARROWER)
RANKED = 2048
"""Test images whose codes' effective rank is taken: the same for every batch size, which bounds that of a batch."""


@dataclass(frozen=True)
class Knobs:
    """A cell. ``teacher``: the paper's form, cross with predictor and teacher, in place of the pooled one."""

    batch: int = QUICK.batch
    distortion: float = 1 / 32
    order: int | None = None
    teacher: bool = False


TABLES: dict[str, list[Knobs]] = {
    "batch size": [Knobs(batch=m) for m in (64, 128, 256, 512, 1024)],
    "distortion": [Knobs(distortion=x) for x in (1 / 512, 1 / 128, 1 / 32, 1 / 8, 1 / 2, 2.0)],
    "order": [Knobs(order=n) for n in (1, 2, 3, 4, None)],
    "order, cross with teacher": [Knobs(order=n, teacher=True) for n in (1, 2, 3, 4, None)],
}


def build(encoder: Encoder, widest: int, knobs: Knobs) -> Network:
    if knobs.teacher:
        return mec_with_teacher(encoder, widest, knobs.distortion, knobs.order)
    return Network(encoder, mec_loss(knobs.distortion, knobs.order), Projector(encoder.num_features, widest, widest))


@torch.no_grad()
def effective_rank(network: Network, data: Data) -> float:
    """Directions that the codes of test images use, in evaluation mode."""
    codes = network.projector(feature_function(network.encoder, data.test.device)(data.test[:RANKED]))
    return health(codes, codes, 1.0).effective_rank


def cell(knobs: Knobs, data: Data, setting: Setting, work: Path, clock: Clock) -> dict[str, Any]:
    method = replace(METHODS["MEC"], build=functools.partial(build, knobs=knobs))
    try:
        network, seconds, loss = train(method, data, replace(setting, batch=knobs.batch), 0, work, clock)
    except ValueError as error:  # the loss refuses codes that are not finite
        return asdict(knobs) | {"diverged": str(error)}
    network.eval()
    row = asdict(knobs) | {"training_seconds": seconds, "loss": loss, "effective_rank": effective_rank(network, data)}
    started = time.perf_counter()
    row |= measure(data, feature_function(network.encoder, data.train.device))
    return row | {"evaluation_seconds": time.perf_counter() - started}


def show(rows: list[dict[str, Any]], setting: Setting) -> None:
    for title, cells in TABLES.items():
        table = Table(title=f"{title}: {setting.epochs} epochs of {50_000 // setting.every:,} images, top-1 %")
        for column in (title.split(",")[0], "kNN, k=20", "kNN, k=200", "linear", "effective rank", "loss", "seconds"):
            table.add_column(column, justify="right")
        for knobs in cells:
            row = next((r for r in rows if asdict(knobs).items() <= r.items()), None)
            if row is not None:
                table.add_row(_turned(title, knobs), *_figures(row))
        if table.row_count:
            Console().print(table)


def _turned(title: str, knobs: Knobs) -> str:
    if title == "batch size":
        return str(knobs.batch)
    if title == "distortion":
        return f"1/{1 / knobs.distortion:g}" if knobs.distortion < 1 else f"{knobs.distortion:g}"
    return "exact" if knobs.order is None else str(knobs.order)


def _figures(row: dict[str, Any]) -> list[str]:
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
    """Train and measure every cell; call again to go on where it stopped.

    Args:
        data: CIFAR-10: its name, or a folder with train and test.
        device: where everything is.
        epochs: of each cell.
        tables: some of "batch size", "distortion", "order", "order, cross with teacher"; None is all.
        minutes: stop, to go on in a later call, before so many have passed.
        work: folder of checkpoints; None is benchmarks/ in the folder of named data sets.
        threads: of the CPU; None takes PyTorch's.
    """
    clock = Clock(minutes)
    if threads is not None:
        torch.set_num_threads(threads)
    setting = replace(SMALL, epochs=epochs)
    question = "what batch size, distortion and order of the series do to a small run on CIFAR-10, top-1 %"
    cells = Cells("knobs", question, setting.words() | {"method": METHODS["MEC"].published})
    folder = work or data_home() / "benchmarks"
    with until_time_is_out():
        opened = open_data(data, setting.every, on(device))
        for knobs in (k for name in tables or TABLES for k in TABLES[name]):
            if not cells.has(**asdict(knobs)):
                checkpoint = folder / f"knobs-{'-'.join(map(str, asdict(knobs).values()))}-{epochs}.pt".lower()
                cells.add(cell(knobs, opened, setting, checkpoint, clock))
                checkpoint.unlink(missing_ok=True)
    show(cells.rows, setting)


if __name__ == "__main__":
    auto_cli(main)
