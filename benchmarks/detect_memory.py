"""Does detection in many images hold more memory than in a few?

python benchmarks/detect_memory.py --detector FOLDER --data coco128   (a folder with detector.safetensors)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from rich.console import Console

from machine import Memory, write
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.detectors import load_detector
from mec.evaluate.detection.metrics import detection_metrics
from mec.evaluate.detection.training import detection_trainer, run_detector
from mec.results import Protocol, Stopwatch


def main(detector: str = "runs/coco/encoder-0", data: str = "coco128") -> None:
    """Run the detector on a tenth of the test images, then on all, then compute the metrics.

    Args:
        detector: folder of a detector.
        data: a detection dataset.
    """
    _, test = open_annotated(data)
    network, spec = load_detector(Path(detector))
    trainer = detection_trainer(Path(detector), "detection", "auto", 1, "auto")
    rows = []
    for count in (len(test) // 10, len(test)):
        subset = test.subset(np.arange(count))
        clock = Stopwatch()
        with Memory() as memory:
            detections = run_detector(network, subset.images, trainer, 0)
        rows.append((f"detection in {count} images", memory, clock()))
    clock = Stopwatch()
    with Memory() as memory:
        detection_metrics(test, [detections[i] for i in range(len(test))])
    rows.append(("metrics", memory, clock()))
    console = Console(soft_wrap=True)
    baseline = rows[0][1].before
    for name, memory, seconds in rows:
        console.print(f"{name}: peak {memory.peak - baseline:.0f} MiB above the loaded detector, {seconds:.0f} s")
    path = write(
        "detect_memory",
        "memory of detection in many images",
        encoder=spec.encoder.backbone,
        architecture=spec.architecture,
        schedule=Protocol("schedule", spec.schedule.protocol_settings()).describe(),
        num_detections=sum(len(d.labels) for d in detections.values()),
        rows=[{"name": n, "extra_mib": round(m.peak - baseline), "seconds": s} for n, m, s in rows],
    )
    console.print(path)


if __name__ == "__main__":
    auto_cli(main)
