"""COCO's JSON annotations: boxes, classes, and masks as polygons or RLE (cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mec.data.dataset import FileDataset
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Object
from mec.evaluate.detection.datasets.image_files import find_images
from mec.evaluate.detection.datasets.masks import MaskReader
from mec.text_files import TextError, read_text

logger = logging.getLogger("mec")

OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")  # prefixes of COCO's other files
ROBOFLOW = "_annotations.coco.json"
TRUE, FALSE = (1, "1"), (0, "0", None)  # values of iscrowd; True equals 1


def coco_files(path: Path) -> tuple[Path, Path | None] | None:
    """Find the JSON files of the training and, if there is one, the test split. None: no such files."""
    if path.is_file():
        return path, None
    if (path / "train" / ROBOFLOW).is_file():
        test = [file for split in ("valid", "val", "test") if (file := path / split / ROBOFLOW).is_file()]
        return path / "train" / ROBOFLOW, _first(test, path)
    for folder in (path / "annotations", path):
        files = [f for f in sorted(folder.glob("*.json")) if not f.name.startswith((*OTHER_TASKS, "."))]
        files = [f for f in files if f.name.startswith("instances_")] or files
        train = [f for f in files if "train" in f.name]
        rest = [f for f in files if f not in train]
        test = [f for f in rest if "val" in f.name] or [f for f in rest if "test" in f.name]
        if len(train) == 1 and len(test) == 1:
            return train[0], _first([*test, *(f for f in rest if f not in test)], folder)
        if len(files) == 1:
            return files[0], None
        if files:
            names = ", ".join(f.name for f in files[:5])
            raise InputError(f"data: expected one .json for train and one for val or test in {folder}, got {names}")
    return None


def _first(files: list[Path], folder: Path) -> Path | None:
    """Return the first file, and log the others."""
    if others := ", ".join(str(f.relative_to(folder)) for f in files[1:]):
        logger.info(f"{folder}: not used: {others}")
    return files[0] if files else None


def open_coco(train_file: Path, test_file: Path | None) -> tuple[AnnotatedDataset, AnnotatedDataset | None]:
    """Open the split of each JSON file. Masks are read if both splits have some."""
    train = _read(train_file)
    if test_file is None:
        return train, None
    test = _read(test_file)
    in_train, in_test = (dict(zip(s.category_ids.tolist(), s.categories, strict=True)) for s in (train, test))
    if differences := sorted(in_train.items() ^ in_test.items()):
        category_id = differences[0][0]
        train_name, test_name = in_train.get(category_id, "none"), in_test.get(category_id, "none")
        raise InputError(
            f"data: category {category_id} is {train_name!r} in {train_file} and {test_name!r} in {test_file}; "
            "expected the same categories"
        )
    if train.has_masks != test.has_masks:
        with_masks, without_masks = (train, test) if train.has_masks else (test, train)
        logger.warning(f"{with_masks.name} has masks and {without_masks.name} has none: masks are not used")
        train, test = replace(train, rle_counts=None), replace(test, rle_counts=None)
    return train, test


def _read(path: Path) -> AnnotatedDataset:
    content = _load_json(path)
    # Roboflow lists a supercategory of all classes first, which may have the name of one of its classes
    categories = content["categories"]
    own = [category for category in categories if category.get("supercategory") == category.get("name")]
    own_names = {category.get("name") for category in own}
    categories = own + [category for category in categories if category.get("name") not in own_names]
    category_ids, names = (_unique(path, "category", categories, key) for key in ("id", "name"))
    names_by_id = dict(sorted(zip(category_ids, names, strict=True)))
    image_ids, file_names = (_unique(path, "image", content["images"], key) for key in ("id", "file_name"))
    sizes = [(image.get("height"), image.get("width")) for image in content["images"]]
    for file_name, size in zip(file_names, sizes, strict=True):
        if not all(_is_number(side) and side >= 1 and side == int(side) for side in size):
            raise InputError(f"data: {path}: expected height and width of {file_name} in whole pixels, got {size}")
    dataset_name = "/".join(path.absolute().parts[-2:])
    image_indices = {image_id: i for i, image_id in enumerate(image_ids)}
    labels = {category_id: label for label, category_id in enumerate(names_by_id)}
    mask_reader = MaskReader()
    dataset = AnnotatedDataset.from_objects(
        _objects(path, dataset_name, content["annotations"], image_indices, labels, sizes, mask_reader),
        name=dataset_name,
        images=FileDataset(dataset_name, *find_images(path, file_names)),
        image_ids=np.array(image_ids, np.int64),
        sizes=np.array(sizes, np.int64),
        categories=list(names_by_id.values()),
        category_ids=np.array(list(names_by_id), np.int64),
        ap_metric="coco",
    )
    mask_reader.check(dataset_name, dataset.has_masks)
    return dataset


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except TextError as error:
        raise InputError(f"data: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"data: {path} cannot be read as JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"data: {path} has no list of {key}; expected COCO's images, annotations and categories")
        if not entries and key != "annotations":
            raise InputError(f"data: {path}: the list of {key} is empty")
    return dict(content)


def _unique(path: Path, kind: str, entries: list[dict[str, Any]], key: str) -> list[Any]:
    """Return a field of the entries, which must be there, unique, and an integer if it is the id."""
    values: dict[Any, None] = {}
    for entry in entries:
        value = entry.get(key)
        if value is None:
            raise InputError(f"data: {path}: expected a {key} for every {kind}")
        if key != "id":
            value = str(value)
        else:
            value = _as_id(value)
            if not isinstance(value, int) or abs(value) >= 2**63:
                raise InputError(f"data: {path}: expected a whole number of up to 63 bits as {kind} id, got {value!r}")
        if value in values:
            raise InputError(f"data: {path} has {kind} {value} twice")
        values[value] = None
    return list(values)


def _as_id(value: Any) -> Any:
    """Return a whole number that is written as text or with a decimal point, such as "7" or 7.0, as an integer. Other
    values are unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _objects(
    path: Path,
    dataset_name: str,
    annotations: list[dict[str, Any]],
    image_indices: dict[int, int],
    labels: dict[int, int],
    sizes: list[tuple[int, int]],
    mask_reader: MaskReader,
) -> Iterator[Object]:
    """Yield the objects, sorted by image. ``annotations`` is emptied to save memory."""
    for i, annotation in enumerate(annotations):
        name = f"data: {path}: annotation {annotation.get('id', f'at index {i}')}"
        for key, listed in (("image", image_indices), ("category", labels)):
            value = annotation[f"{key}_id"] = _as_id(annotation.get(f"{key}_id"))
            if not isinstance(value, int) or value not in listed:
                raise InputError(f"{name} is of {key} {value!r}, which the file does not list")
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise InputError(f"{name} has the bbox {box}; expected 4 finite numbers")
        if (crowd := annotation.get("iscrowd")) not in TRUE + FALSE:
            raise InputError(f"{name} has the iscrowd {crowd!r}; expected 0 or 1")
    order = np.argsort([image_indices[annotation["image_id"]] for annotation in annotations], kind="stable")
    with ProgressBar(f"reading {dataset_name}", len(annotations), unit="objects") as progress:
        for i in order.tolist():
            # free each annotation once it is read: those of a large dataset take several GB
            annotation, annotations[i] = annotations[i], {}
            image = image_indices[annotation["image_id"]]
            x, y, width, height = box = tuple(map(float, annotation["bbox"]))
            size, annotation_id = (int(sizes[image][0]), int(sizes[image][1])), annotation.get("id", i)
            try:
                counts, num_pixels = mask_reader.read(annotation.get("segmentation"), size, box, annotation_id)
            except ValueError as error:
                raise InputError(f"data: {path}: the mask of annotation {annotation_id}: {error}") from error
            area = annotation.get("area")
            if not _is_number(area) or area < 0:  # COCO's evaluation would ignore the object
                area = num_pixels if counts else width * height
            label, crowd = labels[annotation["category_id"]], annotation.get("iscrowd") in TRUE
            yield Object(image, (x, y, x + width, y + height), label, float(area), crowd, rle_counts=counts)
            progress.advance(1)
