"""Images with boxes, classes and masks of the objects in them, and what a detector found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import FileDataset

Rle = dict[str, Any]
"""A mask as COCO has it: {"size": [height, width], "counts": bytes}, compressed."""
Rules = Literal["coco", "voc07", "voc"]
"""By which figures are counted: COCO's; VOC's with the 11 points of 2007; VOC's since 2010 with the whole area."""


class Targets(NamedTuple):
    """What is learned from an image.

    boxes (k, 4): x1, y1, x2, y2 in pixels from the outer edges of the image, within it, of some area.
    labels (k,): numbers of categories. masks: of the whole image, or None where the set has no masks.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: list[Rle] | None


class Detections(NamedTuple):
    """What was found in an image, best first; boxes as in Targets, in pixels of the image as it is in its file."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: list[Rle] | None


@dataclass(frozen=True)
class AnnotatedDataset:
    """The images of one part of a detection set; n images with N objects in the order of the images.

    Everything is in flat arrays, which loader processes share: a million small objects would be copied to each.

    Attributes:
        name: where it comes from, in words.
        images: the files.
        ids: (n,) numbers of the images in the set's own files.
        sizes: (n, 2) height and width that the annotations state.
        categories: names of the classes.
        category_ids: (c,) their numbers in the set's own files, which may have gaps.
        rules: by which figures are counted.
        starts: (n + 1,) objects starts[i] ... starts[i + 1] are those of image i.
        boxes: (N, 4) x1, y1, x2, y2 as annotated, which may reach beyond the image.
        labels: (N,) indices into categories.
        areas: (N,) in square pixels, of the mask where there is one.
        crowd: (N,) regions of many objects, which are not counted against a detector.
        difficult: (N,) VOC's, which are learned but not counted.
        usable: (N,) what can be learned: no crowd, some area within the image, a mask where the set has masks.
        counts: COCO's compressed run lengths of all masks joined, or None where the set has no masks.
        ends: (N,) where those of each object end; as far as the one before where an object has none.
    """

    name: str
    images: FileDataset
    ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    categories: list[str]
    category_ids: NDArray[np.int64]
    rules: Rules
    starts: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    counts: NDArray[np.uint8] | None = None
    ends: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_masks(self) -> bool:
        return self.counts is not None

    def targets(self, image: int) -> Targets:
        """What is learned from an image."""
        objects = np.arange(self.starts[image], self.starts[image + 1])
        objects = objects[self.usable[objects]]
        height, width = self.sizes[image]
        boxes = self.boxes[objects].clip(0, [width, height, width, height]).astype(np.float32)
        masks = [self._mask(i, image) for i in objects] if self.has_masks else None
        return Targets(boxes, self.labels[objects], masks)

    def _mask(self, index: int, image: int) -> Rle:
        assert self.counts is not None
        assert self.ends is not None
        start = self.ends[index - 1] if index else 0
        height, width = self.sizes[image]
        return {"size": [int(height), int(width)], "counts": self.counts[start : self.ends[index]].tobytes()}

    def subset(self, images: NDArray[np.int64]) -> AnnotatedDataset:
        """Some of the images, with their objects."""
        spans = [np.arange(self.starts[i], self.starts[i + 1]) for i in images]
        objects = np.concatenate(spans) if spans else np.empty(0, np.int64)
        counts = ends = None
        if self.counts is not None and self.ends is not None:
            first = np.concatenate([[0], self.ends])[objects]
            parts = [self.counts[a:b] for a, b in zip(first, self.ends[objects], strict=True)]
            counts = np.concatenate([np.empty(0, np.uint8), *parts])
            ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return replace(
            self,
            images=self.images.subset(images),
            ids=self.ids[images],
            sizes=self.sizes[images],
            starts=np.concatenate([[0], np.cumsum([len(span) for span in spans])]).astype(np.int64),
            boxes=self.boxes[objects],
            labels=self.labels[objects],
            areas=self.areas[objects],
            crowd=self.crowd[objects],
            difficult=self.difficult[objects],
            usable=self.usable[objects],
            counts=counts,
            ends=ends,
        )

    def as_coco(self) -> dict[str, Any]:
        """All of it as COCO's json has it, crowds and objects without area too."""
        annotations = []
        for image in range(len(self)):
            for i in range(self.starts[image], self.starts[image + 1]):
                x1, y1, x2, y2 = self.boxes[i].tolist()
                annotation = {
                    "id": i + 1,  # the evaluation takes 0 for "none"
                    "image_id": int(self.ids[image]),
                    "category_id": int(self.category_ids[self.labels[i]]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(self.areas[i]),
                    "iscrowd": int(self.crowd[i]),
                }
                if self.has_masks:
                    annotation["segmentation"] = _text(self._mask(i, image))
                annotations.append(annotation)
        return {
            "images": [
                {"id": int(number), "file_name": file, "height": int(height), "width": int(width)}
                for number, file, (height, width) in zip(self.ids, self.images.names, self.sizes, strict=True)
            ],
            "annotations": annotations,
            "categories": [
                {"id": int(number), "name": name}
                for number, name in zip(self.category_ids, self.categories, strict=True)
            ],
        }


def as_records(
    found: Detections, image_id: int, category_ids: Sequence[int] | NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Detections in COCO's format of results, as its tools read them."""
    records = []
    for i, ((x1, y1, x2, y2), label, score) in enumerate(
        zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    ):
        record = {
            "image_id": int(image_id),
            "category_id": int(category_ids[label]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        if found.masks is not None:
            record["segmentation"] = _text(found.masks[i])
        records.append(record)
    return records


def _text(mask: Rle) -> Rle:
    """JSON has no bytes."""
    counts = mask["counts"]
    return {"size": mask["size"], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
