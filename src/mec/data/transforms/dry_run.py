"""Views by a transform of the user: a dry run on a few images finds their number, size, normalization and errors."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mec.data.analysis import sample_images
from mec.data.dataset import ImageDataset, format_as_loaded
from mec.data.pixels import ImageArray, PixelFormat
from mec.data.transforms.crop import crop_and_resize
from mec.data.transforms.custom import (
    BatchTransformViews,
    ImageTransformViews,
    SeededTransform,
    ViewTransform,
    input_image,
    refuse_exceptions,
    transform_batch,
    transform_image,
    transform_seeds,
)
from mec.data.transforms.inspection import find_normalization, is_from, name_of
from mec.data.transforms.multi_view import Statistics
from mec.errors import InputError

logger = logging.getLogger("mec")

NUM_IMAGES = 4
NUM_COPIES = 8  # equal images in a batch, whose views should differ
INPUT_SCALE = 256 / 224  # side of the center crops that a module is given, in sides of a view
TOLERANCE, MAX_OUTSIDE = 0.1, 0.1
"""Distance from [0, 1] that resampling may cause, and largest fraction of pixels beyond it in normalized views."""

CustomViews = ImageTransformViews | BatchTransformViews
Samples = list[list[Tensor]]  # the views (c, h, w) of each image


def create_custom_views(
    transform: ViewTransform, dataset: ImageDataset, pixel_format: PixelFormat, image_size: int, seed: int
) -> CustomViews:
    """Return the views that a transform makes of a dataset, after a dry run on a few of its images.

    Args:
        transform: a module that is given batches (n, c, h, w) on the device, or any other callable, torchvision's
            modules included, that is given one image in a worker (see ``input_image``). Both return a list of views, or
            a single view: they are then called once for each of two views.
        dataset: the images, of ``pixel_format``.
        pixel_format: channels and value range of the images.
        image_size: side in pixels of the views that a module is expected to make. It is given center crops of 8/7 of
            this side, or, if its views have the size of its input, of this side. Images in memory are given whole.
        seed: fixes the views of each image index and epoch.

    Raises:
        InputError: the transform raises an exception, or its views are not at least two tensors, arrays or PIL images
            of one square size, with the channels of the images, and uint8, in [0, 1], or normalized by a Normalize.
    """
    if isinstance(transform, type) or not callable(transform):
        got = f"the class {transform.__name__}" if isinstance(transform, type) else type(transform).__name__
        raise InputError(f"view_transform: expected an nn.Module or a function of an image, got {got}")
    loaded_format = format_as_loaded(dataset, pixel_format)
    images = list(sample_images(dataset, NUM_IMAGES, lambda opened: opened.decode(loaded_format)))
    views: CustomViews
    if not isinstance(transform, nn.Module) or runs_per_image(transform):
        views, samples = _run_on_images(transform, images, seed)
        place = "in the loader processes"
    else:
        in_memory = dataset.images is not None
        views, samples = _run_on_batches(transform, images, seed, 0 if in_memory else image_size)
        place = f"on the device, of {'whole images' if in_memory else f'center crops of {views.input_size} px'}"
    views.statistics = _statistics(transform, samples, pixel_format.channels)
    if all(torch.equal(sample[0], sample[1]) for sample in samples):
        logger.warning(f"view_transform: {name_of(transform)} makes equal views of an image: it is not random")
    normalization = "mec" if views.statistics is None else "its Normalize"
    logger.info(
        f"view_transform: {views.num_views} views of {views.size} px by {name_of(transform)}, {place}, normalized by "
        f"{normalization}"
    )
    return views


def runs_per_image(module: nn.Module) -> bool:
    """Return whether a module is given one image: torchvision's are, which draw the same parameters for a batch."""
    if isinstance(module, nn.Sequential):
        return all(runs_per_image(child) for child in module)
    return is_from("torchvision.transforms", module)


def _run_on_images(
    transform: ViewTransform, images: Sequence[ImageArray], seed: int
) -> tuple[ImageTransformViews, Samples]:
    inputs = [input_image(image) for image in images]
    first = transform_image([SeededTransform(transform)], inputs[0], [seed])
    transforms = [transform] if len(first) > 1 else [transform, transform]
    seeded = [SeededTransform(t) for t in transforms]

    def run() -> Samples:
        seeds = transform_seeds(seed, 0, np.arange(len(inputs)), len(transforms))
        return [transform_image(seeded, x, s) for x, s in zip(inputs, seeds, strict=True)]

    samples = run()
    size = _check_views(samples, images[0].shape[2])
    _warn_if_not_repeatable(transform, samples, run())
    is_uint8 = all(view.dtype == torch.uint8 for views in samples for view in views)
    dtype = np.uint8 if is_uint8 else np.float32
    return ImageTransformViews(transforms, size, len(samples[0]), seed, dtype), samples


