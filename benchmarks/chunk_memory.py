"""How much memory does a training step take at each batch size, with and without chunks?

python benchmarks/chunk_memory.py

Full steps of ``mec.pretrain``, ResNet-18 at 32 px on the CPU, each cell in its own process. Chunks cost time: each
needs a second forward pass.
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


class _StepTimer(lightning.Callback):
    """Record the end of each step, and stop the run after ``max_steps``."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps, self.ends = max_steps, [0.0]

    def on_train_start(self, *_: Any) -> None:
        self.ends = [time.perf_counter()]

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.ends.append(time.perf_counter())
        trainer.should_stop = len(self.ends) > self.max_steps


def cell(batch_size: int, chunk_size: int | None, steps: int, threads: int) -> dict[str, Any]:
    """Measure the peak memory above that before the run, and the median time of a step, without the first step."""
    torch.set_num_threads(threads)
    recipe = replace(
        mec.load_recipe("cifar10-resnet18"),
        batch_size=batch_size,
        chunk_size=chunk_size,
        epochs=2,
        accelerator="cpu",
        devices=1,
    )
    timer = _StepTimer(steps + 1)
    images = np.random.default_rng(0).integers(0, 256, (batch_size * (steps + 2), 32, 32, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        np.savez(data, images=images)
        with Memory() as memory:
            mec.pretrain(data, Path(folder) / "run", recipe, callbacks=[timer])
    return {
        "batch_size": batch_size,
        "chunk_size": chunk_size,
        "peak_mib": round(memory.peak - memory.before),
        "seconds": statistics.median(np.diff(timer.ends)[1:].tolist()),
    }


def main(
    batch_sizes: tuple[int, ...] = (128, 256, 512),
    chunk_sizes: tuple[int | None, ...] = (None, 64, 32),
    steps: int = 1,
    threads: int | None = None,
) -> None:
    """Measure every batch size with every chunk size, print the table and write benchmarks/results/chunk_memory.json.

    Args:
        batch_sizes: images in a step.
        chunk_sizes: images in a forward pass; null: the whole batch.
        steps: timed steps, after one to warm up.
        threads: CPU threads; null: one per core.
    """
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    cells: list[dict[str, Any]] = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for batch_size in batch_sizes:
            for chunk_size in chunk_sizes:
                cells.append(pool.apply(cell, (batch_size, chunk_size, steps, threads)))
                print(cells[-1], flush=True)
                question = "peak memory and time of a training step by batch size, with and without chunks"
                path = write("chunk_memory", question, network="resnet18, 32 px", steps=steps, cells=cells)
    table = Table(title="peak MiB (seconds per step), ResNet-18 at 32 px")
    for column in ("batch size", *("no chunks" if c is None else f"chunks of {c}" for c in chunk_sizes)):
        table.add_column(column, justify="right")
    for batch_size in batch_sizes:
        row = [c for c in cells if c["batch_size"] == batch_size]
        table.add_row(str(batch_size), *(f"{c['peak_mib']:,} ({c['seconds']:.1f})" for c in row))
    console = Console()
    console.print(table)
    console.print(path)


if __name__ == "__main__":
    auto_cli(main)
