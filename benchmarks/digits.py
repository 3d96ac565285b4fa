"""The table of the demo over several trials: digits without labels, the untrained encoder and raw pixels."""

from __future__ import annotations

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
from mec.evaluate.task import features_of, open_task
from mec.results import Stopwatch


def main(trials: int = 3) -> None:
    """Pretrain on the digits with several seeds; print the mean and standard deviation over them.

    Args:
        trials: number of seeds of weights and views; the data split and the few-shot labels stay the same.
    """
    results, seconds = [], []
    for seed in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            clock = Stopwatch()
            recipe = replace(mec.load_recipe("digits"), seed=seed)
            run = mec.pretrain("digits", Path(folder) / "run", recipe)
            seconds.append(clock())
            task = open_task("digits", run)
            results.append(measure(task, list(features_of(task)), clock))
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for row in results[0].rows:
        metrics[row] = {}
        for name in results[0].values(row):
            values = [result.metric(name, row).value for result in results]
            metrics[row][name] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    table = Table(title=f"digits, top-1 %, mean ± std over {trials} seeds")
    table.add_column("features")
    for name in metrics["encoder"]:
        table.add_column(name, justify="right")
    for row, by_name in metrics.items():
        table.add_row(row, *(f"{100 * m['mean']:.1f} ± {100 * m['std']:.1f}" for m in by_name.values()))
    Console().print(table)
    print(write("digits", "the demo over several seeds", trials=trials, training_seconds=seconds, metrics=metrics))


if __name__ == "__main__":
    auto_cli(main)
