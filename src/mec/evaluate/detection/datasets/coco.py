"""Annotations in COCO's json: boxes, classes, masks as polygons or run lengths (cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.data.dataset import FileDataset
from mec.engine.progress import ProgressBar, log
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset
from mec.evaluate.detection.datasets.builder import AnnotationBuilder
from mec.evaluate.detection.masks import run_lengths

OTHERS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
"""What COCO has beside the objects."""
ROBOFLOW = "_annotations.coco.json"
FARTHEST = 100_000
"""Pixels; a corner of a polygon farther away is damage, and would cost memory by its distance."""


def coco_files(path: Path) -> tuple[Path, Path | None] | None:
    """The json for training and, where there is one, that for testing; None where there is nothing of the kind.

    Raises:
        InputError: several that could be meant.
    """
    if path.is_file():
        return path, None
    if (path / "train" / ROBOFLOW).is_file():
        parts = [path / part / ROBOFLOW for part in ("valid", "test")]
        return path / "train" / ROBOFLOW, next((part for part in parts if part.is_file()), None)
    for folder in (path / "annotations", path):
        files = [f for f in sorted(folder.glob("*.json")) if not f.name.startswith((*OTHERS, "."))]
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
    """The part of each json; with masks, where both parts have some.

    Raises:
        InputError: what is wrong with the files, in one line.
    """
    train = _read(train_file)
    if test_file is None:
        return train.annotated(train.has_masks), None
    test = _read(test_file)
    ours, theirs = (dict(zip(p.category_ids.tolist(), p.categories, strict=True)) for p in (train, test))
    for number in sorted(ours.keys() | theirs.keys()):
        if ours.get(number) != theirs.get(number):
            words = f"{ours.get(number, 'none')!r} in {train_file} and {theirs.get(number, 'none')!r} in {test_file}"
            raise InputError(f"data: category {number} is {words}; expected the same categories")
    if train.has_masks != test.has_masks:
        have, lack = (train, test) if train.has_masks else (test, train)
        log(f"{have.name} has masks and {lack.name} has none: both are read without")
    masks = train.has_masks and test.has_masks
    return train.annotated(masks), test.annotated(masks)


def _read(path: Path) -> AnnotationBuilder:
    raw = _loaded(path)
    try:
        categories = _categories(path, raw["categories"])
        numbers = {_id(path, "image", one): i for i, one in enumerate(raw["images"])}
        names = [str(one["file_name"]) for one in raw["images"]]
        sizes = [(one["height"], one["width"]) for one in raw["images"]]
    except KeyError as error:
        raise InputError(f"data: {path}: an image or category has no {error.args[0]}") from error
    _once(path, "image", [one["id"] for one in raw["images"]])
    _once(path, "image", names)
    for name, size in zip(names, sizes, strict=True):
        if not all(_is_number(side) and side >= 1 and side == int(side) for side in size):
            raise InputError(f"data: {path}: expected height and width of {name} in whole pixels, got {size}")
    name = "/".join(path.absolute().parts[-2:])
    part = AnnotationBuilder(
        name=name,
        images=FileDataset(name, _root(path, names), names),
        ids=np.array(list(numbers), np.int64),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        categories=list(categories.values()),
        category_ids=np.array(list(categories), np.int64),
        rules="coco",
    )
    _fill(part, path, raw["annotations"], numbers)
    return part


def _loaded(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            raw = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"data: {path} cannot be read as JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        entries = raw.get(key) if isinstance(raw, dict) else None
        if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
            raise InputError(f"data: {path} has no list of {key}; expected COCO's images, annotations and categories")
        if not entries and key != "annotations":
            raise InputError(f"data: {path}: the list of {key} is empty")
    return dict(raw)


def _categories(path: Path, entries: list[dict[str, Any]]) -> dict[int, str]:
    """Names by number, in the order of the numbers."""
    found = [(_id(path, "category", one), str(one["name"]), str(one.get("supercategory"))) for one in entries]
    # Roboflow puts a group of all classes first, which may have the name of a class within it
    inner = {name for _, name, group in found if group == name}
    kept = [(number, name) for number, name, group in found if name not in inner or group == name]
    _once(path, "category", [number for number, _ in kept])
    _once(path, "category", [name for _, name in kept])
    return dict(sorted(kept))


def _id(path: Path, kind: str, one: dict[str, Any]) -> int:
    number = one["id"]
    if not isinstance(number, int) or abs(number) >= 2**63:
        raise InputError(f"data: {path}: expected a whole number of up to 63 bits as {kind} id, got {number!r}")
    return number


def _once(path: Path, kind: str, values: Iterable[Any]) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise InputError(f"data: {path} has {kind} {value} twice")
        seen.add(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _root(path: Path, names: list[str]) -> Path:
    """The folder in which the images are."""
    split = path.stem.removeprefix("instances_")
    words = dict.fromkeys([split, path.stem, *re.split(r"[-_.]", path.stem)])
    above = [path.parent.parent] if path.parent.name == "annotations" else []
    bases = [*above, path.parent]
    folders = [base / inner / word for word in words for base in bases for inner in ("", "images")]
    folders = [f for f in (*folders, *(base / "images" for base in bases), *bases) if f.is_dir()]
    best, missing = folders[-1], names
    for folder in folders:
        absent = _absent(folder, names)
        if len(absent) < len(missing):
            best, missing = folder, absent
        if not missing:
            return best
    where = best if len(missing) < len(names) else " and ".join(dict.fromkeys(str(f) for f in folders))
    count = f"{len(missing):,} of {len(names):,} images"
    raise InputError(f"data: {count} of {path} are missing, the first is {missing[0]}; looked for in {where}")


def _absent(folder: Path, names: list[str]) -> list[str]:
    there: set[str] = set()
    for within in {os.path.dirname(name) for name in names}:
        if os.path.isdir(folder / within):
            there.update(os.path.join(within, entry) for entry in os.listdir(folder / within))
    return [name for name in names if name not in there]


def _fill(part: AnnotationBuilder, path: Path, annotations: list[dict[str, Any]], numbers: dict[int, int]) -> None:
    labels = {number: label for label, number in enumerate(part.category_ids.tolist())}
    for place, one in enumerate(annotations):
        if wrong := _wrong(one, numbers, labels):
            raise InputError(f"data: {path}: annotation {one.get('id', f'at place {place}')} {wrong}")
    _once(path, "annotation", (one["id"] for one in annotations if "id" in one))
    order = np.argsort([numbers[one["image_id"]] for one in annotations], kind="stable")
    with ProgressBar(f"reading {part.name}", len(annotations), unit="objects") as shown:
        for i in order.tolist():
            one, annotations[i] = annotations[i], {}  # a large set is several GB in this form
            image = numbers[one["image_id"]]
            try:
                counts, pixels = _mask(one.get("segmentation"), part.sizes[image])
            except ValueError as error:
                raise InputError(f"data: {path}: the mask of annotation {one.get('id', i)}: {error}") from error
            x, y, width, height = map(float, one["bbox"])
            area = one.get("area")
            if not _is_number(area):
                area = pixels if counts else width * height
            label, crowd = labels[one["category_id"]], bool(one.get("iscrowd"))
            part.add(image, (x, y, x + width, y + height), label, float(area), crowd, mask=counts)
            shown.advance(1)


def _wrong(one: dict[str, Any], numbers: dict[int, int], labels: dict[int, int]) -> str:
    for key in ("image_id", "category_id", "bbox"):
        if key not in one:
            return f"has no {key}"
    for key, known in (("image", numbers), ("category", labels)):
        number = one[f"{key}_id"]
        if not isinstance(number, int) or number not in known:
            return f"is of {key} {number!r}, which the file does not list"
    box = one["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"has the bbox {box}; expected 4 finite numbers"
    return ""


def _mask(segmentation: Any, size: NDArray[np.int64]) -> tuple[bytes, int]:
    """Compressed run lengths and number of pixels; none and 0 where there is no mask, or one of no pixel.

    Raises:
        ValueError: neither polygons nor run lengths, or not of this height and width.
    """
    if not segmentation:
        return b"", 0
    height, width = size.tolist()
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if _is_polygon(polygon)]
        if not polygons:
            return b"", 0
        found = coco_mask.frPyObjects(polygons, height, width)
        mask = coco_mask.merge(found) if len(found) > 1 else found[0]
    else:
        mask = _compressed(segmentation, height, width)
    pixels = int(coco_mask.area(mask))
    return (mask["counts"], pixels) if pixels else (b"", 0)


def _is_polygon(polygon: Any) -> bool:
    """Three corners at least."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    try:
        values = np.asarray(polygon)
    except ValueError:
        return False
    return values.ndim == 1 and values.dtype.kind in "if" and bool(np.abs(values).max() < FARTHEST)


def _compressed(mask: Any, height: int, width: int) -> dict[str, Any]:
    if not isinstance(mask, dict) or not mask.keys() >= {"size", "counts"}:
        raise ValueError("expected polygons, or a size and counts of run lengths")
    if mask["size"] != [height, width]:
        raise ValueError(f"expected the size of its image, [{height}, {width}], got {mask['size']}")
    runs = run_lengths(mask["counts"]).tolist() if isinstance(mask["counts"], str) else mask["counts"]
    whole = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    if not whole or sum(runs) != height * width:  # what decodes them may not look
        raise ValueError(f"expected run lengths of {height * width} pixels in all")
    return dict(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width))
