"""Does looking for objects in many images hold more memory than in a few?

python benchmarks/detect_memory.py --detector FOLDER --data coco128   (a folder with detector.safetensors)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from rich.console import Console

from machine import Memory, write
from mec.data import PixelFormat
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.detectors import load_detector
from mec.evaluate.detection.metrics import detection_metrics
from mec.evaluate.detection.trainer import detection_trainer
from mec.evaluate.detection.training import run_detector
from mec.results import Stopwatch


def main(detector: str = "runs/coco/encoder-0", data: str = "coco128") -> None:
    """Look at a tenth of the images for testing, then at all, then compute the figures; memory beyond the detector's.

    Args:
        detector: a detector's folder.
        data: a detection set.
    """
    _, tested = open_annotated(data)
    built, spec = load_detector(Path(detector))
    reading = PixelFormat(spec.encoder.channels, spec.encoder.value_range, spec.encoder.background)
    trainer = detection_trainer(spec.schedule, Path(detector), "looking", "auto", 1, "auto")
    rows = []
    for count in (len(tested) // 10, len(tested)):
        part = tested.subset(np.arange(count))
        clock = Stopwatch()
        with Memory() as memory:
            found = run_detector(built, part.images, reading, spec.schedule, trainer, 0)
        rows.append((f"looking at {count} images", memory, clock()))
    clock = Stopwatch()
    with Memory() as memory:
        detection_metrics(tested, [found[i] for i in range(len(tested))])
    rows.append(("figures", memory, clock()))
    console = Console(soft_wrap=True)
    start = rows[0][1].before
    for name, used, seconds in rows:
        console.print(f"{name}: up to {used.most - start:.0f} MiB more than before all, {seconds:.0f} s")
    objects = sum(len(one.labels) for one in found.values())
    path = write(
        "detect_memory",
        "memory of looking for objects in many images",
        encoder=spec.encoder.backbone,
        architecture=spec.architecture,
        schedule=spec.schedule.protocol_settings(),
        objects_found=objects,
        figures=[{"name": n, "mib_more": round(m.most - start), "seconds": s} for n, m, s in rows],
    )
    console.print(path)


if __name__ == "__main__":
    auto_cli(main)
