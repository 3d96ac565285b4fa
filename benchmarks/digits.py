"""The demo's table over several seeds: digits without labels, beside raw pixels and the untrained encoder."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

import mec
from machine import write
from mec.demo import measure
from mec.evaluate.features import features_of
from mec.evaluate.task import open_task
from mec.results import Stopwatch


def main(seeds: int = 3) -> None:
    """Pretrain on the digits with each seed; mean and spread over them.

    Args:
        seeds: of weights and views; the division of the data and the draws of labels stay the same.
    """
    results, seconds = [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            clock = Stopwatch()
            recipe = replace(mec.load_recipe("digits"), seed=seed)
            run = mec.pretrain("digits", Path(folder) / "run", recipe)
            seconds.append(clock())
            task = open_task("digits", run)
            results.append(measure(task, list(features_of(task)), clock).figures)
    columns = [c for c in results[0]["encoder"] if not c.endswith(" std")]
    figures: dict[str, dict[str, dict[str, float]]] = {row: {} for row in results[0]}
    for row, column in itertools.product(results[0], columns):
        values = [r[row][column] for r in results]
        figures[row][column] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    table = Table(title=f"digits, top-1 %, mean ± std over {seeds} seeds")
    table.add_column("features")
    for column in columns:
        table.add_column(column, justify="right")
    for row, values in figures.items():
        table.add_row(row, *(f"{100 * values[c]['mean']:.1f} ± {100 * values[c]['std']:.1f}" for c in columns))
    Console().print(table)
    print(write("digits", "the demo over seeds", seeds=seeds, training_seconds=seconds, figures=figures))


if __name__ == "__main__":
    auto_cli(main)
