"""Datasets of images with annotated objects (boxes, classes, masks), and detections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import FileDataset
from mec.data.decode import OpenedImage, open_image
from mec.data.pixels import CorruptImageError

Rle = dict[str, Any]
"""A mask in COCO's compressed run-length encoding (RLE): {"size": [height, width], "counts": bytes}."""
ApMetric = Literal["coco", "voc07", "voc"]
"""Definition of average precision: COCO's; VOC2007's 11-point average; the area under the curve, VOC's since 2010."""
MAX_RUN_CHARACTERS = 8  # of a run in compressed RLE; the runs of any real image have fewer


class SizeMismatchError(CorruptImageError):
    """An image of another size (height, width), after its EXIF rotation, than the annotations have."""

    def __init__(self, size: tuple[int, int], annotated: tuple[int, int]) -> None:
        super().__init__(f"{size[1]} x {size[0]} pixels, but {annotated[1]} x {annotated[0]} in the annotations")
        self.size, self.annotated = size, annotated


class Object(NamedTuple):
    """An annotated object, as the readers of annotation files yield it. Fields as in AnnotatedDataset."""

    image: int  # index of its image
    box: tuple[float, float, float, float]
    label: int
    area: float
    is_crowd: bool = False
    is_difficult: bool = False
    rle_counts: bytes = b""  # empty without a mask


PER_OBJECT = {
    "boxes": ("f8", 4), "labels": "i8", "areas": "f8", "is_crowd": "?", "is_difficult": "?", "rle_spans": ("i8", 2),
}  # fmt: skip
"""Type of each array of AnnotatedDataset that has a row per object."""


class Targets(NamedTuple):
    """Training targets of an image."""

    boxes: NDArray[np.float32]  # (k, 4) x1, y1, x2, y2 in pixels from the outer edges of the image, clipped to it
    labels: NDArray[np.int64]  # (k,) indices into the categories
    masks: list[Rle] | None  # k masks of the size of the image; None if the dataset has no masks


