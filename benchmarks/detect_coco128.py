"""Does a briefly pretrained encoder start a detector better than an untrained one? What does testing hold in memory?

python benchmarks/detect_coco128.py --data coco128 --pictures FOLDER   (pictures to pretrain on, such as Caltech-101)
"""

from __future__ import annotations

import csv
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from rich.console import Console

import mec
from machine import Memory, write
from mec import evaluate
from mec.evaluate.detection.detectors import load_detector
from mec.evaluate.detection.sources import open_annotated
from mec.evaluate.detection.trainer import METRICS, detection_trainer
from mec.evaluate.detection.training import look
from mec.evaluate.result import Stopwatch
from mec.evaluate.task import reading_of
from mec.training import ProjectorSettings

NARROW = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "zero_init_last": False}


def main(
    data: str = "coco128", pictures: str = "caltech101", epochs: int = 10, iterations: int = 500, seeds: int = 1
) -> None:
    """Pretrain without labels, then train detectors on all training pictures from it and from it untrained.

    Args:
        data: COCO128, or another set.
        pictures: those to pretrain on.
        epochs: of pretraining.
        iterations: of the detectors.
        seeds: detectors of each.
    """
    recipe = replace(
        mec.load_recipe("small"),
        backbone_options=NARROW,
        epochs=epochs,
        projector=ProjectorSettings(hidden=512, outputs=256),
        workers=1,
    )
    memory: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        clock = Stopwatch()
        run = mec.pretrain(pictures, Path(folder) / "run", recipe)
        pretraining_seconds = clock()
        out = Path(folder) / "detectors"
        result = evaluate.detect(
            data, run, out, iterations=iterations, seeds=seeds, baselines=True, workers=1
        )  # fmt: skip
        losses = {name: _losses(out / f"{name}-0" / METRICS) for name in result.figures}
        _, tested = open_annotated(data)
        detector, spec = load_detector(out / "encoder-0")
        trainer = detection_trainer(spec.schedule, out, "memory", "auto", 1, "auto")
        reading = reading_of(run.encoder())
        clock = Stopwatch()
        for count in (10, len(tested)):
            images = tested.subset(np.arange(count)).pictures
            with Memory() as used:
                look(detector, images, reading, spec.schedule, trainer, 0)
            memory[count] = used.most - used.before
            print(f"looking at {count} pictures: {memory[count]:.0f} MiB more")
        looking_seconds = clock()
    console = Console(soft_wrap=True)
    console.print(result.table())
    path = write(
        "detect_coco128",
        "detectors on COCO128 from a briefly pretrained encoder and from the same one untrained; memory of testing",
        data=result.data,
        pretraining={"data": Path(pictures).name, "epochs": epochs, "seconds": pretraining_seconds},
        protocol=result.protocol,
        figures=result.figures,
        seconds=result.seconds,
        losses=losses,
        memory_mib={f"{count} pictures": round(mib) for count, mib in memory.items()},
        looking_seconds=looking_seconds,
    )
    console.print(path)


def _losses(path: Path) -> dict[str, float]:
    """Means over the first and the last tenth of the training."""
    with path.open(newline="") as file:
        loss = [float(row["loss"]) for row in csv.DictReader(file)]
    tenth = max(1, len(loss) // 10)
    return {"first tenth": sum(loss[:tenth]) / tenth, "last tenth": sum(loss[-tenth:]) / tenth}


if __name__ == "__main__":
    auto_cli(main)