def _run_on_batches(
    module: nn.Module, images: Sequence[ImageArray], seed: int, image_size: int
) -> tuple[BatchTransformViews, Samples]:
    """``image_size`` is the expected side of the views; 0: the images have one size, and are given whole."""
    channels = images[0].shape[2]
    state = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))

    def run(input_size: int, images: Sequence[ImageArray] = images, seed: int = seed) -> Samples:
        crops = [center_crop(image, input_size) if input_size else image for image in images]
        batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous().to(state.device)
        x = batch if batch.is_floating_point() else batch / 255
        with torch.no_grad(), refuse_exceptions(module, x):
            views = transform_batch(module, x, seed)
        if any(view.ndim != 4 or len(view) != len(x) for view in views):
            shapes = [tuple(view.shape) for view in views]
            raise InputError(f"view_transform: expected views of {len(x)} images (n, c, h, w), got {shapes}")
        return [list(of_image) for of_image in zip(*views, strict=True)]

    input_size = round(image_size * INPUT_SCALE)
    samples = run(input_size)
    size = _check_views(samples, channels)
    if image_size and size != image_size:
        # recipe.yaml will hold the size of the views: choose the same input for it, so that a run can be resumed
        input_size = round(size * INPUT_SCALE)
        samples = run(input_size)
        if _check_views(samples, channels) != size:
            input_size = image_size
            samples = run(input_size)
            size = _check_views(samples, channels)
            if size != image_size:
                raise InputError(
                    f"view_transform: expected views of one size, or of the size of the input, got {size} px of "
                    f"{input_size} px; end with a resize or a crop of fixed size"
                )
    _warn_if_not_repeatable(module, samples, run(input_size))
    copies = [images[0]] * NUM_COPIES
    first, second = (run(input_size, copies, seed + n) for n in (0, 1))
    if _all_equal(first) and _all_equal(second) and not _equal(first[0], second[0]):
        logger.warning(
            f"view_transform: {name_of(module)} draws the same random numbers for all images of a batch; draw them for "
            "each image, or pass a function of one image, which runs in the loader processes"
        )
    return BatchTransformViews(module, size, len(samples[0]), seed, input_size), samples


def center_crop(image: ImageArray, size: int) -> ImageArray:
    """Return the largest central square of an image (h, w, c), resized to (size, size, c)."""
    height, width = image.shape[:2]
    side = min(height, width)
    return crop_and_resize(image, np.array([(height - side) // 2, (width - side) // 2, side, side]), size)


def _check_views(samples: Samples, channels: int) -> int:
    """Return the side of the views; an InputError if they differ in size, or are not as the encoder needs them."""
    numbers = sorted({len(views) for views in samples})
    if len(numbers) > 1 or numbers[0] < 2:
        raise InputError(f"view_transform: expected at least 2 views, the same number of all images, got {numbers}")
    shapes = sorted({tuple(view.shape) for views in samples for view in views})
    sizes = sorted({shape[1:] for shape in shapes})
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        got = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise InputError(
            f"view_transform: expected square views of one size, got {got} (views of several sizes, multi-crop, are "
            "not supported)"
        )
    for shape in shapes:
        if shape[0] != channels:
            raise InputError(
                f"view_transform: expected views of {channels} channels as the images, got {shape[0]}; set channels in "
                "the recipe"
            )
    if not all(view.isfinite().all() for views in samples for view in views):
        raise InputError("view_transform: expected finite numbers in the views, got NaN or infinity")
    return int(sizes[0][0])


def _statistics(transform: ViewTransform, samples: Samples, channels: int) -> Statistics | None:
    """Return mean and standard deviation of the transform's Normalize; None if its views are in [0, 1], or uint8."""
    floats = [view for views in samples for view in views if view.is_floating_point()]
    if not floats:
        return None
    x = torch.stack(floats).cpu()
    found = find_normalization(transform, channels)
    if found is not None:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in found)
        x = x * std + mean
    outside = (x < -TOLERANCE) | (x > 1 + TOLERANCE)
    if found is None and outside.any():
        raise InputError(
            f"view_transform: expected uint8, floats in [0, 1], or a Normalize with mean and std in "
            f"{name_of(transform)}, got values from {float(x.min()):.3g} to {float(x.max()):.3g}"
        )
    if found is not None and outside.float().mean() > MAX_OUTSIDE:
        raise InputError(
            f"view_transform: expected views normalized from [0, 1] by the Normalize in {name_of(transform)}, got "
            f"values from {float(x.min()):.3g} to {float(x.max()):.3g} before it"
        )
    return found


def _warn_if_not_repeatable(transform: ViewTransform, first: Samples, second: Samples) -> None:
    if not all(_equal(views, again) for views, again in zip(first, second, strict=True)):
        logger.warning(
            f"view_transform: {name_of(transform)} makes other views of an image when it is called again with the same "
            "seeds of torch, random and numpy: it draws from another generator or keeps a state, so a resumed run will "
            "differ"
        )


def _equal(views: list[Tensor], others: list[Tensor]) -> bool:
    return len(views) == len(others) and all(torch.equal(x, y) for x, y in zip(views, others, strict=True))


def _all_equal(samples: Samples) -> bool:
    return all(_equal(views, samples[0]) for views in samples[1:])
