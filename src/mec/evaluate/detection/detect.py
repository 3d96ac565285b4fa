"""Evaluate an encoder as the initialization of an object detector."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mec.data.dataset import DataLike
from mec.embedding.extract import check_channels, pixel_format_of
from mec.engine.checkpoints import latest_checkpoint
from mec.engine.run_folder import lock_folder, write_or_compare_settings
from mec.engine.trainer import seeded
from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, to_coco_results
from mec.evaluate.detection.detectors import (
    WEIGHTS,
    DetectorSpec,
    load_detector,
    resolve_architecture,
    save_detector,
)
from mec.evaluate.detection.metrics import detection_metrics
from mec.evaluate.detection.schedules import SCHEDULES, VOC_TRAIN_YEARS
from mec.evaluate.detection.training import detection_trainer, run_detector, train
from mec.evaluate.task import with_baseline
from mec.files import atomic_write
from mec.models.encoder import Encoder, EncoderLike
from mec.models.io import load_encoder
from mec.results import DatasetSummary, Protocol, Result, Stopwatch, mean_metrics

logger = logging.getLogger("mec")

METRICS, DETECTIONS = "metrics.json", "detections.json"
TABLE_METRICS = ("AP", "AP50", "AP75", "mask AP", "mask AP50", "mask AP75")
METRIC_NAMES = {"coco": "COCO", "voc07": "VOC2007 (11 points)", "voc": "VOC"}


def detect(
    data: DataLike,
    encoder: EncoderLike,
    out: str | os.PathLike[str],
    schedule: Literal["short", "voc07", "voc07+12", "coco-1x", "coco-2x"] = "short",
    architecture: Literal["c4", "fpn"] | None = None,
    trials: int = 1,
    seed: int = 0,
    baselines: bool | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    short_side: int | None = None,
    devices: int | str = "auto",
    nodes: int | str = "auto",
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto",
    workers: int | None = None,
    resume: bool = False,
) -> Result:
    """Train a detector initialized from the encoder, all layers, and measure its AP, AP50 and AP75.

    Faster R-CNN; Mask R-CNN if the data has masks. Data is PASCAL VOC (a VOCdevkit) or COCO (annotations/*.json
    beside the images; Roboflow's layout; one .json).

    Schedules: voc07+12 (24,000 steps of 16 images, tested on VOC2007 test), voc07 (9,000), coco-1x (90,000) and
    coco-2x (180,000), all as in MoCo and SimSiam with detectron2; and short, for a first try or a laptop: 500 steps of
    8 small images, whose metrics compare only with each other.

    Args:
        data: detection dataset with a training and a test split; without a test split, a fifth is held out.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        out: folder for the detectors, their checkpoints, metrics and detections.
        schedule: short, voc07, voc07+12, coco-1x or coco-2x.
        architecture: c4, a ResNet's last stage on each region, as in the published results; fpn, for any encoder.
            null: c4 for ResNets, fpn for other encoders.
        trials: detectors to train, each with another seed; 5 for a published VOC number.
        seed: seed of the first trial; it determines new layers and the order of the images.
        baselines: also train a detector from the untrained encoder; null: only with the
            schedule short.
        max_steps: optimizer steps; milestones and warm-up are scaled in proportion; null: the schedule's.
        batch_size: images in a step; the learning rate changes in proportion, the steps inversely; null: the
            schedule's.
        lr: learning rate; null: the schedule's.
        short_side: short side of the images in testing; those in training are scaled in proportion; null: the
            schedule's.
        devices: auto (all GPUs, or one process on a CPU) or a number of devices.
        nodes: number of machines, or auto: as started by torchrun or SLURM, else one.
        precision: auto is bf16-mixed on GPUs that support it, else 32-true.
        workers: loader processes of each device; null: one per core.
        resume: continue in ``out`` from the latest checkpoint.

    Raises:
        InputError: a mistake in the data, the encoder or a setting, before anything is written; or divergence.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if trials < 1:
        raise InputError(f"trials: expected at least 1, got {trials}")
    clock = Stopwatch()
    settings = SCHEDULES[schedule].with_overrides(max_steps, batch_size, lr, short_side)
    encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    resolved_architecture = resolve_architecture(encoder, architecture)
    out = Path(out).expanduser()
    train_set, test_set = open_annotated(data, VOC_TRAIN_YEARS.get(schedule))
    check_channels(train_set.images, encoder, data)
    spec = DetectorSpec(
        encoder=encoder.spec,
        architecture=resolved_architecture,
        categories=train_set.categories,
        category_ids=train_set.category_ids.tolist(),
        has_masks=train_set.has_masks,
        schedule=settings,
    )
    encoders = with_baseline(encoder, schedule == "short" if baselines is None else baselines)
    trainer = detection_trainer(out, "", devices, nodes, precision)
    if settings.batch_size % trainer.world_size:
        raise InputError(f"batch_size: {settings.batch_size} cannot be divided among {trainer.world_size} processes")
    with torch.random.fork_rng():  # raise the errors of training before anything is written
        spec.build(encoder)
    metrics: dict[str, list[dict[str, float]]] = {row: [] for row in encoders}
    with lock_folder(out):
        write_or_compare_settings(out, {"data": str(data), "weights": encoder.description, **asdict(spec)}, resume)
        logger.info(f"encoder: {encoder.description}")
        for trial_seed in range(seed, seed + trials):
            for row, row_encoder in encoders.items():
                name = f"{row}-{trial_seed}"
                trial = _Trial(
                    spec, row_encoder, train_set, test_set, out / name, name if trials > 1 else row, trial_seed, workers
                )
                metrics[row].append(trial.run(devices, nodes, precision))
    detector = f"{'Mask' if spec.has_masks else 'Faster'} R-CNN {spec.architecture.upper()}"
    return Result(
        task="detect",
        protocol=Protocol(
            f"detect-{schedule}",
            {
                "detector": detector,
                **settings.protocol_settings(),
                "metric": METRIC_NAMES[test_set.ap_metric],
                "seed": seed,
                "trials": trials,
            },
        ),
        dataset=DatasetSummary(
            str(data), {"train": len(train_set), "test": len(test_set), "classes": len(train_set.categories)}
        ),
        encoder=encoder.description,
        rows={
            row: mean_metrics(
                [{name: value for name, value in trial.items() if name in TABLE_METRICS} for trial in row_trials]
            )
            for row, row_trials in metrics.items()
        },
        seconds=clock(),
    )


@dataclass(frozen=True)
class _Trial:
    """Training and test of one detector.

    Attributes:
        spec: spec of the detector.
        encoder: initial weights.
        train_set: training split.
        test_set: test split.
        folder: folder for the files of the detector.
        label: label of the progress bar.
        seed: seed of the new layers and the order of the images.
        workers: loader processes; None: one per core.
    """

    spec: DetectorSpec
    encoder: Encoder
    train_set: AnnotatedDataset
    test_set: AnnotatedDataset
    folder: Path
    label: str
    seed: int
    workers: int | None

    def run(self, devices: int | str, nodes: int | str, precision: str) -> dict[str, float]:
        """Return the metrics over all classes. Steps whose files exist are skipped."""
        if (self.folder / METRICS).exists():
            overall: dict[str, float] = json.loads((self.folder / METRICS).read_text())["overall"]
            return overall
        schedule, pixel_format = self.spec.schedule, pixel_format_of(self.encoder)
        with seeded(self.seed):
            trainer = detection_trainer(self.folder, self.label, devices, nodes, precision)
            if (self.folder / WEIGHTS).exists():
                detector, _ = load_detector(self.folder)
            else:
                detector = self.spec.build(self.encoder)
                checkpoint = latest_checkpoint(self.folder)
                train(detector, self.train_set, pixel_format, schedule, trainer, self.seed, self.workers, checkpoint)
                if trainer.is_global_zero:
                    save_detector(detector, self.spec, self.folder)
            detections = run_detector(
                detector,
                self.test_set.images,
                pixel_format,
                schedule,
                trainer,
                self.workers,
                f"{self.label}, detecting",
            )
        return self._evaluate(detections, trainer.is_global_zero)

    def _evaluate(self, detections: dict[int, Detections], write: bool) -> dict[str, float]:
        """Compute the metrics over the images that could be read, and write them and the detections."""
        indices = sorted(detections)
        metrics = detection_metrics(self.test_set.subset(np.array(indices, np.int64)), [detections[i] for i in indices])
        if write:
            results = [
                result
                for i in indices
                for result in to_coco_results(detections[i], self.test_set.image_ids[i], self.test_set.category_ids)
            ]
            with atomic_write(self.folder / DETECTIONS) as path:
                path.write_text(json.dumps(results))
            with atomic_write(self.folder / METRICS) as path:
                path.write_text(json.dumps(metrics._asdict(), indent=2) + "\n")
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)  # detector.safetensors has the final weights
        return metrics.overall
