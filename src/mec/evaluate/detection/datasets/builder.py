"""What every reader of annotations does with the objects it finds: into flat arrays, and a line on what is odd."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import FileDataset
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Rules

BEYOND = 1.0
"""Pixels by which a box may pass the edge of its image and be taken for rounding."""


def _whole() -> array[int]:
    return array("q")


def _real() -> array[float]:
    return array("d")


@dataclass
class AnnotationBuilder:
    """A part of a detection set while it is read. Objects are added in the order of the images.

    ``name`` to ``rules`` are those of AnnotatedDataset. ``add`` appends to flat arrays, without a Python object per
    annotation.
    """

    name: str
    images: FileDataset
    ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    categories: list[str]
    category_ids: NDArray[np.int64]
    rules: Rules
    numbers: array[int] = field(default_factory=_whole)
    boxes: array[float] = field(default_factory=_real)
    labels: array[int] = field(default_factory=_whole)
    areas: array[float] = field(default_factory=_real)
    crowd: bytearray = field(default_factory=bytearray)
    difficult: bytearray = field(default_factory=bytearray)
    counts: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=_whole)
    has_masks: bool = False

    def add(
        self,
        image: int,
        box: tuple[float, float, float, float],
        label: int,
        area: float,
        crowd: bool = False,
        difficult: bool = False,
        mask: bytes = b"",
    ) -> None:
        """One more object of image number ``image``; ``mask``: compressed run lengths, empty where it has none."""
        self.numbers.append(image)
        self.boxes.extend(box)
        self.labels.append(label)
        self.areas.append(area)
        self.crowd.append(crowd)
        self.difficult.append(difficult)
        self.counts += mask
        self.ends.append(len(self.counts))
        self.has_masks |= bool(mask) and not crowd

    def annotated(self, masks: bool) -> AnnotatedDataset:
        """All of it, with or without the masks; without, an object that has none can be learned too."""
        numbers, boxes = np.asarray(self.numbers), np.asarray(self.boxes).reshape(-1, 4)
        crowd, ends = np.asarray(self.crowd).astype(bool), np.asarray(self.ends)
        usable = some_within(boxes, self.sizes[numbers]) & ~crowd
        if masks:
            usable &= np.diff(ends, prepend=0) > 0
        return AnnotatedDataset(
            name=self.name,
            images=self.images,
            ids=self.ids,
            sizes=self.sizes,
            categories=self.categories,
            category_ids=self.category_ids,
            rules=self.rules,
            starts=np.searchsorted(numbers, np.arange(len(self.ids) + 1)),
            boxes=boxes,
            labels=np.asarray(self.labels),
            areas=np.asarray(self.areas),
            crowd=crowd,
            difficult=np.asarray(self.difficult).astype(bool),
            usable=usable,
            counts=np.asarray(self.counts) if masks else None,
            ends=ends if masks else None,
        )


def some_within(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whether some area of boxes (N, 4) is within images of heights and widths (N, 2)."""
    within = boxes.clip(0, sizes[:, [1, 0, 1, 0]]).astype(np.float32)  # in float32 a sliver may have no area left
    return (within[:, 2] > within[:, 0]) & (within[:, 3] > within[:, 1])


def remark(part: AnnotatedDataset, learned: bool) -> str:
    """What is odd in the training part (``learned``) or the test part, counted in one line; "" where nothing is."""
    spans = np.diff(part.starts)
    image = np.repeat(np.arange(len(part)), spans)
    sizes = part.sizes[image]
    some = some_within(part.boxes, sizes)
    past = (part.boxes < -BEYOND) | (part.boxes > sizes[:, [1, 0, 1, 0]] + BEYOND)
    single = ~part.crowd
    maskless = np.diff(part.ends, prepend=0) == 0 if part.ends is not None else np.zeros(len(some), bool)
    usable = np.bincount(image[part.usable], minlength=len(part))
    found = [
        ("boxes that reach beyond the image", past.any(1) & some & single, "clipped", "as annotated"),
        ("boxes outside the image or without area", ~some & single, "not learned", "as annotated"),
        ("objects without a mask", maskless & some & single, "not learned", "cannot be found by mask"),
        ("crowd regions", part.crowd, "not learned", "not counted"),
        ("images without objects", (usable if learned else spans) == 0, "not learned", "counted"),
    ]
    words = [
        f"{what} {np.count_nonzero(which):,} ({in_train if learned else in_test})"
        for what, which, in_train, in_test in found
        if which.any()
    ]
    return f"{part.name}, for {'training' if learned else 'testing'}: {', '.join(words)}" if words else ""
