"""Decoding and cropping in DataLoader workers: each image is decoded once and all of its views are cropped."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from torch import Tensor

from mec.data.corrupt import CorruptImage
from mec.data.decode import SHRINK_FACTORS, OpenedImage, open_image
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat
from mec.data.transforms import Boxes
from mec.data.transforms.multi_view import MultiView, Views
from mec.errors import InputError

MAX_SUBSTITUTES = 100  # images that are tried in place of a corrupt one
MIN_OVERSAMPLING = 1.0  # decode at a reduced size only while crop sides are at least this multiple of the view's


class Batch(NamedTuple):
    """Batch of whole images (n, c, h, w), or of the crops for all views (n, values): the (s, s, c) values of each crop,
    one after another. See ``split_crops``."""

    images: Tensor  # uint8, or float32 in [0, 1]
    indices: NDArray[np.int64]  # (n,), determine the random views
    epoch: int
    corrupt: list[CorruptImage]  # found while the batch was loaded
    source_indices: NDArray[np.int64]  # (n,): the images whose pixels are in the batch; others where one was corrupt


class Item(NamedTuple):
    """An image to load: its index, a function that returns it encoded or as an array, and its title."""

    image_index: int
    load: Callable[[], bytes | NDArray[Any] | Image.Image]
    title: str


class BatchReader(ABC):
    """Turns encoded images into a Batch of crops of each, for ``views``. A corrupt one is replaced, under its index and
    random crops. ``dtype`` is that of the batch; None: uint8, or float32 for images of more bits."""

    def __init__(self, pixel_format: PixelFormat, views: Views, dtype: DTypeLike | None = None) -> None:
        self.pixel_format, self.views, self.seed = pixel_format, views, views.seed
        self.dtype = dtype or (np.uint8 if pixel_format.value_range is None else np.float32)

    @abstractmethod
    def sample_parameters(
        self, indices: NDArray[np.int64], epoch: int, opened: Sequence[OpenedImage | None]
    ) -> Sequence[Any]:
        """Return the random parameters of each image, as ``crop`` takes them."""

    @abstractmethod
    def crop(self, out: Sequence[ImageArray], opened: OpenedImage, parameters: Any) -> None:
        """Write the crops of one image into ``out``, an array (size, size, channels) for each."""

    def __call__(self, items: Sequence[Item], epoch: int, substitutes: Callable[[int], Iterator[Item]]) -> Batch:
        """Load and crop a batch. ``substitutes(index)`` yields images to try where image ``index`` is corrupt."""
        indices = np.array([item.image_index for item in items], dtype=np.int64)
        images, out = self._allocate(len(items))
        corrupt: list[CorruptImage] = []
        source_indices = indices.copy()
        opened = [self._open(item, corrupt) for item in items]
        parameters = self.sample_parameters(indices, epoch, opened)
        for n, item in enumerate(items):
            if not self._try_crop(out[n], item, opened[n], parameters[n], corrupt):
                candidates = substitutes(item.image_index)
                source_indices[n] = self._substitute(out[n], item.image_index, epoch, candidates, corrupt)
        return Batch(images, indices, epoch, corrupt, source_indices)

    def _allocate(self, n: int) -> tuple[Tensor, Sequence[Sequence[ImageArray]]]:
        """Return the images of a batch, and the arrays (size, size, channels) of the crops of each image in them."""
        channels, sizes = self.pixel_format.channels, self.views.sizes
        ends = np.cumsum([channels * size**2 for size in sizes])
        flat = np.empty((n, ends[-1]), dtype=self.dtype)
        crops = [
            [part.reshape(size, size, channels) for part, size in zip(np.split(row, ends[:-1]), sizes, strict=True)]
            for row in flat
        ]
        return torch.from_numpy(flat), crops

    def _open(self, item: Item, corrupt: list[CorruptImage]) -> OpenedImage | None:
        try:
            return open_image(item.load())
        except CorruptImageError as error:
            corrupt.append(CorruptImage(item.title, str(error)))
            return None

    def _try_crop(
        self,
        out: Sequence[ImageArray],
        item: Item,
        opened: OpenedImage | None,
        parameters: Any,
        corrupt: list[CorruptImage],
    ) -> bool:
        try:
            if opened is not None:
                self.crop(out, opened, parameters)
            return opened is not None
        except CorruptImageError as error:
            corrupt.append(CorruptImage(item.title, str(error)))
            return False

    def _substitute(
        self, out: Sequence[ImageArray], index: int, epoch: int, candidates: Iterator[Item], corrupt: list[CorruptImage]
    ) -> int:
        """Crop the first readable candidate in place of image ``index`` and return its index."""
        for item in itertools.islice(candidates, MAX_SUBSTITUTES):
            opened = self._open(item, corrupt)
            (parameters,) = self.sample_parameters(np.array([index]), epoch, [opened])
            if self._try_crop(out, item, opened, parameters, corrupt):
                return item.image_index
        title, reason = corrupt[-1]
        raise InputError(f"data: no readable image found to replace image {index}; last tried: {title}: {reason}")


class Cropper(BatchReader):
    """Crops all views of an image, of which ``views`` makes the rest on the device."""

    def __init__(self, views: MultiView, pixel_format: PixelFormat) -> None:
        super().__init__(pixel_format, views)
        self.view_parameters = views.view_parameters

    def sample_parameters(
        self, indices: NDArray[np.int64], epoch: int, opened: Sequence[OpenedImage | None]
    ) -> Sequence[Any]:
        """Return boxes (views, 4) and flips (views,) for each image."""
        # images that cannot be opened get a placeholder size; their parameters are not used
        heights = np.array([o.height if o else 1 for o in opened])
        widths = np.array([o.width if o else 1 for o in opened])
        views = range(self.views.num_views)
        per_view = [self.view_parameters(view, indices, epoch, heights, widths) for view in views]
        boxes = np.stack([p.boxes for p in per_view], axis=1)
        flips = np.stack([p.flip for p in per_view], axis=1)
        return list(zip(boxes, flips, strict=True))

    def crop(self, out: Sequence[ImageArray], opened: OpenedImage, parameters: Any) -> None:
        boxes, flip = parameters
        image = opened.decode(self.pixel_format, choose_shrink(boxes, self.views.sizes))
        for view, size in enumerate(self.views.sizes):
            box = scale_box(boxes[view], (opened.height, opened.width), (image.shape[0], image.shape[1]))
            out[view][...] = crop_and_resize(image, box, size, bool(flip[view]))


def choose_shrink(boxes: Boxes, sizes: Sequence[int]) -> int:
    """Return the largest shrink factor of decoding at which all ``boxes`` (n, 4) satisfy ``MIN_OVERSAMPLING``, each
    resized to its size."""
    oversampling = float((boxes[:, 2:].min(1) / np.array(sizes)).min())
    return next((f for f in SHRINK_FACTORS if oversampling / f >= MIN_OVERSAMPLING), 1)


def scale_box(box: Boxes, image_size: tuple[int, int], decoded_size: tuple[int, int]) -> Boxes:
    """Scale a box (top, left, height, width) from the (height, width) of the image to those of the decoded array."""
    if image_size == decoded_size:
        return box
    vertical, horizontal = decoded_size[0] / image_size[0], decoded_size[1] / image_size[1]
    edges = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])
    top, left, bottom, right = np.rint(edges * [vertical, horizontal, vertical, horizontal]).astype(np.int64)
    return np.array([top, left, min(bottom, decoded_size[0]) - top, min(right, decoded_size[1]) - left])


def crop_and_resize(image: ImageArray, box: Boxes, size: int, flip: bool = False) -> ImageArray:
    """Crop an image (h, w, c), resize the crop to (size, size, c), bilinear with antialiasing as in PIL, flip it."""
    top, left, height, width = (int(v) for v in box)
    # a copy: PyTorch resizes it faster than a strided slice, and warns about arrays that are not writable
    cropped = image[top : top + height, left : left + width].copy()
    x = torch.from_numpy(cropped).view(1, *cropped.shape).permute(0, 3, 1, 2)
    y = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    if flip:
        y = y.flip(3)  # many times faster than a reversed view in numpy
    resized: ImageArray = y[0].permute(1, 2, 0).numpy()
    return resized
