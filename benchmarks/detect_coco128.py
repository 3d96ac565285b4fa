"""Is a briefly pretrained encoder a better initialization of a detector than an untrained one?

python benchmarks/detect_coco128.py --data coco128 --images FOLDER   (images to pretrain on, such as Caltech-101)
"""

from __future__ import annotations

import csv
import tempfile
from dataclasses import replace
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console

import mec
from machine import write
from mec import evaluate
from mec.engine.progress import METRICS_FILE
from mec.pretraining import ProjectorSettings
from mec.results import Stopwatch

NARROW = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "zero_init_last": False}


def main(
    data: str = "coco128", images: str = "caltech101", epochs: int = 10, max_steps: int = 500, trials: int = 1
) -> None:
    """Pretrain without labels, then train detectors from the pretrained and from the untrained encoder.

    Args:
        data: COCO128, or another detection dataset.
        images: images for pretraining.
        epochs: epochs of pretraining.
        max_steps: optimizer steps of each detector.
        trials: detectors of each encoder.
    """
    recipe = replace(
        mec.load_recipe("small"),
        backbone_options=NARROW,
        epochs=epochs,
        projector=ProjectorSettings(hidden_dim=512, output_dim=256),
        workers=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        clock = Stopwatch()
        run = mec.pretrain(images, Path(folder) / "run", recipe)
        pretraining_seconds = clock()
        out = Path(folder) / "detectors"
        result = evaluate.detect(data, run, out, max_steps=max_steps, trials=trials, baselines=True, workers=1)
        losses = {name: _losses(out / f"{name}-0" / METRICS_FILE) for name in result.rows}
    console = Console(soft_wrap=True)
    console.print(result.table())
    path = write(
        "detect_coco128",
        "detectors on COCO128 from a briefly pretrained and from an untrained encoder",
        data=str(replace(result.dataset, name=Path(data).name)),
        pretraining={"data": Path(images).name, "epochs": epochs, "seconds": pretraining_seconds},
        protocol=result.protocol.describe(),
        metrics={name: result.values(name) for name in result.rows},
        seconds=result.seconds,
        losses=losses,
    )
    console.print(path)


def _losses(path: Path) -> dict[str, float]:
    """Return the mean losses over the first and the last tenth of the training."""
    with path.open(newline="") as file:
        loss = [float(row["loss"]) for row in csv.DictReader(file)]
    tenth = max(1, len(loss) // 10)
    return {"first tenth": sum(loss[:tenth]) / tenth, "last tenth": sum(loss[-tenth:]) / tenth}


if __name__ == "__main__":
    auto_cli(main)
