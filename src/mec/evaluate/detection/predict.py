"""Run a trained detector on images without annotations."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask

from mec.data.dataset import DataLike, FileDataset, ImageDataset, read_image
from mec.data.datasets import open_dataset
from mec.data.decode import EXTENSIONS
from mec.data.pixels import PixelFormat
from mec.distributed import is_rank_zero
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import Detections, to_coco_results
from mec.evaluate.detection.detect import DETECTIONS
from mec.evaluate.detection.detectors import WEIGHTS, DetectorSpec, load_detector
from mec.evaluate.detection.training import detection_trainer, run_detector
from mec.evaluate.drawing import draw_detections
from mec.files import atomic_write

PREDICTED = "predicted"
JPEG_QUALITY = 90


def predict(
    images: DataLike,
    out: str | os.PathLike[str],
    threshold: float = 0.5,
    devices: int | str = "auto",
    workers: int | None = None,
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

    Returns:
        The folder ``predicted``.

    Raises:
        InputError: no detector in ``out``, no images, or more than a twentieth of them corrupt.
    """
    check_threshold(threshold)
    folder = _find_detector(Path(out).expanduser())
    detector, spec = load_detector(folder)
    dataset = open_prediction_images(images)
    pixel_format = PixelFormat(spec.encoder.channels, spec.encoder.value_range, spec.encoder.background)
    trainer = detection_trainer(folder, "predict", devices, 1, "auto")
    detections = run_detector(detector, dataset, pixel_format, spec.schedule, trainer, workers)
    predicted = Path(out).expanduser() / PREDICTED
    if is_rank_zero():
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


def open_prediction_images(images: DataLike) -> ImageDataset:
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
            image_detections = _above_threshold(image_detections, threshold)
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


def _above_threshold(detections: Detections, threshold: float) -> Detections:
    boxes, labels, scores, masks = detections
    keep = np.flatnonzero(scores >= threshold)
    return Detections(boxes[keep], labels[keep], scores[keep], None if masks is None else [masks[i] for i in keep])
