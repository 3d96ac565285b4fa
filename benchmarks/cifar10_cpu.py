"""What does MEC learn from photographs on a laptop in some minutes? The recipe cifar10-cpu.

python benchmarks/cifar10_cpu.py --data FOLDER   (a folder with train/CLASS/ and test/CLASS/, or cifar10)
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

import mec
from machine import write
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import fast_probe_accuracies
from mec.evaluate.task import accuracies, features_of, open_task
from mec.results import Stopwatch


def main(data: str = "cifar10", minutes: float = 5, seed: int = 0, threads: int | None = None) -> None:
    """Pretrain, then evaluate kNN and a linear probe on the encoder, the untrained encoder and raw pixels.

    Args:
        data: cifar10, or a folder with train and test.
        minutes: duration of pretraining.
        seed: seed of weights and views.
        threads: CPU threads; null: PyTorch's default.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    recipe = replace(mec.load_recipe("cifar10-cpu"), minutes=minutes, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        clock = Stopwatch()
        run = mec.pretrain(data, Path(folder) / "run", recipe)
        trained = run.recipe().as_dict()
        training_seconds = clock()
        final_step = run.metrics()[-1]
        clock = Stopwatch()
        task = open_task(data, run)
        features = list(features_of(task))
    metrics = {}
    classes = len(task.classes)
    for f in features:
        knn = knn_ranking(f.train, f.train_labels, f.test, [20, 200], classes)
        metrics[f.name] = {f"kNN, k={k}": accuracies(r, f.test_labels, classes)["top-1"] for k, r in knn.items()}
        metrics[f.name]["linear"] = fast_probe_accuracies(f, classes)["top-1"]
    evaluation_seconds = clock()

    table = Table(title=f"CIFAR-10 top-1 %, {training_seconds / 60:.1f} min")
    for column in ("features", *next(iter(metrics.values()))):
        table.add_column(column)
    for row, values in metrics.items():
        table.add_row(row, *(f"{100 * v:.1f}" for v in values.values()))
    Console().print(table)
    path = write(
        "cifar10_cpu",
        "CIFAR-10 without labels on a CPU: frozen features of the last epoch, the untrained encoder and raw pixels",
        data=f"CIFAR-10, {len(task.train)} train, {len(task.test)} test",
        recipe=trained,
        training_seconds=training_seconds,
        evaluation_seconds=evaluation_seconds,
        final_loss=final_step["loss"],
        final_effective_rank=final_step["effective_rank"],
        metrics=metrics,
    )
    print(path)


if __name__ == "__main__":
    auto_cli(main)
