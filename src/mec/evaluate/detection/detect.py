"""Evaluate an encoder as the initialization of an object detector, and draw a detector's predictions."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from faster_coco_eval import mask as coco_mask

from mec.data.dataset import FileDataset, ImageDataset, PathLike, read_image
from mec.data.datasets import open_dataset
from mec.data.decode import EXTENSIONS
from mec.embedding.extract import check_channels
from mec.engine.checkpoints import latest_checkpoint
from mec.engine.progress import ProgressBar
from mec.engine.run_folder import lock_folder, write_or_compare_settings
from mec.engine.trainer import seeded
from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, to_coco_results
from mec.evaluate.detection.datasets.checks import check_images
from mec.evaluate.detection.detectors import (
    WEIGHTS,
    Detector,
    DetectorSpec,
    load_detector,
    resolve_architecture,
    save_detector,
)
from mec.evaluate.detection.metrics import detection_metrics
from mec.evaluate.detection.schedules import SCHEDULES, VOC_TRAIN_YEARS
from mec.evaluate.detection.training import detection_trainer, run_detector, train
from mec.evaluate.drawing import draw_detections
from mec.evaluate.task import with_baseline
from mec.files import atomic_write
from mec.models.encoder import Encoder, EncoderLike
from mec.models.io import load_encoder
from mec.results import DatasetSummary, Protocol, Result, Stopwatch, mean_metrics

logger = logging.getLogger("mec")

METRICS, DETECTIONS = "metrics.json", "detections.json"
TABLE_METRICS = ("AP", "AP50", "AP75", "mask AP", "mask AP50", "mask AP75")
PREDICTED, JPEG_QUALITY = "predicted", 90
METRIC_NAMES = {"coco": "COCO", "voc07": "VOC2007 (11 points)", "voc": "VOC"}


def detect(
    data: PathLike,
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
        baselines: also train a detector from the untrained encoder; null: only with the schedule short.
        max_steps: optimizer steps; milestones and warm-up (at least 50) scale in proportion; null: the schedule's.
        batch_size: images in a step; scales the learning rate in proportion, the steps inversely; null: the schedule's.
        lr: learning rate; null: the schedule's.
        short_side: short side of the images in testing, which scales those in training; null: the schedule's.
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
    for image_check in check_images(train_set, test_set).values():
        image_check.refuse_or_log()
        check_channels(image_check.dataset.images, encoder, data)
    category_ids = train_set.category_ids.tolist()
    spec = DetectorSpec(
        encoder.spec, resolved_architecture, train_set.categories, category_ids, train_set.has_masks, settings
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
                folder = out / f"{row}-{trial_seed}"
                if (folder / METRICS).exists():
                    overall = json.loads((folder / METRICS).read_text())["overall"]
                else:
                    with seeded(trial_seed):
                        label = folder.name if trials > 1 else row
                        trainer = detection_trainer(folder, label, devices, nodes, precision)
                        trained = _trained_detector(folder, spec, row_encoder, train_set, trainer, trial_seed, workers)
                        detections = run_detector(trained, test_set, trainer, workers, f"{label}, detecting")
                    overall = _evaluate(folder, test_set, detections, trainer.is_global_zero)
                metrics[row].append({name: value for name, value in overall.items() if name in TABLE_METRICS})
    detector = f"{'Mask' if spec.has_masks else 'Faster'} R-CNN {spec.architecture.upper()}"
    details = {"detector": detector, **settings.protocol_settings(), "metric": METRIC_NAMES[test_set.ap_metric]}
    counts = {"train": len(train_set), "test": len(test_set), "classes": len(train_set.categories)}
    return Result(
        task="detect",
        protocol=Protocol(f"detect-{schedule}", {**details, "seed": seed, "trials": trials}),
        dataset=DatasetSummary(str(data), counts),
        encoder=encoder.description,
        rows={row: mean_metrics(row_metrics) for row, row_metrics in metrics.items()},
        seconds=clock(),
    )


def _trained_detector(
    folder: Path,
    spec: DetectorSpec,
    encoder: Encoder,
    dataset: AnnotatedDataset,
    trainer: lightning.Trainer,
    seed: int,
    workers: int | None,
) -> Detector:
    """Train a detector and save it in the folder; load it if it is there."""
    if (folder / WEIGHTS).exists():
        return load_detector(folder, encoder)[0]
    detector = spec.build(encoder)
    train(detector, dataset, trainer, seed, workers, latest_checkpoint(folder))
    if trainer.is_global_zero:
        save_detector(detector, spec, folder)
    return detector


def _evaluate(
    folder: Path, dataset: AnnotatedDataset, detections: dict[int, Detections], write: bool
) -> dict[str, float]:
    """Compute the metrics over the images that could be read, and write them and the detections."""
    indices = sorted(detections)
    metrics = detection_metrics(dataset.subset(np.array(indices, np.int64)), [detections[i] for i in indices])
    if write:
        ids, category_ids = dataset.image_ids, dataset.category_ids
        results = [result for i in indices for result in to_coco_results(detections[i], ids[i], category_ids)]
        with atomic_write(folder / DETECTIONS) as path:
            path.write_text(json.dumps(results))
        with atomic_write(folder / METRICS) as path:
            path.write_text(json.dumps(metrics._asdict(), indent=2) + "\n")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # detector.safetensors has the final weights
    return metrics.overall


def predict(
    images: PathLike,
    out: str | os.PathLike[str],
    threshold: float = 0.5,
    devices: int | str = "auto",
    workers: int | None = None,
    encoder: Encoder | None = None,
) -> Path:
    """Draw a detector's predictions: boxes, and masks if it predicts them.

    Args:
        images: a dataset (see ``mec.open_dataset``) or one image file.
        out: output folder of ``detect``, whose first detector is used, or the folder of one detector in it. The images
            are written to ``predicted/`` in it under their own names, together with detections.json: a dataset in
            COCO's format with a score for each object, which annotation tools can import.
        threshold: minimum score of the objects that are drawn and written.
        devices: auto (all GPUs, or one process on a CPU) or a number of devices.
        workers: loader processes; null: one per core.
        encoder: an encoder of the detector's network, where that is not from timm; its weights are not used.

    Returns:
        The folder ``predicted``.

    Raises:
        InputError: no detector in ``out``, no images, or more than a twentieth of them corrupt.
    """
    check_threshold(threshold)
    folder = _find_detector(Path(out).expanduser())
    detector, spec = load_detector(folder, encoder)
    dataset = open_prediction_images(images)
    trainer = detection_trainer(folder, "predict", devices, 1, "auto")
    detections = run_detector(detector, dataset, trainer, workers)
    predicted = Path(out).expanduser() / PREDICTED
    if trainer.is_global_zero:
        _write(dataset, detections, spec, threshold, predicted)
    return predicted


def _find_detector(out: Path) -> Path:
    if (out / WEIGHTS).is_file():
        return out
    folders = [path.parent for path in out.glob(f"*/{WEIGHTS}")]
    if not folders:
        raise InputError(
            f"out: {out} holds no trained detector; train one with mec evaluate detect DATA --encoder E --out {out}"
        )
    # the encoder's with the lowest seed: encoder-9 comes before encoder-10, and before untrained-0
    return min(folders, key=lambda folder: (folder.name.split("-")[0], len(folder.name), folder.name))


def check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold: expected a number from 0 to 1, got {threshold}")


def open_prediction_images(images: PathLike) -> ImageDataset:
    """Open a dataset or one image file."""
    path = Path(images).expanduser()
    if path.is_file() and path.suffix.lower() in EXTENSIONS:
        return FileDataset(path.name, path.parent, [path.name])
    return open_dataset(images, "all")


def _write(
    dataset: ImageDataset, detections: dict[int, Detections], spec: DetectorSpec, threshold: float, out: Path
) -> None:
    """Write the drawings and detections.json."""
    categories = [{"id": i, "name": name} for i, name in zip(spec.category_ids, spec.categories, strict=True)]
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    taken: set[Path] = set()
    with ProgressBar("drawing", len(detections)) as progress:
        for index, image_detections in detections.items():
            image = read_image(dataset, index).astype(np.uint8, copy=False)
            boxes, labels, scores, masks = image_detections
            keep = np.flatnonzero(scores >= threshold)
            masks = None if masks is None else [masks[i] for i in keep]
            image_detections = Detections(boxes[keep], labels[keep], scores[keep], masks)
            name = dataset.names[index] if dataset.names is not None else dataset.title(index)
            coco["images"].append({"id": index, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
            for result in to_coco_results(image_detections, index, spec.category_ids):
                width, height = result["bbox"][2:]
                area = float(coco_mask.area(result["segmentation"])) if "segmentation" in result else width * height
                annotation = {"id": len(coco["annotations"]) + 1, **result, "area": area, "iscrowd": 0}
                coco["annotations"].append(annotation)
            with atomic_write(out / _drawing_file(name, index, taken)) as path:
                drawing = draw_detections(image, image_detections, spec.categories, threshold)
                drawing.save(path, "JPEG", quality=JPEG_QUALITY)
            progress.advance(1)
    with atomic_write(out / DETECTIONS) as path:
        path.write_text(json.dumps(coco))


def _drawing_file(name: str, index: int, taken: set[Path]) -> Path:
    """Return an image's own name and sub-folder as .jpg, with its index if the name is taken; add it to ``taken``."""
    path = Path(name)
    path = (Path(path.name) if path.is_absolute() or ".." in path.parts else path).with_suffix(".jpg")
    while path in taken:
        path = path.with_name(f"{path.stem}-{index}.jpg")
    taken.add(path)
    return path
