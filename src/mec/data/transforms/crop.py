"""What a loader process does: decode an image once and cut the crops of its views from it, as bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mec.data.corrupt import CorruptImage
from mec.data.decode import SHRINKS, Opened, open_image
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat
from mec.data.transforms.geometry import Boxes
from mec.data.transforms.multi_view import Views
from mec.errors import InputError

SUBSTITUTES = 100
"""How many other images are tried in place of one that cannot be read."""
SHARP = 1.0
"""An image is decoded smaller when its crops then still have this many times the pixels a side of a view."""

Encoded = bytes | NDArray[Any]
Load = Callable[[], Encoded]


class Batch(NamedTuple):
    """Images for ``Views``.

    images: (n, c, h, w) whole, or (n, views, c, s, s) the crops of each view; uint8, or float32 in [0, 1].
    indices: (n,) their numbers in the source, which fix their views. lost: those that could not be read.
    shown: (n,) the numbers of the images that are there: others where one could not be read.
    """

    images: Tensor
    indices: NDArray[np.int64]
    epoch: int
    lost: list[CorruptImage]
    shown: NDArray[np.int64]


class Item(NamedTuple):
    """An image to be had: its number, what loads it and where it comes from."""

    number: int
    load: Load
    title: str


class Cropper:
    """Encoded images -> a Batch of crops. Images that cannot be read are replaced, under their own numbers."""

    def __init__(self, views: Views, reading: PixelFormat) -> None:
        self.views, self.reading = views, reading

    def __call__(self, items: Sequence[Item], epoch: int, others: Callable[[int], Iterator[Item]]) -> Batch:
        """``others(index)`` gives images to take in place of image ``index``."""
        size, indices = self.views.size, np.array([item.number for item in items], dtype=np.int64)
        kind = np.uint8 if self.reading.value_range is None else np.float32
        out = np.empty((len(items), len(self.views.settings), size, size, self.reading.channels), dtype=kind)
        lost: list[CorruptImage] = []
        shown = indices.copy()
        opened = [self._open(item, lost) for item in items]
        plans = self.plans(indices, epoch, opened)
        for n, item in enumerate(items):
            if not self._cut(out[n], item, opened[n], plans[n], lost):
                shown[n] = self._replace(out[n], item.number, epoch, others(item.number), lost)
        return Batch(torch.from_numpy(out).permute(0, 1, 4, 2, 3), indices, epoch, lost, shown)

    def plans(self, indices: NDArray[np.int64], epoch: int, opened: Sequence[Opened | None]) -> Sequence[Any]:
        """What to cut from each image: boxes (views, 4) and whether to mirror (views,), drawn for all at once."""
        heights = np.array([o.height if o else 1 for o in opened])
        widths = np.array([o.width if o else 1 for o in opened])
        views = range(len(self.views.settings))
        drawn = [self.views.parameters_of(view, indices, epoch, heights, widths) for view in views]
        boxes = np.stack([d.boxes for d in drawn], axis=1)
        return list(zip(boxes, np.stack([d.flip for d in drawn], axis=1), strict=True))

    def cut(self, out: ImageArray, opened: Opened, plan: Any) -> None:
        """The crops of one image, written into ``out`` (views, size, size, channels)."""
        boxes, mirrored = plan
        image = opened.decode(self.reading, shrink_for(boxes, self.views.size))
        for view in range(len(out)):
            box = shrunk(boxes[view], (opened.height, opened.width), (image.shape[0], image.shape[1]))
            out[view] = crop_and_resize(image, box, self.views.size, bool(mirrored[view]))

    def _open(self, item: Item, lost: list[CorruptImage]) -> Opened | None:
        try:
            return open_image(item.load())
        except CorruptImageError as error:
            lost.append(CorruptImage(item.title, str(error)))
            return None

    def _cut(self, out: ImageArray, item: Item, opened: Opened | None, plan: Any, lost: list[CorruptImage]) -> bool:
        if opened is None:
            return False
        try:
            self.cut(out, opened, plan)
        except CorruptImageError as error:
            lost.append(CorruptImage(item.title, str(error)))
            return False
        return True

    def _replace(
        self, out: ImageArray, index: int, epoch: int, others: Iterator[Item], lost: list[CorruptImage]
    ) -> int:
        """The number of the image that was cut instead."""
        for item in itertools.islice(others, SUBSTITUTES):
            opened = self._open(item, lost)
            (plan,) = self.plans(np.array([index]), epoch, [opened])
            if self._cut(out, item, opened, plan, lost):
                return item.number
        raise InputError(
            f"data: no image could be read in place of image {index}; the last tried: {lost[-1].title}: "
            f"{lost[-1].reason}"
        )


def shrink_for(boxes: Boxes, size: int) -> int:
    """The largest factor by which an image may be decoded smaller, its crops (n, 4) still at least ``size`` wide."""
    least = float(boxes[:, 2:].min())
    return next((f for f in SHRINKS if least / f >= SHARP * size), 1)


def shrunk(box: Boxes, whole: tuple[int, int], decoded: tuple[int, int]) -> Boxes:
    """The box (4,) of an image of ``whole`` pixels in the array that was decoded, to the nearest pixel."""
    if whole == decoded:
        return box
    vertical, horizontal = decoded[0] / whole[0], decoded[1] / whole[1]
    edges = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])
    top, left, bottom, right = np.rint(edges * [vertical, horizontal, vertical, horizontal]).astype(np.int64)
    return np.array([top, left, min(bottom, decoded[0]) - top, min(right, decoded[1]) - left])


def crop_and_resize(image: ImageArray, box: Boxes, size: int, mirrored: bool = False) -> ImageArray:
    """(h, w, c), box (4,) = top, left, height, width -> (size, size, c), bilinear with antialiasing, as PIL's."""
    top, left, height, width = (int(v) for v in box)
    # a copy, because PyTorch resizes it faster than a view, and wants to be able to write to it
    part = image[top : top + height, left : left + width].copy()
    x = torch.from_numpy(part).view(1, *part.shape).permute(0, 3, 1, 2)
    y = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    if mirrored:
        y = y.flip(3)  # many times faster than a reversed view in numpy
    resized: ImageArray = y[0].permute(1, 2, 0).numpy()
    return resized
