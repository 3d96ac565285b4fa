"""Annotations in the format of the PASCAL VOC challenges (Everingham et al. 2010): an XML file for each image."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from mec.data.dataset import FileDataset
from mec.data.decode import EXTENSIONS
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, ApMetric, Object
from mec.text_files import TextError, read_lines

logger = logging.getLogger("mec")

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""VOC's classes in the order of the challenges."""
POLYGON_TAGS = ("polygon", "segm", "mask")  # of Roboflow, LabelMe and others
TEST_YEAR = 2007  # the only year with public test annotations, and with the 11-point average precision
NO_YEAR = 0  # of a custom dataset in VOC's format


class ImageSet(NamedTuple):
    """A list in ImageSets/Main of ``folder``: its name ("all" without lists), and the images without extension."""

    folder: Path
    name: str
    stems: list[str]


def voc_folders(path: Path) -> dict[int, Path]:
    """Return year -> folder for each folder in VOC's format: the path itself, or those in it or in its VOCdevkit."""
    path = path.absolute()
    if _is_voc(path):
        return {int(path.name[3:]) if re.fullmatch(r"VOC\d{4}", path.name) else NO_YEAR: path}
    for parent in (path, path / "VOCdevkit"):
        folders = [folder for folder in sorted(parent.glob("VOC[0-9][0-9][0-9][0-9]")) if _is_voc(folder)]
        if folders:
            return {int(folder.name[3:]): folder for folder in folders}
    return {}


def _is_voc(path: Path) -> bool:
    return (path / "Annotations").is_dir() and ((path / "JPEGImages").is_dir() or (path / "ImageSets").is_dir())


def open_voc(
    path: Path, folders: dict[int, Path], years: tuple[int, ...] | None
) -> tuple[AnnotatedDataset, AnnotatedDataset | None]:
    """Open the training split of the years (None: all) and the test split, None if there is none: trainval, and VOC2007
    test or the test list of a custom dataset; without that, train and val."""
    train_years = sorted(years or folders)
    if missing := [year for year in train_years if year not in folders]:
        present = " and ".join(f"VOC{year}" if year else "a dataset without years" for year in folders)
        raise InputError(f"data: expected VOC{missing[0]}, {path} has {present}")
    test_year = TEST_YEAR if TEST_YEAR in folders else train_years[0]
    test_set = _image_set(folders[test_year], "test") if test_year in (TEST_YEAR, NO_YEAR) else None
    train_names = ["trainval", "train"]
    if test_set is None:
        test_year = train_years[0]
        test_set = _image_set(folders[test_year], "val")
        train_names = ["train"] if test_set else ["train", "trainval"]
    ap_metric: ApMetric = "voc07" if test_year == TEST_YEAR else "voc"
    train = _read([_first_image_set(folders[year], train_names) for year in train_years], ap_metric)
    classes = list(CLASSES) if set(train.categories) <= set(CLASSES) else sorted(train.categories)
    if test_set is None:
        return _with_classes(train, classes), None
    test = _read([test_set], ap_metric)
    if unknown := sorted(set(test.categories) - set(classes)):
        raise InputError(f"data: {test.name} has {unknown[0]!r}, a class that {train.name} lacks")
    return _with_classes(train, classes), _with_classes(test, classes)


def _first_image_set(folder: Path, names: list[str]) -> ImageSet:
    """Return the first list that exists; without ImageSets/Main, all annotated images."""
    lists = folder / "ImageSets" / "Main"
    if not lists.is_dir():
        stems = sorted(_annotated(folder))
        if not stems:
            raise InputError(f"data: no .xml in {folder / 'Annotations'}")
        return ImageSet(folder, "all", stems)
    for name in names:
        if image_set := _image_set(folder, name):
            return image_set
    raise InputError(f"data: expected {' or '.join(f'{name}.txt' for name in names)} in {lists}")


def _image_set(folder: Path, name: str) -> ImageSet | None:
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        return None
    try:
        lines = [line for _, line in read_lines(path)]
    except TextError as error:
        raise InputError(f"data: {error}") from error
    annotated = _annotated(folder)
    stems = [next((stem for stem in _stems(line) if stem in annotated), _stems(line)[0]) for line in lines]
    if not stems:
        raise InputError(f"data: {path} is empty, expected names of images")
    if duplicate := next((stem for stem, count in Counter(stems).items() if count > 1), None):
        raise InputError(f"data: {path} has {duplicate} twice")
    return ImageSet(folder, name, stems)


def _annotated(folder: Path) -> set[str]:
    """Return the names of the annotated images without extension."""
    return {f.stem for f in (folder / "Annotations").glob("*.xml") if not f.name.startswith(".")}


def _stems(line: str) -> list[str]:
    """Return what a line of a list may name, the likeliest first: a name with spaces, a name before a second column (as
    in the lists of a class), or a path or file name of the image."""
    names = [line, line.rsplit(maxsplit=1)[0], line.split()[0]]
    files = [Path(name.replace("\\", "/")) for name in names]
    return list(dict.fromkeys([*names, *(f.stem if f.suffix.lower() in EXTENSIONS else f.name for f in files)]))


