"""Opening a set of images with objects, whatever form its annotations have."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mec.data.datasets.splits import TEST_FRACTION, random_split
from mec.engine.progress import log
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset
from mec.evaluate.detection.datasets.builder import remark
from mec.evaluate.detection.datasets.coco import coco_files, open_coco
from mec.evaluate.detection.datasets.voc import open_voc, voc_folders

FORMS = (
    "a VOCdevkit, a folder with annotations/instances_train*.json and instances_val*.json, one with "
    "train/_annotations.coco.json and valid/_annotations.coco.json, or a .json in COCO's format"
)


def open_annotated(
    data: str | os.PathLike[str], years: tuple[int, ...] | None = None
) -> tuple[AnnotatedDataset, AnnotatedDataset]:
    """Open the training and the test part of a detection set; what is odd in them is said.

    Args:
        data: PASCAL VOC (a VOCdevkit, a folder that holds one, or one folder of its form) or COCO (its own folders,
            Roboflow's, or one .json with images beside it, of which a fifth is held out for testing).
        years: those of VOC to learn from; None: all that are there.

    Raises:
        InputError: what is wrong with the data, in one line.
    """
    path = Path(data).expanduser()
    if not path.exists():
        raise InputError(f"data: {path} does not exist; expected {FORMS}")
    if folders := voc_folders(path):
        train, test = open_voc(path, folders, years)
    elif files := coco_files(path):
        if years:
            raise InputError(f"data: {path} is in COCO's format, expected a VOCdevkit for VOC{years[0]}")
        train, test = open_coco(*files)
    else:
        raise InputError(f"data: no annotations in {path}; expected {FORMS}")
    if test is None:
        train, test = _divided(train)
    _check(train, test)
    for line in (remark(train, learned=True), remark(test, learned=False)):
        if line:
            log(line)
    return train, test


def _divided(whole: AnnotatedDataset) -> tuple[AnnotatedDataset, AnnotatedDataset]:
    kept, held = random_split(whole.images, TEST_FRACTION)
    if not len(held):
        raise InputError(f"data: {whole.name} has one image, expected at least 2")
    log(f"{whole.name} is one part: {len(held):,} of its {len(whole):,} images are held out for testing")
    train, test = whole.subset(kept), whole.subset(held)
    return replace(train, name=f"{whole.name}, 4/5"), replace(test, name=f"{whole.name}, 1/5")


def _check(train: AnnotatedDataset, test: AnnotatedDataset) -> None:
    if not train.usable.any():
        raise InputError(f"data: {train.name}, for training, has no object that can be learned")
    if not (~test.crowd & ~test.difficult).any():
        raise InputError(f"data: {test.name}, for testing, has no object that counts")
    both = {train.images.title(i) for i in range(len(train))} & {test.images.title(i) for i in range(len(test))}
    if both:
        log(f"{len(both):,} images are both in {train.name} and in {test.name}: the figures will be too good")
