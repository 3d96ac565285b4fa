"""What does MEC learn from photographs of a folder on a laptop in some minutes? The recipe small-cpu.

python benchmarks/caltech_cpu.py --data FOLDER   (Caltech-101: a folder with a sub-folder per class)
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console

import mec
from machine import metrics_with_std, write
from mec import evaluate
from mec.results import Stopwatch


def main(data: str = "caltech101", minutes: float = 15, seed: int = 0) -> None:
    """Pretrain on all photographs without labels, then evaluate the encoder and the untrained encoder.

    Args:
        data: folder of the photographs.
        minutes: duration of pretraining.
        seed: seed of weights and views.
    """
    recipe = replace(mec.load_recipe("small-cpu"), minutes=minutes, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        clock = Stopwatch()
        run = mec.pretrain(data, Path(folder) / "run", recipe)
        training_seconds, trained = clock(), run.recipe()
        results = [evaluate.linear(data, run), evaluate.knn(data, run, k=[20])]
    console = Console(soft_wrap=True)
    for result in results:
        console.print(result.table())
    path = write(
        "caltech_cpu",
        "Caltech-101 without labels on a CPU: frozen features of the last epoch, the untrained encoder, raw pixels",
        data=f"Caltech-101, {Path(data).name}: {str(results[0].dataset).partition('(')[2].rstrip(')')}",
        recipe=trained.as_dict(),
        training_seconds=training_seconds,
        results=[
            {"task": r.task, "protocol": r.protocol.describe(), "seconds": r.seconds, "metrics": metrics_with_std(r)}
            for r in results
        ],
    )
    print(path)


if __name__ == "__main__":
    auto_cli(main)
