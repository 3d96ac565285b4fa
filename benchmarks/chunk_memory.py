"""How much memory does a training step take, against its batch, with the batch in chunks and without?

python benchmarks/chunk_memory.py

Whole steps of ``mec.pretrain``, ResNet-18 at 32 px on the CPU, each cell in a process of its own. A chunk's second
forward pass is paid in time.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

import mec
from machine import Memory, write


class _Steps(lightning.Callback):
    """Ends the run after ``count`` steps, and knows when each ended."""

    def __init__(self, count: int) -> None:
        self.count, self.ends = count, [0.0]

    def on_train_start(self, *_: Any) -> None:
        self.ends = [time.perf_counter()]

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.ends.append(time.perf_counter())
        trainer.should_stop = len(self.ends) > self.count


def cell(batch: int, chunk: int | None, steps: int, threads: int) -> dict[str, Any]:
    """Peak memory beyond what the process held before the run, and the median time of the steps after the first."""
    torch.set_num_threads(threads)
    recipe = replace(
        mec.load_recipe("cifar10-resnet18"), batch_size=batch, chunk_size=chunk, epochs=2, accelerator="cpu", devices=1
    )
    watch = _Steps(steps + 1)
    images = np.random.default_rng(0).integers(0, 256, (batch * (steps + 2), 32, 32, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        np.savez(Path(folder) / "images.npz", images=images)
        with Memory() as memory:
            mec.pretrain(
                Path(folder) / "images.npz", Path(folder) / "run", recipe, console=Console(file=nowhere),
                callbacks=[watch],
            )  # fmt: skip
    seconds = statistics.median(np.diff(watch.ends)[1:].tolist())
    return {"batch": batch, "chunk": chunk, "peak_mib": round(memory.most - memory.before), "seconds": seconds}


def main(
    batches: tuple[int, ...] = (128, 256, 512),
    chunks: tuple[int | None, ...] = (None, 64, 32),
    steps: int = 1,
    threads: int | None = None,
) -> None:
    """Measure every batch with every chunk, print the table and write benchmarks/results/chunk_memory.json.

    Args:
        batches: images in a step.
        chunks: that pass the encoder at a time; null: all at once.
        steps: timed, after one to warm up.
        threads: of the CPU; None: as many as cores.
    """
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    cells: list[dict[str, Any]] = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for batch in batches:
            for chunk in chunks:
                cells.append(pool.apply(cell, (batch, chunk, steps, threads)))
                print(cells[-1], flush=True)
                question = "peak memory and time of a training step against its batch, in chunks and whole"
                path = write("chunk_memory", question, network="resnet18, 32 px", steps=steps, cells=cells)
    table = Table(title="MiB at the peak (seconds a step), ResNet-18 at 32 px")
    for column in ("batch", *("whole" if c is None else f"chunks of {c}" for c in chunks)):
        table.add_column(column, justify="right")
    for batch in batches:
        own = [c for c in cells if c["batch"] == batch]
        table.add_row(str(batch), *(f"{c['peak_mib']:,} ({c['seconds']:.1f})" for c in own))
    console = Console()
    console.print(table)
    console.print(path)


if __name__ == "__main__":
    auto_cli(main)
