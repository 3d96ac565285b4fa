"""COCO's JSON annotations: boxes, classes, and masks as polygons or RLE (cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask

from mec.data.dataset import FileDataset
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Object, parse_rle_counts

logger = logging.getLogger("mec")

OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")  # prefixes of COCO's other files
ROBOFLOW = "_annotations.coco.json"
MAX_COORDINATE = 100_000  # pixels. Polygons beyond are damaged, and rasterizing them takes memory: they are discarded


def coco_files(path: Path) -> tuple[Path, Path | None] | None:
    """Find the JSON files of the training and, if there is one, the test split. None: no such files."""
    if path.is_file():
        return path, None
    if (path / "train" / ROBOFLOW).is_file():
        test_files = [path / split / ROBOFLOW for split in ("valid", "test")]
        return path / "train" / ROBOFLOW, next((file for file in test_files if file.is_file()), None)
    for folder in (path / "annotations", path):
        files = [f for f in sorted(folder.glob("*.json")) if not f.name.startswith((*OTHER_TASKS, "."))]
        files = [f for f in files if f.name.startswith("instances_")] or files
        train = [f for f in files if "train" in f.name]
        rest = [f for f in files if f not in train]
        test = [f for f in rest if "val" in f.name] or [f for f in rest if "test" in f.name]
        if len(train) == 1 and len(test) == 1:
            return train[0], test[0]
        if len(files) == 1:
            return files[0], None
        if files:
            names = ", ".join(f.name for f in files[:5])
            raise InputError(f"data: expected one .json for train and one for val or test in {folder}, got {names}")
    return None


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
        logger.info(f"{with_masks.name} has masks and {without_masks.name} has none: masks are not used")
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
    return AnnotatedDataset.from_objects(
        _objects(path, dataset_name, content["annotations"], image_indices, labels, sizes),
        name=dataset_name,
        images=FileDataset(dataset_name, _image_root(path, file_names), file_names),
        image_ids=np.array(image_ids, np.int64),
        sizes=np.array(sizes, np.int64),
        categories=list(names_by_id.values()),
        category_ids=np.array(list(names_by_id), np.int64),
        ap_metric="coco",
    )


def _load_json(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
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
        elif not isinstance(value, int) or abs(value) >= 2**63:
            raise InputError(f"data: {path}: expected a whole number of up to 63 bits as {kind} id, got {value!r}")
        if value in values:
            raise InputError(f"data: {path} has {kind} {value} twice")
        values[value] = None
    return list(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _image_root(path: Path, names: list[str]) -> Path:
    """Find the folder with the images ``names`` of the JSON file ``path``."""
    split = path.stem.removeprefix("instances_")
    candidates = dict.fromkeys([split, path.stem, *re.split(r"[-_.]", path.stem)])
    above = [path.parent.parent] if path.parent.name == "annotations" else []
    bases = [*above, path.parent]
    folders = [base / inner / name for name in candidates for base in bases for inner in ("", "images")]
    folders = [f for f in (*folders, *(base / "images" for base in bases), *bases) if f.is_dir()]
    best, missing = folders[-1], names
    for folder in folders:
        missing_here = _missing_files(folder, names)
        if len(missing_here) < len(missing):
            best, missing = folder, missing_here
        if not missing:
            return best
    searched = best if len(missing) < len(names) else " and ".join(dict.fromkeys(str(f) for f in folders))
    count = f"{len(missing):,} of {len(names):,} images"
    raise InputError(f"data: {count} of {path} are missing, the first is {missing[0]}; searched {searched}")


def _missing_files(folder: Path, names: list[str]) -> list[str]:
    """Return the ``names`` without a file in the folder. Listing sub-folders is faster than a test per file."""
    present: set[str] = set()
    for subfolder in {os.path.dirname(name) for name in names}:
        if os.path.isdir(folder / subfolder):
            present.update(os.path.join(subfolder, entry) for entry in os.listdir(folder / subfolder))
    return [name for name in names if name not in present]


def _objects(
    path: Path,
    dataset_name: str,
    annotations: list[dict[str, Any]],
    image_indices: dict[int, int],
    labels: dict[int, int],
    sizes: list[tuple[int, int]],
) -> Iterator[Object]:
    """Yield the objects, sorted by image. ``annotations`` is emptied to save memory."""
    for i, annotation in enumerate(annotations):
        name = f"data: {path}: annotation {annotation.get('id', f'at index {i}')}"
        for key, listed in (("image", image_indices), ("category", labels)):
            value = annotation.get(f"{key}_id")
            if not isinstance(value, int) or value not in listed:
                raise InputError(f"{name} is of {key} {value!r}, which the file does not list")
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise InputError(f"{name} has the bbox {box}; expected 4 finite numbers")
    order = np.argsort([image_indices[annotation["image_id"]] for annotation in annotations], kind="stable")
    with ProgressBar(f"reading {dataset_name}", len(annotations), unit="objects") as progress:
        for i in order.tolist():
            # free each annotation once it is read: those of a large dataset take several GB
            annotation, annotations[i] = annotations[i], {}
            image = image_indices[annotation["image_id"]]
            try:
                counts, num_pixels = _encode_mask(annotation.get("segmentation"), *map(int, sizes[image]))
            except ValueError as error:
                raise InputError(f"data: {path}: the mask of annotation {annotation.get('id', i)}: {error}") from error
            x, y, width, height = map(float, annotation["bbox"])
            area = annotation.get("area")
            if not _is_number(area):
                area = num_pixels if counts else width * height
            label, crowd = labels[annotation["category_id"]], bool(annotation.get("iscrowd"))
            yield Object(image, (x, y, x + width, y + height), label, float(area), crowd, rle_counts=counts)
            progress.advance(1)


def _encode_mask(segmentation: Any, height: int, width: int) -> tuple[bytes, int]:
    """Return compressed RLE counts and number of pixels, b"" and 0 without any. ValueError if they cannot be read."""
    if isinstance(segmentation, list):
        segmentation = [polygon for polygon in segmentation if _is_polygon(polygon)]
    if not segmentation:
        return b"", 0
    if isinstance(segmentation, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    else:
        mask = _compress_rle(segmentation, height, width)
    num_pixels = int(coco_mask.area(mask))
    return (mask["counts"], num_pixels) if num_pixels else (b"", 0)


def _is_polygon(polygon: Any) -> bool:
    """Return whether there are at least three corners, with plausible coordinates."""
    try:
        values = np.asarray(polygon)
    except ValueError:  # lists of different lengths
        return False
    if values.ndim != 1 or values.dtype.kind not in "if" or len(values) < 6 or len(values) % 2:
        return False
    return bool(np.abs(values).max() < MAX_COORDINATE)


def _compress_rle(mask: Any, height: int, width: int) -> dict[str, Any]:
    if not isinstance(mask, dict) or not mask.keys() >= {"size", "counts"}:
        raise ValueError("expected polygons, or RLE with size and counts")
    if mask["size"] != [height, width]:
        raise ValueError(f"expected the size of its image, [{height}, {width}], got {mask['size']}")
    runs = parse_rle_counts(mask["counts"]).tolist() if isinstance(mask["counts"], str) else mask["counts"]
    are_runs = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    if not are_runs or sum(runs) != height * width:  # not every decoder checks this
        raise ValueError(f"expected run lengths of {height * width} pixels in total")
    return dict(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width))