def _read(image_sets: list[ImageSet], ap_metric: ApMetric) -> AnnotatedDataset:
    """Read image sets. The classes are in the order of their first object."""
    image_files = [f"{s.folder.name}/{name}" for s in image_sets for name in _image_files(s.folder, s.stems)]
    files = [s.folder / "Annotations" / f"{stem}.xml" for s in image_sets for stem in s.stems]
    name = " + ".join(f"{s.folder.name} {s.name}" for s in image_sets)
    sizes: list[tuple[int, int]] = []
    objects: list[Object] = []
    labels: dict[str, int] = {}
    num_polygons = 0
    with ProgressBar(f"reading {name}", len(files)) as progress:
        for image, file in enumerate(files):
            size, image_objects, has_polygons = _read_xml(file, image, labels)
            sizes.append(size)
            objects += image_objects
            num_polygons += len(image_objects) * has_polygons
            progress.advance(1)
    if num_polygons:
        logger.warning(
            f"{name}: POLYGONS OF VOC ARE NOT READ, THE DETECTOR LEARNS BOXES ONLY ({num_polygons:,} objects in files "
            "with polygons); export the dataset in COCO's format for masks"
        )
    return AnnotatedDataset.from_objects(
        objects,
        name=name,
        images=FileDataset(name, image_sets[0].folder.parent, image_files),
        image_ids=np.arange(1, len(files) + 1),
        sizes=np.array(sizes),
        categories=list(labels),
        category_ids=np.arange(1, len(labels) + 1),
        ap_metric=ap_metric,
    )


def _image_files(folder: Path, stems: list[str]) -> list[str]:
    """Return the path of each image relative to the folder, after a search for missing images and annotations."""
    files = sorted((folder / "JPEGImages").glob("*"), reverse=True)  # of equal stems, the first in alphabetical order
    images = {f.stem: f.name for f in files if f.suffix.lower() in EXTENSIONS and not f.name.startswith(".")}
    checks = (("images", images, "JPEGImages"), ("annotations", _annotated(folder), "Annotations"))
    for kind, present, subfolder in checks:
        if missing := [stem for stem in stems if stem not in present]:
            count = f"{len(missing):,} of {len(stems):,} {kind}"
            raise InputError(f"data: {count} are missing, the first is {missing[0]}; searched {folder / subfolder}")
    return [f"JPEGImages/{images[stem]}" for stem in stems]


def _read_xml(path: Path, image: int, labels: dict[str, int]) -> tuple[tuple[int, int], list[Object], bool]:
    """Return height and width of an image, its objects, and whether any has a polygon. ``labels`` maps names to labels;
    new names are added."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise InputError(f"data: {path} cannot be read as XML ({error})") from error
    height, width = _numbers(root.find("size"), ("height", "width"))
    if not (height >= 1 and width >= 1):
        raise InputError(f"data: {path}: expected a size with a height and a width of at least a pixel")
    objects = []
    # direct children only: a <part> of an object has a name and a box of its own
    for number, entry in enumerate(root.findall("object"), 1):
        name = (entry.findtext("name") or "").strip()
        xmin, ymin, xmax, ymax = edges = _numbers(entry.find("bndbox"), ("xmin", "ymin", "xmax", "ymax"))
        if not name or math.isnan(sum(edges)):
            raise InputError(f"data: {path}: object {number} has no {'complete bndbox' if name else 'name'}")
        box = (xmin - 1, ymin - 1, xmax, ymax)  # VOC counts pixels from 1 and includes the last
        area = max(0.0, xmax - box[0]) * max(0.0, ymax - box[1])
        difficult = (entry.findtext("difficult") or "").strip().lower() in ("1", "true")
        objects.append(Object(image, box, labels.setdefault(name, len(labels)), area, is_difficult=difficult))
    has_polygons = any(root.find(f"object/{tag}") is not None for tag in POLYGON_TAGS)
    return (int(height), int(width)), objects, has_polygons


def _numbers(parent: ElementTree.Element | None, tags: tuple[str, ...]) -> list[float]:
    """Return the numbers in child elements; all NaN if one is missing or not finite."""
    try:
        numbers = [float(parent.findtext(tag, "")) for tag in tags] if parent is not None else [math.nan]
    except ValueError:
        numbers = [math.nan]
    return numbers if all(map(math.isfinite, numbers)) else [math.nan] * len(tags)


def _with_classes(dataset: AnnotatedDataset, classes: list[str]) -> AnnotatedDataset:
    """Replace the labels by indices into ``classes``."""
    new_labels = np.array([classes.index(name) for name in dataset.categories], np.int64)
    category_ids = np.arange(1, len(classes) + 1)
    return replace(dataset, categories=classes, category_ids=category_ids, labels=new_labels[dataset.labels])
