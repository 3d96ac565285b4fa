"""What is a short pretraining on photographs worth? Linear probe and fine-tuning with a tenth of the labels.

python benchmarks/caltech.py --data FOLDER   (Caltech-101: a folder of class folders)
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console

import mec
from machine import write
from mec import evaluate
from mec.pretraining import ProjectorSettings
from mec.results import Stopwatch, table

NARROW = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "zero_init_last": False}


def main(data: str = "caltech101", epochs: int = 30, seeds: int = 3, labels: str = "10%") -> None:
    """Pretrain on all photographs without labels, then measure the encoder beside itself untrained.

    Args:
        data: the folder.
        epochs: of pretraining.
        seeds: of fine-tuning.
        labels: of fine-tuning.
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
            evaluate.finetune(data, run, labels, seeds=seeds),
        ]
    console = Console(soft_wrap=True)
    for result in results:
        console.print(table([result]))
    path = write(
        "caltech",
        "a short pretraining on Caltech-101: linear probe, kNN and fine-tuning with few labels, beside the untrained",
        data=f"Caltech-101, {Path(data).name}: {results[0].data.partition('(')[2].rstrip(')')}",
        recipe=recipe.as_dict(),
        training_seconds=training_seconds,
        results=[{"task": r.task, "protocol": r.protocol, "seconds": r.seconds, "figures": r.figures} for r in results],
    )
    print(path)


if __name__ == "__main__":
    auto_cli(main)
