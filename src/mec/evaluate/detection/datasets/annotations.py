"""Datasets of images with annotated objects (boxes, classes, masks), and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import FileDataset

Rle = dict[str, Any]
"""A mask in COCO's compressed RLE: {"size": [height, width], "counts": bytes}."""
ApMetric = Literal["coco", "voc07", "voc"]
"""Definition of average precision: COCO's; VOC2007's 11-point average; the area under the curve, VOC's since 2010."""


class Targets(NamedTuple):
    """Training targets of an image.

    boxes: (k, 4) x1, y1, x2, y2 in pixels, measured from the outer edges of the image and clipped to it.
    labels: (k,) indices into the categories.
    masks: k masks of the size of the image, or None if the dataset has no masks.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: list[Rle] | None


class Detections(NamedTuple):
    """Detections in an image, sorted by descending score. Fields as in Targets, in pixels of the original image."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: list[Rle] | None


@dataclass(frozen=True)
class AnnotatedDataset:
    """One split of a detection dataset: n images with N objects, sorted by image.

    Annotations are stored in flat arrays, which loader processes share. Python objects would be copied to each process.

    Attributes:
        name: name of the split in logs.
        images: the image files.
        image_ids: (n,) ids of the images in the annotation files.
        sizes: (n, 2) height and width according to the annotations.
        categories: class names.
        category_ids: (c,) ids of the classes in the annotation files; they may have gaps.
        ap_metric: definition of average precision.
        offsets: (n + 1,) objects ``offsets[i]`` to ``offsets[i + 1]`` (exclusive) belong to image i.
        boxes: (N, 4) x1, y1, x2, y2 as annotated; they may extend beyond the image.
        labels: (N,) indices into ``categories``.
        areas: (N,) square pixels, of the mask if there is one.
        is_crowd: (N,) COCO's crowd regions: neither training targets nor counted in testing.
        is_difficult: (N,) VOC's difficult objects: training targets, but not counted in testing.
        is_target: (N,) training targets: no crowd, a part within the image, and a mask if the dataset has masks.
        rle_counts: compressed RLE counts of all masks, concatenated; None if the dataset has no masks.
        rle_ends: (N,) end of each object's slice of ``rle_counts``; equal to the previous end if it has no mask.
    """

    name: str
    images: FileDataset
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    categories: list[str]
    category_ids: NDArray[np.int64]
    ap_metric: ApMetric
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    is_difficult: NDArray[np.bool_]
    is_target: NDArray[np.bool_]
    rle_counts: NDArray[np.uint8] | None = None
    rle_ends: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def has_masks(self) -> bool:
        return self.rle_counts is not None

    def targets(self, image: int) -> Targets:
        """Return the training targets of image number ``image``."""
        objects = np.arange(self.offsets[image], self.offsets[image + 1])
        objects = objects[self.is_target[objects]]
        height, width = self.sizes[image]
        boxes = self.boxes[objects].clip(0, [width, height, width, height]).astype(np.float32)
        masks = [self._mask(i, image) for i in objects] if self.has_masks else None
        return Targets(boxes, self.labels[objects], masks)

    def _mask(self, index: int, image: int) -> Rle:
        assert self.rle_counts is not None
        assert self.rle_ends is not None
        start = self.rle_ends[index - 1] if index else 0
        height, width = self.sizes[image]
        counts = self.rle_counts[start : self.rle_ends[index]].tobytes()
        return {"size": [int(height), int(width)], "counts": counts}

    def subset(self, indices: NDArray[np.int64]) -> AnnotatedDataset:
        """Return a dataset of the images ``indices`` (k,) and their objects."""
        spans = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices]
        objects = np.concatenate(spans) if spans else np.empty(0, np.int64)
        rle_counts = rle_ends = None
        if self.rle_counts is not None and self.rle_ends is not None:
            starts = np.concatenate([[0], self.rle_ends])[objects]
            slices = [self.rle_counts[start:end] for start, end in zip(starts, self.rle_ends[objects], strict=True)]
            rle_counts = np.concatenate([np.empty(0, np.uint8), *slices])
            rle_ends = np.cumsum([len(counts) for counts in slices], dtype=np.int64)
        return replace(
            self,
            images=self.images.subset(indices),
            image_ids=self.image_ids[indices],
            sizes=self.sizes[indices],
            offsets=np.concatenate([[0], np.cumsum([len(span) for span in spans])]).astype(np.int64),
            boxes=self.boxes[objects],
            labels=self.labels[objects],
            areas=self.areas[objects],
            is_crowd=self.is_crowd[objects],
            is_difficult=self.is_difficult[objects],
            is_target=self.is_target[objects],
            rle_counts=rle_counts,
            rle_ends=rle_ends,
        )

    def to_coco(self) -> dict[str, Any]:
        """Return the dataset in COCO's annotation format, including crowds and objects without area."""
        annotations = []
        for image in range(len(self)):
            for i in range(self.offsets[image], self.offsets[image + 1]):
                x1, y1, x2, y2 = self.boxes[i].tolist()
                annotation = {
                    "id": i + 1,  # COCO's evaluation uses 0 for "no match"
                    "image_id": int(self.image_ids[image]),
                    "category_id": int(self.category_ids[self.labels[i]]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(self.areas[i]),
                    "iscrowd": int(self.is_crowd[i]),
                }
                if self.has_masks:
                    annotation["segmentation"] = _to_json_rle(self._mask(i, image))
                annotations.append(annotation)
        return {
            "images": [
                {"id": int(image_id), "file_name": file, "height": int(height), "width": int(width)}
                for image_id, file, (height, width) in zip(self.image_ids, self.images.names, self.sizes, strict=True)
            ],
            "annotations": annotations,
            "categories": [
                {"id": int(category_id), "name": name}
                for category_id, name in zip(self.category_ids, self.categories, strict=True)
            ],
        }


def to_coco_results(
    detections: Detections, image_id: int, category_ids: Sequence[int] | NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Convert detections to COCO's results format."""
    results = []
    for i, ((x1, y1, x2, y2), label, score) in enumerate(
        zip(detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True)
    ):
        result = {
            "image_id": int(image_id),
            "category_id": int(category_ids[label]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        if detections.masks is not None:
            result["segmentation"] = _to_json_rle(detections.masks[i])
        results.append(result)
    return results


def _to_json_rle(mask: Rle) -> Rle:
    """Convert the counts from bytes to text, which JSON can store."""
    counts = mask["counts"]
    return {"size": mask["size"], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
