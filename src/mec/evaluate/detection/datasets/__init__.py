"""Detection datasets in any supported annotation format."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mec.data.splits import TEST_FRACTION, random_split
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset
from mec.evaluate.detection.datasets.checks import check_objects, log_contents
from mec.evaluate.detection.datasets.coco import coco_files, open_coco
from mec.evaluate.detection.datasets.voc import open_voc, voc_folders

FORMATS = (
    "a VOCdevkit, a folder with annotations/instances_train*.json and instances_val*.json, a folder with "
    "train/_annotations.coco.json and valid/_annotations.coco.json, or a .json in COCO's format"
)


def open_annotated(
    data: str | os.PathLike[str], years: tuple[int, ...] | None = None
) -> tuple[AnnotatedDataset, AnnotatedDataset]:
    """Open the training and the test split of a dataset in one of FORMATS, and log what they contain. A fifth is held
    out if there is no test split. ``years`` are the years of VOC to train on; None: all that are present."""
    path = Path(data).expanduser()
    if not path.exists():
        raise InputError(f"data: {path} does not exist; expected {FORMATS}")
    if folders := voc_folders(path):
        train, test = open_voc(path, folders, years)
    elif files := coco_files(path):
        if years:
            raise InputError(f"data: {path} is in COCO's format, expected a VOCdevkit for VOC{years[0]}")
        train, test = open_coco(*files)
    else:
        raise InputError(f"data: no annotations in {path}; expected {FORMATS}")
    if held_out := test is None:
        train, test = _hold_out(train)
    check_objects(train, "train")
    check_objects(test, "test")
    log_contents(path, train, test, held_out)
    return train, test


def _hold_out(dataset: AnnotatedDataset) -> tuple[AnnotatedDataset, AnnotatedDataset]:
    train_indices, test_indices = random_split(dataset.images, TEST_FRACTION)
    if not len(test_indices):
        raise InputError(f"data: {dataset.name} has one image, expected at least 2")
    train, test = dataset.subset(train_indices), dataset.subset(test_indices)
    return replace(train, name=f"{dataset.name}, 4/5"), replace(test, name=f"{dataset.name}, 1/5")
