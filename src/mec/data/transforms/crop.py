"""Decoding and cropping in DataLoader workers: each image is decoded once and all of its views are cropped."""

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
from mec.data.decode import SHRINK_FACTORS, OpenedImage, open_image
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat
from mec.data.transforms.multi_view import MultiView
from mec.data.transforms.view_settings import Boxes
from mec.errors import InputError

MAX_SUBSTITUTES = 100
"""Maximum number of images that are tried in place of a corrupt one."""
MIN_OVERSAMPLING = 1.0
"""Decode at reduced resolution only while each crop side is at least this multiple of the view size."""


class Batch(NamedTuple):
    """Batch of images or crops, input of the on-device augmentation (``MultiView``).

    Attributes:
        images: whole images (n, c, h, w), or the crops of each view (n, views, c, s, s); uint8, or float32 in [0, 1].
        indices: (n,) image indices, which determine the random views.
        epoch: epoch of the batch.
        corrupt: images that could not be read while the batch was loaded.
        source_indices: (n,) indices of the images whose pixels are in the batch. They differ from ``indices`` where a
            corrupt image was replaced.
    """

    images: Tensor
    indices: NDArray[np.int64]
    epoch: int
    corrupt: list[CorruptImage]
    source_indices: NDArray[np.int64]


class Item(NamedTuple):
    """An image to load: its index, a function that returns it encoded or as an array, and its title for messages."""

    image_index: int
    load: Callable[[], bytes | NDArray[Any]]
    title: str


class Cropper:
    """Turns encoded images into a Batch of crops.

    A corrupt image is replaced by another one, under the index and with the random crops of the corrupt one.
    """

    def __init__(self, views: MultiView, pixel_format: PixelFormat) -> None:
        self.views, self.pixel_format = views, pixel_format

    def __call__(self, items: Sequence[Item], epoch: int, substitutes: Callable[[int], Iterator[Item]]) -> Batch:
        """Load and crop a batch. ``substitutes(index)`` yields images to try where image ``index`` is corrupt."""
        size, indices = self.views.size, np.array([item.image_index for item in items], dtype=np.int64)
        dtype = np.uint8 if self.pixel_format.value_range is None else np.float32
        out = np.empty((len(items), len(self.views.settings), size, size, self.pixel_format.channels), dtype=dtype)
        corrupt: list[CorruptImage] = []
        source_indices = indices.copy()
        opened = [self._open(item, corrupt) for item in items]
        parameters = self.sample_parameters(indices, epoch, opened)
        for n, item in enumerate(items):
            if not self._try_crop(out[n], item, opened[n], parameters[n], corrupt):
                candidates = substitutes(item.image_index)
                source_indices[n] = self._substitute(out[n], item.image_index, epoch, candidates, corrupt)
        return Batch(torch.from_numpy(out).permute(0, 1, 4, 2, 3), indices, epoch, corrupt, source_indices)

    def sample_parameters(
        self, indices: NDArray[np.int64], epoch: int, opened: Sequence[OpenedImage | None]
    ) -> Sequence[Any]:
        """Return the random parameters of each image, as ``crop`` takes them: boxes (views, 4) and flips (views,)."""
        # images that cannot be opened get a placeholder size; their parameters are not used
        heights = np.array([o.height if o else 1 for o in opened])
        widths = np.array([o.width if o else 1 for o in opened])
        views = range(len(self.views.settings))
        per_view = [self.views.view_parameters(view, indices, epoch, heights, widths) for view in views]
        boxes = np.stack([p.boxes for p in per_view], axis=1)
        flips = np.stack([p.flip for p in per_view], axis=1)
        return list(zip(boxes, flips, strict=True))

    def crop(self, out: ImageArray, opened: OpenedImage, parameters: Any) -> None:
        """Write the crops of one image into ``out`` (views, size, size, channels)."""
        boxes, flip = parameters
        image = opened.decode(self.pixel_format, choose_shrink(boxes, self.views.size))
        for view in range(len(out)):
            box = scale_box(boxes[view], (opened.height, opened.width), (image.shape[0], image.shape[1]))
            out[view] = crop_and_resize(image, box, self.views.size, bool(flip[view]))

    def _open(self, item: Item, corrupt: list[CorruptImage]) -> OpenedImage | None:
        try:
            return open_image(item.load())
        except CorruptImageError as error:
            corrupt.append(CorruptImage(item.title, str(error)))
            return None

    def _try_crop(
        self, out: ImageArray, item: Item, opened: OpenedImage | None, parameters: Any, corrupt: list[CorruptImage]
    ) -> bool:
        try:
            if opened is not None:
                self.crop(out, opened, parameters)
            return opened is not None
        except CorruptImageError as error:
            corrupt.append(CorruptImage(item.title, str(error)))
            return False

    def _substitute(
        self, out: ImageArray, index: int, epoch: int, candidates: Iterator[Item], corrupt: list[CorruptImage]
    ) -> int:
        """Crop the first readable candidate in place of image ``index`` and return its index."""
        for item in itertools.islice(candidates, MAX_SUBSTITUTES):
            opened = self._open(item, corrupt)
            (parameters,) = self.sample_parameters(np.array([index]), epoch, [opened])
            if self._try_crop(out, item, opened, parameters, corrupt):
                return item.image_index
        title, reason = corrupt[-1]
        raise InputError(f"data: no readable image found to replace image {index}; last tried: {title}: {reason}")


def choose_shrink(boxes: Boxes, size: int) -> int:
    """Return the largest shrink factor of decoding that satisfies ``MIN_OVERSAMPLING``.

    The shorter side of every crop in ``boxes`` (n, 4) stays at least MIN_OVERSAMPLING * ``size`` pixels.
    """
    shortest_side = float(boxes[:, 2:].min())
    return next((f for f in SHRINK_FACTORS if shortest_side / f >= MIN_OVERSAMPLING * size), 1)


def scale_box(box: Boxes, image_size: tuple[int, int], decoded_size: tuple[int, int]) -> Boxes:
    """Scale a box (top, left, height, width) from the (height, width) of the image to those of the decoded array."""
    if image_size == decoded_size:
        return box
    vertical, horizontal = decoded_size[0] / image_size[0], decoded_size[1] / image_size[1]
    edges = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])
    top, left, bottom, right = np.rint(edges * [vertical, horizontal, vertical, horizontal]).astype(np.int64)
    return np.array([top, left, min(bottom, decoded_size[0]) - top, min(right, decoded_size[1]) - left])


def crop_and_resize(image: ImageArray, box: Boxes, size: int, flip: bool = False) -> ImageArray:
    """Crop an image (h, w, c), resize the crop to (size, size, c), bilinear with antialiasing as in PIL, and flip it.

    ``box`` is top, left, height, width.
    """
    top, left, height, width = (int(v) for v in box)
    # a copy: PyTorch resizes it faster than a strided slice, and warns about arrays that are not writable
    cropped = image[top : top + height, left : left + width].copy()
    x = torch.from_numpy(cropped).view(1, *cropped.shape).permute(0, 3, 1, 2)
    y = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    if flip:
        y = y.flip(3)  # many times faster than a reversed view in numpy
    resized: ImageArray = y[0].permute(1, 2, 0).numpy()
    return resized
