"""``predict``: a trained detector at work on images that nobody annotated."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.data.dataset import FileDataset, ImageDataset
from mec.data.datasets import open_dataset
from mec.data.decode import EXTENSIONS, open_image
from mec.data.pixels import PixelFormat
from mec.distributed import is_rank_zero
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import Detections, as_records
from mec.evaluate.detection.detect import DETECTIONS
from mec.evaluate.detection.detectors import WEIGHTS, load_detector
from mec.evaluate.detection.trainer import detection_trainer
from mec.evaluate.detection.training import look
from mec.evaluate.drawing.detections import draw
from mec.evaluate.task import Source
from mec.files import atomic_write

DRAWN = "predicted"
QUALITY = 90
"""Of the JPEG files."""


def predict(
    images: Source,
    out: str | os.PathLike[str],
    threshold: float = 0.5,
    devices: int | str = "auto",
    workers: int | None = None,
) -> Path:
    """Draw what a detector finds: boxes, and masks if it predicts them.

    Args:
        images: any source of images (see ``mec.data.open_dataset``), or one file.
        out: a folder that ``detect`` has made, whose first detector is taken, or one detector's folder in it. The
            images go to ``predicted/`` in it, under their own names, and beside them a detections.json: a data set
            in COCO's format, with a score for each object, as annotation tools read it.
        threshold: the least score of an object that is drawn and written.
        devices: auto (all GPUs, or one process of a CPU) or a number of them.
        workers: loader processes; null is one per core.

    Returns:
        The folder ``predicted``.

    Raises:
        InputError: no detector there, no images, or more than a twentieth of them that cannot be read.
    """
    check_threshold(threshold)
    folder = _detector_in(Path(out).expanduser())
    detector, spec = load_detector(folder)
    dataset = open_images_to_predict(images)
    reading = PixelFormat(spec.encoder.channels, spec.encoder.value_range, spec.encoder.background)
    trainer = detection_trainer(spec.schedule, folder, "predict", devices, 1, "auto")
    found = look(detector, dataset, reading, spec.schedule, trainer, workers)
    drawn = Path(out).expanduser() / DRAWN
    if is_rank_zero():
        _write(dataset, found, spec.categories, spec.category_ids, threshold, drawn)
    return drawn


def _detector_in(out: Path) -> Path:
    if (out / WEIGHTS).is_file():
        return out
    trained = [path.parent for path in out.glob(f"*/{WEIGHTS}")]
    if not trained:
        raise InputError(f"out: {out} holds no trained detector; mec evaluate detect DATA --encoder E --out {out} does")
    # that of the encoder, of the first seed: encoder-9 comes before encoder-10, and before untrained-0
    return min(trained, key=lambda folder: (folder.name.split("-")[0], len(folder.name), folder.name))


def check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold: expected a number from 0 to 1, got {threshold}")


def open_images_to_predict(images: Source) -> ImageDataset:
    """A source, or one file."""
    path = Path(images).expanduser()
    if path.is_file() and path.suffix.lower() in EXTENSIONS:
        return FileDataset(path.name, path.parent, [path.name])
    return open_dataset(images, "all")


def _write(
    dataset: ImageDataset,
    found: dict[int, Detections],
    categories: list[str],
    ids: list[int],
    threshold: float,
    out: Path,
) -> None:
    described: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": n, "name": name} for n, name in zip(ids, categories, strict=True)],
    }
    names = _names(dataset, list(found))
    with ProgressBar("drawing", len(found)) as line:
        for index, detections in found.items():
            image = _seen(dataset, index)
            some = _above(detections, threshold)
            described["images"].append(
                {
                    "id": index,
                    "file_name": _own_name(dataset, index),
                    "height": image.shape[0],
                    "width": image.shape[1],
                }
            )
            for record in as_records(some, index, ids):
                area = _area(record)
                described["annotations"].append(
                    {"id": len(described["annotations"]) + 1, **record, "area": area, "iscrowd": 0}
                )
            with atomic_write(out / names[index]) as path:
                draw(image, some, categories, threshold).save(path, "JPEG", quality=QUALITY)
            line.advance(1)
    with atomic_write(out / DETECTIONS) as path:
        path.write_text(json.dumps(described))


def _area(record: dict[str, Any]) -> float:
    if "segmentation" in record:
        return float(coco_mask.area(record["segmentation"]))
    return float(record["bbox"][2] * record["bbox"][3])


def _own_name(dataset: ImageDataset, index: int) -> str:
    """Within the source where it is a folder."""
    return dataset.names[index] if isinstance(dataset, FileDataset) else dataset.title(index)


def _names(dataset: ImageDataset, numbers: list[int]) -> dict[int, str]:
    """Of the drawn images: those of the files, in their sub-folders; with the number where one is taken."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for n in numbers:
        own = Path(_own_name(dataset, n))
        own = Path(own.name) if own.is_absolute() or ".." in own.parts else own
        drawn = own.with_suffix(".jpg")
        while drawn.as_posix() in taken:
            drawn = drawn.with_name(f"{drawn.stem}-{n}.jpg")
        names[n] = drawn.as_posix()
        taken.add(names[n])
    return names


def _seen(dataset: ImageDataset, index: int) -> NDArray[np.uint8]:
    return open_image(dataset.load(index)).decode(PixelFormat()).astype(np.uint8, copy=False)


def _above(found: Detections, threshold: float) -> Detections:
    kept = found.scores >= threshold
    masks = None if found.masks is None else [m for m, keep in zip(found.masks, kept, strict=True) if keep]
    return Detections(found.boxes[kept], found.labels[kept], found.scores[kept], masks)
