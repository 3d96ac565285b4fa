"""What a detection dataset contains, and checks that both splits can be used, before work starts."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from mec.data.dataset import evenly_spaced
from mec.data.decode import EXTENSIONS
from mec.data.pixels import CorruptImageError
from mec.embedding.extract import MAX_CORRUPT
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, SizeMismatchError

logger = logging.getLogger("mec")

Split = Literal["train", "test"]
EDGE_TOLERANCE = 1.0  # pixels by which a box may exceed its image without a warning: annotation tools round
MAX_CHECKED_IMAGES = 1000  # of each split before a training; the others are checked when they are decoded
MIN_BOXES = 10  # from which the format of the boxes is recognized
MAX_NAMES = 5  # of classes in a line


class Finding(NamedTuple):
    """A kind of unusual annotation, its number, and what becomes of it."""

    name: str
    number: int
    consequence: str


def counted_objects(dataset: AnnotatedDataset) -> NDArray[np.bool_]:
    """Return which objects (N,) are counted in testing and can be detected."""
    return ~dataset.is_crowd & ~dataset.is_difficult & dataset.is_inside


def check_objects(dataset: AnnotatedDataset, split: Split) -> None:
    """Raise InputError if a split has nothing to learn or to count, or boxes of another format."""
    name, boxes = f"{dataset.name} ({split})", dataset.boxes[~dataset.is_crowd]
    if len(boxes) and boxes.max() <= 1:
        raise InputError(
            f"data: {name}: expected boxes in pixels, got fractions of the image (at most {boxes.max():g})"
        )
    if not (dataset.is_target if split == "train" else counted_objects(dataset)).any():
        objects = ", ".join(f"{f.name} {f.number:,}" for f in unusual_objects(dataset, split))
        raise InputError(f"data: {name} has no object to {'train on' if split == 'train' else 'count'} ({objects})")
    if dataset.ap_metric == "coco":
        height, width = dataset.sizes[dataset.image_indices[~dataset.is_crowd]].T + EDGE_TOLERANCE
        x, y, x2, y2 = boxes.T
        are_corners = (x >= 0) & (y >= 0) & (x2 - x > x) & (y2 - y > y) & (x2 - x <= width) & (y2 - y <= height)
        num_beyond = np.count_nonzero((x2 > width) | (y2 > height))
        if len(boxes) >= MIN_BOXES and are_corners.all() and 2 * num_beyond > len(boxes):
            raise InputError(
                f"data: {name}: expected each bbox as x, y, width, height; {num_beyond:,} of {len(boxes):,} extend "
                "beyond their image, and none as x1, y1, x2, y2"
            )


def unusual_objects(dataset: AnnotatedDataset, split: Split) -> list[Finding]:
    """Return the kinds of unusual annotations of a split, without those that do not occur."""
    image, single, inside = dataset.image_indices, ~dataset.is_crowd, dataset.is_inside
    image_edges = dataset.sizes[image][:, [1, 0, 1, 0]]
    beyond = ((dataset.boxes < -EDGE_TOLERANCE) | (dataset.boxes > image_edges + EDGE_TOLERANCE)).any(1)
    num_objects = np.bincount(image[dataset.is_target] if split == "train" else image, minlength=len(dataset))
    findings = [
        ("boxes beyond the edge of the image", beyond & inside & single, "clipped", "as annotated"),
        ("boxes outside the image or without area", ~inside & single, "not used", "as annotated"),
        ("objects without a mask", dataset.lacks_mask & inside & single, "not used", "no mask can match"),
        ("objects annotated twice", _duplicates(dataset) & single, "used", "counted"),
        ("crowd regions", dataset.is_crowd, "not used", "not counted"),
        ("difficult objects", dataset.is_difficult, "used", "not counted"),
        ("images without objects", num_objects == 0, "not used", "counted"),
    ]
    counts = [
        Finding(name, int(np.count_nonzero(mask)), in_training if split == "train" else in_testing)
        for name, mask, in_training, in_testing in findings
    ]
    return [finding for finding in counts if finding.number]


def _duplicates(dataset: AnnotatedDataset) -> NDArray[np.bool_]:
    """Return which objects (N,) have the image, class and box of another one, the first of them excepted."""
    columns = np.column_stack([dataset.image_indices, dataset.labels, dataset.boxes])
    order = np.lexsort(columns.T)
    duplicates = np.zeros(len(columns), bool)
    duplicates[order[1:]] = (columns[order[1:]] == columns[order[:-1]]).all(1)
    return duplicates


def log_contents(path: Path, train: AnnotatedDataset, test: AnnotatedDataset, held_out: bool) -> None:
    """Log in one line how a dataset was read, and in further lines what is unusual."""
    kind = "COCO" if train.ap_metric == "coco" else "PASCAL VOC"
    masks = "boxes and masks" if train.has_masks else "boxes only"
    classes = _count(len(train.categories), "class", "classes")
    reason = ", held out because there is no test split" if held_out else ""
    logger.info(
        f"{path.absolute().name}: {kind}, {masks}, {classes}; train: {_describe(train)}; "
        f"test: {_describe(test)}{reason}"
    )
    splits: dict[Split, AnnotatedDataset] = {"train": train, "test": test}
    for split, dataset in splits.items():
        if findings := unusual_objects(dataset, split):
            counts = ", ".join(f"{name} {number:,} ({consequence})" for name, number, consequence in findings)
            logger.info(f"{dataset.name} ({split}): {counts}")
    files = [{dataset.images.title(i) for i in range(len(dataset))} for dataset in splits.values()]
    if both := files[0] & files[1]:
        logger.warning(f"{_count(len(both), 'image')} in both {train.name} and {test.name}: metrics will be too high")
    listed = files[0] | files[1]
    if others := sorted(set(_image_files({os.path.dirname(file) for file in listed})) - listed):
        logger.info(f"{_count(len(others), 'image')} in the same folders, in neither split; the first: {others[0]}")
    lower_case = Counter(" ".join(name.split()).casefold() for name in train.categories)
    if alike := [name for name in train.categories if lower_case[" ".join(name.split()).casefold()] > 1]:
        logger.warning(f"{_count(len(alike), 'class', 'classes')} that differ in case or spaces only: {_names(alike)}")
    unseen = np.setdiff1d(test.labels[counted_objects(test)], train.labels[train.is_target])
    if len(unseen):
        number, names = _count(len(unseen), "class", "classes"), _names([test.categories[i] for i in unseen])
        logger.warning(f"{number} with objects in the test split only, which detectors cannot learn: {names}")


def _describe(dataset: AnnotatedDataset) -> str:
    images, objects = _count(len(dataset), "image"), _count(len(dataset.boxes), "object")
    return f"{dataset.name}, {images}, {objects} of {_count(len(np.unique(dataset.labels)), 'class', 'classes')}"


def _count(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def _names(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMES] + ["..."] * (len(names) > MAX_NAMES))


def _image_files(folders: set[str]) -> list[str]:
    return [
        os.path.join(folder, file)
        for folder in folders
        for file in os.listdir(folder)
        if os.path.splitext(file)[1].lower() in EXTENSIONS and not file.startswith(".")
    ]


class ImageCheck:
    """The images of a split, or an evenly spaced sample of them, compared with the sizes in the annotations."""

    def __init__(self, dataset: AnnotatedDataset, split: Split, max_images: int) -> None:
        self.dataset, self.name = dataset, f"{dataset.name} ({split})"
        self.problems: dict[str, CorruptImageError] = {}  # of images that cannot be used, by their title
        indices = evenly_spaced(dataset.images, max_images).tolist()
        self.num_checked = len(indices)
        with ProgressBar(f"checking {self.name}", len(indices)) as progress, ThreadPoolExecutor() as threads:
            for index, problem in zip(indices, threads.map(self._problem, indices), strict=True):
                if problem is not None:
                    self.problems[dataset.images.title(index)] = problem
                progress.advance(1)

    def _problem(self, index: int) -> CorruptImageError | None:
        try:
            self.dataset.open_image(index)
        except CorruptImageError as error:
            return error
        return None

    @property
    def mismatches(self) -> list[SizeMismatchError]:
        """Problems with the size."""
        return [problem for problem in self.problems.values() if isinstance(problem, SizeMismatchError)]

    def refuse_or_log(self) -> None:
        """Log the number of images that cannot be used; InputError if they are more than a twentieth."""
        if not self.problems:
            return
        title, problem = next(iter(self.problems.items()))
        is_sample = self.num_checked < len(self.dataset)
        count = f"{len(self.problems):,} of {self.num_checked:,} {'sampled ' if is_sample else ''}images"
        line = f"{self.name}: {count} cannot be used; the first: {title}: {problem}{self._hint()}"
        limit = MAX_CORRUPT * self.num_checked
        if is_sample:
            limit += 4 * math.sqrt(limit)  # standard deviations of the number in a random sample
        if len(self.problems) > limit + 1e-6:
            raise InputError(f"data: {line}")
        logger.warning(f"{line}; they are left out")

    def _hint(self) -> str:
        pairs = [(m.size, m.annotated) for m in self.mismatches]
        ratios = {round(a / b, 2) for size, annotated in pairs for a, b in zip(annotated, size, strict=True)}
        if pairs and all(size == annotated[::-1] for size, annotated in pairs):
            return " (width and height exchanged in all: were they annotated before their EXIF rotation?)"
        return f" (all annotated at {ratios.pop():g} times their size)" if len(ratios) == 1 else ""


def check_images(train: AnnotatedDataset, test: AnnotatedDataset, all_images: bool = False) -> dict[Split, ImageCheck]:
    """Compare the images of both splits, or samples of them, with their annotations."""
    splits: dict[Split, AnnotatedDataset] = {"train": train, "test": test}
    maximum = {split: len(dataset) if all_images else MAX_CHECKED_IMAGES for split, dataset in splits.items()}
    return {split: ImageCheck(dataset, split, maximum[split]) for split, dataset in splits.items()}


def contents_table(path: str | os.PathLike[str], checks: dict[Split, ImageCheck]) -> Table:
    """Return a table of what both splits contain, with a column for each."""
    rows: dict[str, dict[Split, int]] = {}
    for split, check in checks.items():
        dataset = check.dataset
        counts = {
            "images": len(dataset),
            "images not of the annotated size": len(check.mismatches),
            "unreadable images": len(check.problems) - len(check.mismatches),
            "objects": len(dataset.boxes),
            "objects with a mask": int(np.count_nonzero(np.diff(dataset.rle_spans))) if dataset.has_masks else 0,
            "classes": len(dataset.categories),
            "classes with objects": len(np.unique(dataset.labels)),
            **{finding.name: finding.number for finding in unusual_objects(dataset, split)},
        }
        for name, count in counts.items():
            rows.setdefault(name, {})[split] = count
    table = Table(title=f"detect: {escape(str(path))}", title_justify="left")
    table.add_column("")
    for split in checks:
        table.add_column(split, justify="right")
    for name, cells in rows.items():
        table.add_row(name, *(f"{cells.get(split, 0):,}" for split in checks))
    return table
