"""Views by other transforms than the built-in ones: of one image at a time in the workers, or of batches on the device.

Around each call, the generators of torch, random, numpy and albumentations are seeded by the seed of the run, the epoch
and the image index, and restored after it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mec.data.decode import OpenedImage
from mec.data.pixels import ImageArray, PixelFormat
from mec.data.rng import Stream, seeded_generators, uniforms
from mec.data.transforms.crop import BatchReader, Item
from mec.data.transforms.inspection import is_from, name_of, objects_in
from mec.data.transforms.multi_view import Views, split_crops
from mec.errors import InputError

ViewTransform = Callable[[Any], Any]
"""A module on batches, or a function of one image; both return the views."""


class ImageTransformViews(Views):
    """Views that TransformReader has made in the workers.

    Args:
        transforms: functions of an image, each of which returns one view or a list of views: see ``input_image`` and
            ``as_tensor``.
        size: side of a view in pixels.
        num_views: number of views of all functions together.
        seed: fixes the views of each image index and epoch.
        dtype: of the views between workers and device: uint8, or float32 if some are floats.
    """

    def __init__(
        self, transforms: Sequence[ViewTransform], size: int, num_views: int, seed: int = 0, dtype: Any = np.uint8
    ) -> None:
        super().__init__(size, num_views, seed)
        self.transforms = [SeededTransform(transform) for transform in transforms]
        self.dtype = dtype

    def check_pixel_format(self, pixel_format: PixelFormat) -> None:
        """Raise InputError if the transforms do not accept images of a format."""

    def forward(self, images: Tensor, indices: Any, epoch: int) -> tuple[Tensor, ...]:
        """Convert views (n, views, c, size, size), uint8 or float, to one float batch (n, c, size, size) of each."""
        return tuple(x if x.is_floating_point() else x / 255 for x in split_crops(images, self.sizes))


class BatchTransformViews(Views):
    """Views by a module on batches, on the device of the batch. The parameters of the module are not trained.

    Args:
        module: maps images (n, c, h, w), float in [0, 1], to a list of views (n, c, size, size), or to one view, for
            which it is called twice.
        size: side of a view in pixels.
        num_views: number of views.
        seed: with epoch and index of the first image, fixes the views of a batch.
        input_size: side in pixels of the center crops that it is given of images that are not in memory.
    """

    def __init__(self, module: nn.Module, size: int, num_views: int, seed: int = 0, input_size: int = 0) -> None:
        super().__init__(size, num_views, seed)
        self.module, self.input_size = module.requires_grad_(False), input_size

    @torch.no_grad()
    def forward(self, images: Tensor, indices: NDArray[np.int64] | Tensor, epoch: int) -> tuple[Tensor, ...]:
        """Make the views of whole images (n, c, h, w), or of center crops in a Batch: uint8, or float in [0, 1]."""
        (seed,) = transform_seeds(self.seed, epoch, np.asarray(indices)[:1], 1)[0]
        x = images if images.ndim == 4 else split_crops(images, [self.input_size])[0]
        with torch.autocast(images.device.type, enabled=False):
            views = transform_batch(self.module, x if x.is_floating_point() else x / 255, seed)
        expected = (len(x), x.shape[1], self.size, self.size)
        if len(views) != self.num_views or any(view.shape != expected for view in views):
            shapes = sorted({tuple(view.shape) for view in views})
            raise InputError(
                f"view_transform: expected {self.num_views} views {expected} as of the first images, got {len(views)} "
                f"of {shapes}"
            )
        return tuple(views)


def transform_seeds(seed: int, epoch: int, indices: NDArray[np.int64], count: int) -> list[list[int]]:
    """Return ``count`` seeds in [0, 2^32) for each of the images ``indices`` (n,)."""
    u = uniforms(seed, epoch, indices, count, Stream.VIEW_TRANSFORM)
    return (u * 2**32).astype(np.int64).tolist()  # type: ignore[no-any-return]


class SeededTransform:
    """A transform of one image, called as ``transform(image, seed)``: seeds the global generators, and those of the
    albumentations transforms in it; returns its views as ``as_tensor`` does."""

    def __init__(self, transform: ViewTransform) -> None:
        self.transform = transform
        self.from_albumentations = is_from("albumentations", transform)

    def __getstate__(self) -> dict[str, Any]:
        # another process has its own copies of global variables
        return {name: value for name, value in vars(self).items() if name != "albumentations"}

    @cached_property
    def albumentations(self) -> list[Any]:
        found = objects_in(self.transform, stop_at="albumentations")
        return [x for x in found if is_from("albumentations", x) and hasattr(x, "set_random_seed")]

    def __call__(self, image: Image.Image | Tensor, seed: int) -> list[Tensor]:
        for number, transform in enumerate(self.albumentations):
            generator = np.random.default_rng([seed, number])
            if hasattr(transform, "set_random_state"):  # its set_random_seed may add the seed of the worker
                transform.set_random_state(generator, random.Random(int(generator.integers(2**32))))
            else:
                transform.set_random_seed(int(generator.integers(2**32)))
        with seeded_generators(seed):
            if self.from_albumentations:
                array = image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) else np.array(image)
                result = self.transform(image=array)["image"]  # type: ignore[call-arg]
            else:
                result = self.transform(image)
        views = result if isinstance(result, (list, tuple)) else [result]
        return [as_tensor(view) for view in views]


def input_image(image: ImageArray) -> Image.Image | Tensor:
    """Return what a transform of one image is given for an image (h, w, c): a PIL image for 8 bits with 1 or 3
    channels, else a float tensor (c, h, w) in [0, 1]."""
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return x if x.is_floating_point() else x / 255


def as_tensor(view: object) -> Tensor:
    """Convert a PIL image, an array (h, w[, c]) or a tensor (c, h, w) to a tensor (c, h, w), uint8 or float32."""
    if isinstance(view, (Image.Image, np.ndarray)):
        array = np.array(view)
        if array.ndim not in (2, 3) or array.dtype.kind not in "buif":
            raise InputError(f"view_transform: expected views (h, w, c), got an array {array.shape} of {array.dtype}")
        view = torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1)
    if not isinstance(view, Tensor):
        raise InputError(
            "view_transform: expected views as tensors (c, h, w), arrays (h, w, c) or PIL images, got "
            f"{type(view).__name__}"
        )
    view = view.detach().cpu().as_subclass(Tensor)
    if view.ndim != 3:
        raise InputError(f"view_transform: expected views (c, h, w), a list of several, got {tuple(view.shape)}")
    if view.dtype != torch.uint8 and not view.is_floating_point():
        raise InputError(f"view_transform: expected views of uint8 or floats, got {view.dtype}")
    return view if view.dtype == torch.uint8 else view.float()


def transform_image(
    transforms: Sequence[SeededTransform], image: Image.Image | Tensor, seeds: Sequence[int]
) -> list[Tensor]:
    """Return the views (c, h, w) of all transforms of one image; an InputError if one raises any exception."""
    views: list[Tensor] = []
    for transform, seed in zip(transforms, seeds, strict=True):
        # a transform may change a tensor in place
        x = image.clone() if isinstance(image, Tensor) and len(transforms) > 1 else image
        with refuse_exceptions(transform.transform, image):
            views += transform(x, seed)
    return views


@contextlib.contextmanager
def refuse_exceptions(transform: ViewTransform, x: Image.Image | Tensor) -> Iterator[None]:
    """Turn any exception of a transform of ``x`` into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(x, Tensor):
            given, channels = f"a float tensor {tuple(x.shape)}", int(x.shape[-3])
        else:
            given, channels = f"a PIL image {x.width} x {x.height} of mode {x.mode}", len(x.getbands())
        hint = "; if it expects color images, set channels to 3 in the recipe" if channels == 1 else ""
        reason = " ".join(str(error).split())
        raise InputError(
            f"view_transform: {name_of(transform)} raised {type(error).__name__} ({reason}) for {given}{hint}"
        ) from error


