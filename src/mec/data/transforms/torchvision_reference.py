"""The exact views of the paper's code: torchvision transforms on PIL images, applied in the loader workers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms

from mec.data.decode import OpenedImage
from mec.data.pixels import ImageArray, PixelFormat
from mec.data.rng import Stream, uniforms
from mec.data.transforms.crop import Cropper
from mec.data.transforms.multi_view import TwoViews
from mec.data.transforms.view_settings import ViewSettings
from mec.errors import InputError


def reference_transform(size: int, view: ViewSettings) -> Callable[[Image.Image], Image.Image]:
    """Return the transforms of MoCo v3 and of the paper's code, in their order, without ToTensor and Normalize."""
    jitter = transforms.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    steps: list[Any] = [
        transforms.RandomResizedCrop(size, scale=view.crop_scale, ratio=view.crop_ratio),
        transforms.RandomApply([jitter], p=view.color_jitter),
        transforms.RandomGrayscale(p=view.grayscale),
        transforms.RandomApply([partial(_gaussian_blur, sigma=view.blur_sigma)], p=view.blur),
        transforms.RandomApply([ImageOps.solarize], p=view.solarize),
        transforms.RandomHorizontalFlip(p=view.flip),
    ]
    composed: Callable[[Image.Image], Image.Image] = transforms.Compose(steps)
    return composed


def _gaussian_blur(image: Image.Image, sigma: tuple[float, float]) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*sigma)))


class ReferenceViews(TwoViews):
    """Replaces TwoViews where ReferenceCropper has already applied all augmentations."""

    def __init__(self, size: int, view_1: ViewSettings, view_2: ViewSettings, seed: int = 0) -> None:
        super().__init__(size, view_1, view_2, seed)
        if view_1.rotation or view_2.rotation:
            raise InputError("views: reference has no rotation, as the paper's code; use fast")

    def forward(self, images: Tensor, indices: Any, epoch: int) -> tuple[Tensor, Tensor]:
        """Convert uint8 views (n, 2, c, size, size) to two float batches (n, c, size, size) in [0, 1]."""
        return images[:, 0] / 255, images[:, 1] / 255


class ReferenceCropper(Cropper):
    """Makes both views of an image with PIL, seeded by the image index and the epoch."""

    def __init__(self, views: ReferenceViews, pixel_format: PixelFormat) -> None:
        super().__init__(views, pixel_format)
        if pixel_format.channels not in (1, 3) or pixel_format.value_range is not None:
            raise InputError("views: reference expects grayscale or color images of 8 bits; use fast for others")
        self.transforms = [reference_transform(views.size, view) for view in views.settings]

    def sample_parameters(
        self, indices: NDArray[np.int64], epoch: int, opened: Sequence[OpenedImage | None]
    ) -> Sequence[Any]:
        """Return a seed for each image and view."""
        u = uniforms(self.views.seed, epoch, indices, 2, Stream.REFERENCE_VIEWS)
        return (u * 2**32).astype(np.int64).tolist()  # type: ignore[no-any-return]

    def crop(self, out: ImageArray, opened: OpenedImage, parameters: Any) -> None:
        image = opened.decode(self.pixel_format)
        pil_image = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        # without loader workers, the global generators are those of the training itself: restore them
        state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            for view, (transform, seed) in enumerate(zip(self.transforms, parameters, strict=True)):
                torch.manual_seed(seed)
                random.seed(seed)
                out[view] = np.asarray(transform(pil_image)).reshape(out[view].shape)
        random.setstate(state)
