"""What does a short pretraining on photographs gain? Linear probe, kNN, and finetuning with a tenth of the labels.

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
from mec.pretraining import ProjectorSettings
from mec.results import Stopwatch

NARROW = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "zero_init_last": False}


def main(data: str = "caltech101", epochs: int = 30, trials: int = 3, label_fraction: float = 0.1) -> None:
    """Pretrain on all photographs without labels, then evaluate the encoder and the untrained encoder.

    Args:
        data: folder of the photographs.
        epochs: epochs of pretraining.
        trials: trials of finetuning.
        label_fraction: fraction of the labels used in finetuning.
    """
    recipe = replace(
        mec.load_recipe("small"),
        backbone_options=NARROW,
        epochs=epochs,
        log_every=10,
        projector=ProjectorSettings(hidden_dim=512, output_dim=256),
    )
    with tempfile.TemporaryDirectory() as folder:
        clock = Stopwatch()
        run = mec.pretrain(data, Path(folder) / "run", recipe)
        training_seconds = clock()
        results = [
            evaluate.linear(data, run),
            evaluate.knn(data, run, k=[20]),
            evaluate.finetune(data, run, label_fraction=label_fraction, trials=trials),
        ]
    console = Console(soft_wrap=True)
    for result in results:
        console.print(result.table())
    path = write(
        "caltech",
        "a short pretraining on Caltech-101: linear probe, kNN and finetuning with few labels, against the untrained "
        "encoder",
        data=f"Caltech-101, {Path(data).name}: {str(results[0].dataset).partition('(')[2].rstrip(')')}",
        recipe=recipe.as_dict(),
        training_seconds=training_seconds,
        results=[
            {"task": r.task, "protocol": r.protocol.describe(), "seconds": r.seconds, "metrics": metrics_with_std(r)}
            for r in results
        ],
    )
    print(path)


if __name__ == "__main__":
    auto_cli(main)