def transform_batch(module: nn.Module, images: Tensor, seed: int) -> list[Tensor]:
    """Return the views (n, c, h, w) by a module of images (n, c, h, w) in [0, 1], with seeded generators."""
    with seeded_generators(seed, images.device):
        # a module may change its input in place
        result = module(images.clone())
        results = [result, module(images.clone())] if isinstance(result, Tensor) else result
    if not isinstance(results, (list, tuple)) or not all(isinstance(view, Tensor) for view in results):
        raise InputError(
            "view_transform: expected a tensor or a list of tensors (n, c, h, w) from a module, which is called with "
            f"batches, got {type(result).__name__}"
        )
    return [view.as_subclass(Tensor).float() for view in results]


class TransformReader(BatchReader):
    """Makes all views of an image by the transforms of ``views``, seeded by image index and epoch."""

    def __init__(self, views: ImageTransformViews, pixel_format: PixelFormat) -> None:
        views.check_pixel_format(pixel_format)
        super().__init__(pixel_format, views, views.dtype)
        self.transforms = views.transforms

    def sample_parameters(
        self, indices: NDArray[np.int64], epoch: int, opened: Sequence[OpenedImage | None]
    ) -> Sequence[Any]:
        """Return a seed for each image and transform."""
        return transform_seeds(self.seed, epoch, indices, len(self.transforms))

    def _try_crop(self, out: Sequence[ImageArray], item: Item, *arguments: Any) -> bool:
        try:
            return super()._try_crop(out, item, *arguments)
        except InputError as error:
            raise InputError(f"{error} (image {item.title})") from error

    def crop(self, out: Sequence[ImageArray], opened: OpenedImage, parameters: Any) -> None:
        views = transform_image(self.transforms, input_image(opened.decode(self.pixel_format)), parameters)
        height, width, channels = out[0].shape
        for n, view in enumerate(views):
            if view.shape != (channels, height, width) or len(views) != len(out):
                expected = len(out), (channels, height, width)
                raise InputError(
                    f"view_transform: expected {expected[0]} views {expected[1]} as of the first images, got "
                    f"{len(views)} of {tuple(view.shape)}"
                )
            if view.is_floating_point() and self.dtype == np.uint8:
                raise InputError("view_transform: expected views of uint8 as of the first images, got floats")
            if not view.is_floating_point() and self.dtype != np.uint8:
                view = view / 255
            out[n][...] = view.permute(1, 2, 0).numpy()