class Detections(NamedTuple):
    """Detections in an image, sorted by descending score. Fields as in Targets, in pixels of the original image."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: list[Rle] | None


@dataclass(frozen=True)
class AnnotatedDataset:
    """One split of a detection dataset: n images with N objects, sorted by image, in flat arrays, which loader
    processes share; Python objects would be copied to each process."""

    name: str  # of the split, in logs
    images: FileDataset
    image_ids: NDArray[np.int64]  # (n,) in the annotation files
    sizes: NDArray[np.int64]  # (n, 2) height and width according to the annotations
    categories: list[str]
    category_ids: NDArray[np.int64]  # (c,) in the annotation files; they may have gaps
    ap_metric: ApMetric
    offsets: NDArray[np.int64]  # (n + 1,) objects offsets[i] to offsets[i + 1] (exclusive) belong to image i
    boxes: NDArray[np.float64]  # (N, 4) x1, y1, x2, y2 as annotated; they may extend beyond the image
    labels: NDArray[np.int64]  # (N,) indices into categories
    areas: NDArray[np.float64]  # (N,) square pixels, of the mask if there is one
    is_crowd: NDArray[np.bool_]  # (N,) COCO's crowd regions: neither training targets nor counted in testing
    is_difficult: NDArray[np.bool_]  # (N,) VOC's difficult objects: training targets, but not counted in testing
    rle_spans: NDArray[np.int64]  # (N, 2) start and end of each object's mask in rle_counts; equal without a mask
    rle_counts: NDArray[np.uint8] | None  # compressed RLE counts of all masks, concatenated; None without masks

    @classmethod
    def from_objects(cls, objects: Iterable[Object], **fields: Any) -> AnnotatedDataset:
        """Create a dataset of objects sorted by image, with masks if an object other than a crowd region has one;
        ``fields`` are those from ``name`` to ``ap_metric``."""
        rle_counts = bytearray()

        def rows() -> Iterator[tuple[Any, ...]]:
            for an_object in objects:
                start = len(rle_counts)
                rle_counts.extend(an_object.rle_counts)
                yield (*an_object[:-1], (start, len(rle_counts)))

        table = np.fromiter(rows(), [("image", "i8"), *PER_OBJECT.items()])
        has_mask = np.diff(table["rle_spans"])[:, 0] > 0
        fields |= {name: table[name] for name in PER_OBJECT}
        return cls(
            offsets=np.searchsorted(table["image"], np.arange(len(fields["image_ids"]) + 1)),
            rle_counts=np.frombuffer(rle_counts, np.uint8) if (has_mask & ~table["is_crowd"]).any() else None,
            **fields,
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def has_masks(self) -> bool:
        return self.rle_counts is not None

    @property
    def image_indices(self) -> NDArray[np.int64]:
        """(N,) index of each object's image."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def is_inside(self) -> NDArray[np.bool_]:
        """(N,) whether a part of the box is within the image."""
        image_edges = self.sizes[self.image_indices][:, [1, 0, 1, 0]]
        boxes = self.boxes.clip(0, image_edges).astype(np.float32)  # a sliver may have no area in float32
        return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])

    @property
    def lacks_mask(self) -> NDArray[np.bool_]:
        """(N,) objects without a mask in a dataset with masks."""
        return np.asarray((self.rle_spans[:, 0] == self.rle_spans[:, 1]) & self.has_masks)

    @cached_property
    def is_target(self) -> NDArray[np.bool_]:
        """(N,) training targets: no crowd, a part within the image, and a mask if the dataset has masks."""
        return self.is_inside & ~self.is_crowd & ~self.lacks_mask

    def open_image(self, image: int) -> OpenedImage:
        """Open image number ``image``; CorruptImageError if it cannot be read or has another size than annotated."""
        opened = open_image(self.images.load(image))
        height, width = self.sizes[image].tolist()
        if (opened.height, opened.width) != (height, width):
            raise SizeMismatchError((opened.height, opened.width), (height, width))
        return opened

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
        counts = self.rle_counts[slice(*self.rle_spans[index])].tobytes()
        return {"size": self.sizes[image].tolist(), "counts": counts}

    def subset(self, indices: NDArray[np.int64]) -> AnnotatedDataset:
        """Return a dataset of the images ``indices`` (k,) and their objects. The masks are shared, not copied."""
        spans = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices]
        objects = np.concatenate([np.empty(0, np.int64), *spans])
        return replace(
            self,
            images=self.images.subset(indices),
            image_ids=self.image_ids[indices],
            sizes=self.sizes[indices],
            offsets=np.cumsum([0, *map(len, spans)]),
            **{name: getattr(self, name)[objects] for name in PER_OBJECT},
        )

    def to_coco(self) -> dict[str, Any]:
        """Return the dataset in COCO's annotation format, including crowds and objects without area."""
        annotations = []
        for i, image in enumerate(self.image_indices.tolist()):
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
        images = zip(self.image_ids.tolist(), self.images.names, self.sizes.tolist(), strict=True)
        categories = zip(self.category_ids.tolist(), self.categories, strict=True)
        return {
            "images": [{"id": i, "file_name": file, "height": size[0], "width": size[1]} for i, file, size in images],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in categories],
        }


def to_coco_results(
    detections: Detections, image_id: int, category_ids: Sequence[int] | NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Convert detections to COCO's results format."""
    results = []
    columns = zip(detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True)
    for i, ((x1, y1, x2, y2), label, score) in enumerate(columns):
        result: dict[str, Any] = {"image_id": int(image_id), "category_id": int(category_ids[label])}
        result |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        if detections.masks is not None:
            result["segmentation"] = _to_json_rle(detections.masks[i])
        results.append(result)
    return results


def _to_json_rle(mask: Rle) -> Rle:
    """Convert the counts from bytes to text, which JSON can store."""
    return mask | {"counts": mask["counts"].decode("ascii")}


def parse_rle_counts(text: str) -> NDArray[np.int64]:
    """Parse compressed RLE counts into run lengths; ValueError if they are damaged, which not every version of the COCO
    library detects.

    Each character holds 5 bits, the lowest first. From the fourth run on, a run is stored as the difference to the run
    two before.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    complete = len(ends) and codes[-1] & 32 == 0
    if not complete or codes.min() < 0 or codes.max() > 63 or lengths.max() > MAX_RUN_CHARACTERS:
        raise ValueError(f"expected COCO's compressed RLE counts, got {text[:20]!r}")
    positions = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << 5 * positions, starts)
    runs -= (codes[ends] >> 4 & 1) << 5 * lengths
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return np.asarray(runs)
