"""Annotations in the form of the PASCAL VOC challenges (Everingham et al. 2010): an xml file for each image."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from mec.data.dataset import FileDataset
from mec.data.decode import EXTENSIONS
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Rules
from mec.evaluate.detection.datasets.builder import AnnotationBuilder

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""In the order of the challenges."""
TESTED = 2007
"""The year whose test annotations were published, and whose average precision has 11 points."""
NO_YEAR = 0
"""In place of a year: a set of somebody's own in the form of VOC."""

List = tuple[Path, str, list[str]]
"""A folder, the name of a list in it, and the stems of the images that it names."""


def voc_folders(path: Path) -> dict[int, Path]:
    """The folders in VOC's form by their years: the path itself, or those in it or in a VOCdevkit in it."""
    path = path.absolute()
    for folders in ([path], _folders_in(path), _folders_in(path / "VOCdevkit")):
        years = {_year(f): f for f in folders if _is_voc(f) and (f == path or _year(f) != NO_YEAR)}
        if years:
            return dict(sorted(years.items()))
    return {}


def _folders_in(path: Path) -> list[Path]:
    return [f for f in path.iterdir() if f.is_dir()] if path.is_dir() else []


def _is_voc(path: Path) -> bool:
    return (path / "Annotations").is_dir() and ((path / "JPEGImages").is_dir() or (path / "ImageSets").is_dir())


def _year(path: Path) -> int:
    found = re.fullmatch(r"VOC(\d{4})", path.name)
    return int(found[1]) if found else NO_YEAR


def open_voc(
    path: Path, folders: dict[int, Path], years: tuple[int, ...] | None
) -> tuple[AnnotatedDataset, AnnotatedDataset | None]:
    """The part to learn from, of some years or of all, and that to test on, None where there is none.

    That is trainval, and test of 2007 or of a set without years; without such a test list, train and val.

    Raises:
        InputError: years that are not there, or what is wrong with the files, in one line.
    """
    chosen = sorted(years or folders)
    if missing := [year for year in chosen if year not in folders]:
        there = " and ".join(f"VOC{year}" if year else "a set without years" for year in folders)
        raise InputError(f"data: VOC{missing[0]} is asked for, {path} has {there}")
    tested = TESTED if TESTED in folders else chosen[0]
    test = _list(folders[tested], "test") if tested in (TESTED, NO_YEAR) else None
    wanted = ["trainval", "train"]
    if test is None:
        tested = chosen[0]
        test = _list(folders[tested], "val")
        wanted = ["train"] if test else ["train", "trainval"]
    rules: Rules = "voc07" if tested == TESTED else "voc"
    train = _read([_first(folders[year], wanted) for year in chosen], rules)
    classes = list(CLASSES) if set(train.categories) <= set(CLASSES) else sorted(train.categories)
    if test is None:
        return _with_classes(train, classes), None
    held = _read([test], rules)
    if unknown := sorted(set(held.categories) - set(classes)):
        raise InputError(f"data: {held.name} has {unknown[0]!r}, a class that {train.name} lacks")
    return _with_classes(train, classes), _with_classes(held, classes)


def _first(folder: Path, wanted: list[str]) -> List:
    inner = folder / "ImageSets" / "Main"
    if not inner.is_dir():
        stems = sorted(f.stem for f in (folder / "Annotations").glob("*.xml"))
        if not stems:
            raise InputError(f"data: no .xml in {folder / 'Annotations'}")
        return folder, "all", stems
    found = next((listed for kind in wanted if (listed := _list(folder, kind))), None)
    if found is None:
        raise InputError(f"data: expected {' or '.join(f'{kind}.txt' for kind in wanted)} in {inner}")
    return found


def _list(folder: Path, kind: str) -> List | None:
    path = folder / "ImageSets" / "Main" / f"{kind}.txt"
    if not path.is_file():
        return None
    try:
        # the lists of a class have a second column
        stems = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data: {path} cannot be read as text ({error})") from error
    if not stems:
        raise InputError(f"data: {path} names no image")
    if twice := next((stem for stem, count in Counter(stems).items() if count > 1), None):
        raise InputError(f"data: {path} names {twice} twice")
    return folder, kind, stems


def _read(lists: list[List], rules: Rules) -> AnnotationBuilder:
    """With the classes in the order in which they come."""
    root = lists[0][0].parent
    names = [f"{folder.name}/{name}" for folder, _, stems in lists for name in _images(folder, stems)]
    files = [folder / "Annotations" / f"{stem}.xml" for folder, _, stems in lists for stem in stems]
    name = " + ".join(f"{folder.name} {kind}" for folder, kind, _ in lists)
    empty = np.empty(0, np.int64)
    sizes = np.zeros((len(files), 2), np.int64)
    part = AnnotationBuilder(
        name, FileDataset(name, root, names), np.arange(1, len(files) + 1), sizes, [], empty, rules
    )
    numbers: dict[str, int] = {}
    with ProgressBar(f"reading {name}", len(files)) as shown:
        for image, file in enumerate(files):
            _add(part, image, file, numbers)
            shown.advance(1)
    return replace(part, categories=list(numbers))


def _images(folder: Path, stems: list[str]) -> list[str]:
    """The file of each image within the folder; their annotations are there too."""
    files = sorted((folder / "JPEGImages").glob("*"), reverse=True)  # of two with a stem, the first of the alphabet
    known = {f.stem: f.name for f in files if f.suffix.lower() in EXTENSIONS}
    described = {f.stem for f in (folder / "Annotations").glob("*.xml")}
    for what, there, inner in (("images", known, "JPEGImages"), ("annotations", described, "Annotations")):
        if absent := [stem for stem in stems if stem not in there]:
            count = f"{len(absent):,} of {len(stems):,} {what}"
            raise InputError(f"data: {count} are missing, the first is {absent[0]}; looked for in {folder / inner}")
    return [f"JPEGImages/{known[stem]}" for stem in stems]


def _add(part: AnnotationBuilder, image: int, path: Path, numbers: dict[str, int]) -> None:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise InputError(f"data: {path} is damaged ({error})") from error
    size = root.find("size")
    height, width = (_number(size, side) for side in ("height", "width"))
    if not (height >= 1 and width >= 1):
        raise InputError(f"data: {path}: expected a size with a height and a width of at least a pixel")
    part.sizes[image] = height, width
    for place, one in enumerate(root.findall("object"), 1):  # a <part> of an object has a name and a box of its own
        name = (one.findtext("name") or "").strip()
        edges = [_number(one.find("bndbox"), edge) for edge in ("xmin", "ymin", "xmax", "ymax")]
        if not name or math.isnan(sum(edges)):
            raise InputError(f"data: {path}: object {place} has no {'complete bndbox' if name else 'name'}")
        xmin, ymin, xmax, ymax = edges
        box = (xmin - 1, ymin - 1, xmax, ymax)  # the pixels from xmin to xmax, of which the first is 1
        label = numbers.setdefault(name, len(numbers))
        area = max(0.0, xmax - box[0]) * max(0.0, ymax - box[1])
        part.add(image, box, label, area, difficult=(one.findtext("difficult") or "").strip() == "1")


def _number(parent: ElementTree.Element | None, tag: str) -> float:
    """NaN where there is no finite number."""
    try:
        value = float(parent.findtext(tag, "")) if parent is not None else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _with_classes(part: AnnotationBuilder, classes: list[str]) -> AnnotatedDataset:
    whole = part.annotated(masks=False)
    number = np.array([classes.index(name) for name in part.categories], np.int64)
    return replace(whole, categories=classes, category_ids=np.arange(1, len(classes) + 1), labels=number[whole.labels])
