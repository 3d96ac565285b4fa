"""The exact views of the paper's code: torchvision on PIL images, in the workers."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from mec.data.pixels import PixelFormat
from mec.data.transforms import ViewSettings
from mec.data.transforms.custom import ImageTransformViews
from mec.errors import InputError


def reference_transform(size: int, view: ViewSettings) -> Callable[[Image.Image], Image.Image]:
    """Return the transforms of MoCo v3 and of the paper's code, in their order, without ToTensor and Normalize."""
    jitter = transforms.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    steps = [
        transforms.RandomResizedCrop(size, scale=view.crop_scale, ratio=view.crop_ratio),
        transforms.RandomApply([jitter], p=view.color_jitter),
        transforms.RandomGrayscale(p=view.grayscale),
        transforms.RandomApply([partial(_gaussian_blur, sigma=view.blur_sigma)], p=view.blur),
        transforms.RandomApply([ImageOps.solarize], p=view.solarize),
        transforms.RandomHorizontalFlip(p=view.flip),
    ]
    return transforms.Compose(steps)  # type: ignore[no-any-return]


def _gaussian_blur(image: Image.Image, sigma: tuple[float, float]) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*sigma)))


class ReferenceViews(ImageTransformViews):
    """The two views of ``reference_transform``, of grayscale or color images of 8 bits."""

    def __init__(self, size: int, view_1: ViewSettings, view_2: ViewSettings, seed: int = 0) -> None:
        super().__init__([reference_transform(size, view) for view in (view_1, view_2)], size, 2, seed)
        if view_1.rotation or view_2.rotation:
            raise InputError("views: reference has no rotation, as the paper's code; use fast")

    def check_pixel_format(self, pixel_format: PixelFormat) -> None:
        if pixel_format.channels not in (1, 3) or pixel_format.value_range is not None:
            raise InputError("views: reference expects grayscale or color images of 8 bits; use fast for others")
