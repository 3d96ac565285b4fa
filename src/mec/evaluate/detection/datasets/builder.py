"""Shared by the readers of annotation formats: collect objects in flat arrays, and report unusual annotations."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import FileDataset
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, ApMetric

EDGE_TOLERANCE = 1.0
"""Pixels by which a box may exceed its image without a warning: annotation tools round."""


def _int_array() -> array[int]:
    return array("q")


def _float_array() -> array[float]:
    return array("d")


@dataclass
class AnnotationBuilder:
    """Builder of an AnnotatedDataset. Objects are added in the order of the images.

    The fields ``name`` to ``ap_metric`` are those of AnnotatedDataset. ``add`` appends to flat arrays, which saves a
    Python object per annotation.
    """

    name: str
    images: FileDataset
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    categories: list[str]
    category_ids: NDArray[np.int64]
    ap_metric: ApMetric
    image_indices: array[int] = field(default_factory=_int_array)
    boxes: array[float] = field(default_factory=_float_array)
    labels: array[int] = field(default_factory=_int_array)
    areas: array[float] = field(default_factory=_float_array)
    is_crowd: bytearray = field(default_factory=bytearray)
    is_difficult: bytearray = field(default_factory=bytearray)
    rle_counts: bytearray = field(default_factory=bytearray)
    rle_ends: array[int] = field(default_factory=_int_array)
    has_masks: bool = False

    def add(
        self,
        image: int,
        box: tuple[float, float, float, float],
        label: int,
        area: float,
        crowd: bool = False,
        difficult: bool = False,
        rle_counts: bytes = b"",
    ) -> None:
        """Add an object of image number ``image``. ``rle_counts`` is empty for an object without a mask."""
        self.image_indices.append(image)
        self.boxes.extend(box)
        self.labels.append(label)
        self.areas.append(area)
        self.is_crowd.append(crowd)
        self.is_difficult.append(difficult)
        self.rle_counts += rle_counts
        self.rle_ends.append(len(self.rle_counts))
        self.has_masks |= bool(rle_counts) and not crowd

    def build(self, masks: bool) -> AnnotatedDataset:
        """Return the dataset. Without ``masks``, objects that have no mask are training targets too."""
        image_indices, boxes = np.asarray(self.image_indices), np.asarray(self.boxes).reshape(-1, 4)
        is_crowd, rle_ends = np.asarray(self.is_crowd).astype(bool), np.asarray(self.rle_ends)
        is_target = overlaps_image(boxes, self.sizes[image_indices]) & ~is_crowd
        if masks:
            is_target &= np.diff(rle_ends, prepend=0) > 0
        return AnnotatedDataset(
            name=self.name,
            images=self.images,
            image_ids=self.image_ids,
            sizes=self.sizes,
            categories=self.categories,
            category_ids=self.category_ids,
            ap_metric=self.ap_metric,
            offsets=np.searchsorted(image_indices, np.arange(len(self.image_ids) + 1)),
            boxes=boxes,
            labels=np.asarray(self.labels),
            areas=np.asarray(self.areas),
            is_crowd=is_crowd,
            is_difficult=np.asarray(self.is_difficult).astype(bool),
            is_target=is_target,
            rle_counts=np.asarray(self.rle_counts) if masks else None,
            rle_ends=rle_ends if masks else None,
        )


def overlaps_image(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each of the boxes (N, 4) whether a part of it is within its image; sizes (N, 2): height, width."""
    clipped = boxes.clip(0, sizes[:, [1, 0, 1, 0]]).astype(np.float32)  # a sliver may have no area in float32
    return (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])


def describe_unusual(dataset: AnnotatedDataset, training: bool) -> str:
    """Return a line that counts the unusual annotations of the training or the test split; "" if there are none."""
    num_objects = np.diff(dataset.offsets)
    image = np.repeat(np.arange(len(dataset)), num_objects)
    sizes = dataset.sizes[image]
    inside = overlaps_image(dataset.boxes, sizes)
    beyond = (dataset.boxes < -EDGE_TOLERANCE) | (dataset.boxes > sizes[:, [1, 0, 1, 0]] + EDGE_TOLERANCE)
    single = ~dataset.is_crowd
    if dataset.rle_ends is None:
        no_mask = np.zeros(len(inside), bool)
    else:
        no_mask = np.diff(dataset.rle_ends, prepend=0) == 0
    num_targets = np.bincount(image[dataset.is_target], minlength=len(dataset))
    findings = [
        ("boxes beyond the edge of the image", beyond.any(1) & inside & single, "clipped", "as annotated"),
        ("boxes outside the image or without area", ~inside & single, "not used", "as annotated"),
        ("objects without a mask", no_mask & inside & single, "not used", "no mask can match"),
        ("crowd regions", dataset.is_crowd, "not used", "not counted"),
        ("images without objects", (num_targets if training else num_objects) == 0, "not used", "counted"),
    ]
    counts = [
        f"{name} {np.count_nonzero(mask):,} ({in_training if training else in_testing})"
        for name, mask, in_training, in_testing in findings
        if mask.any()
    ]
    return f"{dataset.name} ({'train' if training else 'test'}): {', '.join(counts)}" if counts else ""
