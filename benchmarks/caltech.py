"""What does a short pretraining on photographs gain, on a CPU? Linear probe, kNN, and finetuning with few labels.

python benchmarks/caltech.py --data FOLDER   (Caltech-101: a folder with a sub-folder per class)
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


def main(
    data: str = "caltech101", minutes: float = 15, seed: int = 0, trials: int = 3, label_fraction: float = 0.1
) -> None:
    """Pretrain on all photographs without labels, then evaluate the encoder and the untrained encoder.

    Args:
        data: folder of the photographs.
        minutes: duration of pretraining.
        seed: seed of weights and views.
        trials: trials of finetuning; 0 leaves it out.
        label_fraction: fraction of the labels used in finetuning.
    """
    recipe = replace(mec.load_recipe("small-cpu"), minutes=minutes, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        clock = Stopwatch()
        run = mec.pretrain(data, Path(folder) / "run", recipe)
        training_seconds, trained = clock(), run.recipe()
        results = [evaluate.linear(data, run), evaluate.knn(data, run, k=[20])]
        if trials:
            results.append(evaluate.finetune(data, run, label_fraction=label_fraction, trials=trials))
    console = Console(soft_wrap=True)
    for result in results:
        console.print(result.table())
    path = write(
        "caltech",
        "a short pretraining on Caltech-101: linear probe, kNN and finetuning with few labels, against the untrained "
        "encoder",
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
