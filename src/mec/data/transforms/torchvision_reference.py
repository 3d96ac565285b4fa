"""The views to the letter of the paper's code: torchvision's transforms on PIL images, in the loader's processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms

from mec.data.decode import Opened
from mec.data.pixels import ImageArray, PixelFormat
from mec.data.rng import uniforms
from mec.data.transforms.crop import Cropper
from mec.data.transforms.multi_view import TwoViews
from mec.data.transforms.view_settings import ViewSettings
from mec.errors import InputError

SEEDS = 8
"""Stream of random numbers."""


def reference_transform(size: int, view: ViewSettings) -> Callable[[Image.Image], Image.Image]:
    """What MoCo v3's and the paper's code do to a PIL image, without ToTensor and Normalize, in the same order."""
    jitter = transforms.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    steps: list[Any] = [
        transforms.RandomResizedCrop(size, scale=view.crop_scale, ratio=view.crop_ratio),
        transforms.RandomApply([jitter], p=view.jitter),
        transforms.RandomGrayscale(p=view.gray),
        transforms.RandomApply([_GaussianBlur(view.blur_sigma)], p=view.blur),
        transforms.RandomApply([ImageOps.solarize], p=view.solarize),
        transforms.RandomHorizontalFlip(p=view.flip),
    ]
    composed: Callable[[Image.Image], Image.Image] = transforms.Compose(steps)
    return composed


class _GaussianBlur:
    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigma)))


class ReferenceViews(TwoViews):
    """Stands where TwoViews stands, for views that ReferenceCropper has made whole."""

    def __init__(self, size: int, view_1: ViewSettings, view_2: ViewSettings, seed: int = 0) -> None:
        super().__init__(size, view_1, view_2, seed)
        if view_1.rotation or view_2.rotation:
            raise InputError("views: reference has no rotation, which the paper's code lacks; fast has")

    def forward(self, images: Tensor, indices: Any, epoch: int) -> tuple[Tensor, Tensor]:
        """(n, 2, c, size, size) uint8 -> two float batches (n, c, size, size) in [0, 1]."""
        return images[:, 0] / 255, images[:, 1] / 255


class ReferenceCropper(Cropper):
    """Both views made whole by PIL, seeded by the image's number and the epoch."""

    def __init__(self, views: ReferenceViews, reading: PixelFormat) -> None:
        super().__init__(views, reading)
        if reading.channels not in (1, 3) or reading.value_range is not None:
            raise InputError("views: reference expects gray or color images of 8 bits, fast takes any")
        self.transforms = [reference_transform(views.size, view) for view in views.settings]

    def plans(self, indices: NDArray[np.int64], epoch: int, opened: Sequence[Opened | None]) -> Sequence[Any]:
        """A seed for each view."""
        return (uniforms(self.views.seed, epoch, indices, 2, SEEDS) * 2**32).astype(np.int64).tolist()  # type: ignore[no-any-return]

    def cut(self, out: ImageArray, opened: Opened, plan: Any) -> None:
        image = opened.decode(self.reading)
        pil_image = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        # without loader processes these are the generators of the training itself
        before = random.getstate()
        with torch.random.fork_rng(devices=[]):
            for view, (transform, seed) in enumerate(zip(self.transforms, plan, strict=True)):
                torch.manual_seed(seed)
                random.seed(seed)
                out[view] = np.asarray(transform(pil_image)).reshape(out[view].shape)
        random.setstate(before)
