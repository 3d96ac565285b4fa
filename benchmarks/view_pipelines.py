"""Pipelines that views.py compares: the paper's on PIL, torchvision v2, lightly, kornia and mec.

Each makes both views by the paper's recipe from encoded images or arrays.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image

from mec.data import PixelFormat
from mec.data.transforms import VIEW_1, VIEW_2, ExtraViewSettings, ViewSettings
from mec.data.transforms.crop import Cropper, Item
from mec.data.transforms.multi_view import MultiView
from mec.data.transforms.reference import reference_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLUR_KERNEL = 13  # three times the largest sigma to either side
BatchFunction = Callable[[list[Any]], None]


def paper(size: int) -> list[Callable[[Any], Any]]:
    """torchvision on PIL, as in the paper's code."""
    from torchvision import transforms

    def view(settings: ViewSettings) -> Callable[[Any], Any]:
        to_input = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        return transforms.Compose([reference_transform(size, settings), *to_input])

    return [view(VIEW_1), view(VIEW_2)]


def torchvision_v2(size: int) -> list[Callable[[Any], Any]]:
    from torchvision.transforms import v2

    def view(s: ViewSettings) -> Callable[[Any], Any]:
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=s.crop_scale, antialias=True),
                v2.RandomApply([v2.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue)], p=s.color_jitter),
                v2.RandomGrayscale(p=s.grayscale),
                v2.RandomApply([v2.GaussianBlur(BLUR_KERNEL, s.blur_sigma)], p=s.blur),
                v2.RandomSolarize(128, p=s.solarize),
                v2.RandomHorizontalFlip(p=s.flip),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    return [view(VIEW_1), view(VIEW_2)]


def lightly(size: int) -> list[Callable[[Any], Any]]:
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    return [BYOLView1Transform(size, min_scale=0.2), BYOLView2Transform(size, min_scale=0.2)]


def kornia(size: int) -> list[Callable[[Any], Any]]:
    import kornia.augmentation as K
    from torch import nn

    def view(s: ViewSettings) -> Callable[[Any], Any]:
        return nn.Sequential(
            K.RandomResizedCrop((size, size), scale=s.crop_scale),
            K.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue, p=s.color_jitter),
            K.RandomGrayscale(p=s.grayscale),
            K.RandomGaussianBlur((BLUR_KERNEL, BLUR_KERNEL), s.blur_sigma, p=s.blur),
            K.RandomSolarize(0.0, 0.0, p=s.solarize),
            K.RandomHorizontalFlip(p=s.flip),
            K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        )

    return [view(VIEW_1), view(VIEW_2)]


def as_pil(encoded: bytes | np.ndarray) -> Image.Image:
    return (
        Image.fromarray(encoded) if isinstance(encoded, np.ndarray) else Image.open(io.BytesIO(encoded)).convert("RGB")
    )


def as_tensor(encoded: bytes | np.ndarray) -> torch.Tensor:
    array = encoded if isinstance(encoded, np.ndarray) else simplejpeg.decode_jpeg(encoded)
    array = array if array.flags.writeable else array.copy()
    return torch.from_numpy(array).permute(2, 0, 1)


def one_by_one(views: list[Callable[[Any], Any]], decode: Callable[[Any], Any], images: list[Any]) -> torch.Tensor:
    decoded = [decode(p) for p in images]
    return torch.stack([torch.stack([view(d) for view in views]) for d in decoded])


def batched(views: list[Callable[[Any], Any]], images: list[Any]) -> torch.Tensor:
    x = torch.stack([as_tensor(p) for p in images]).float() / 255
    return torch.stack([view(x) for view in views], dim=1)


class MecPipeline:
    """Crops as in a worker, then the other transforms on the batch; ``worker_only`` leaves these to an accelerator.
    Views of ``local_sizes`` are made besides the two (multi-crop)."""

    def __init__(self, size: int, worker_only: bool = False, local_sizes: Sequence[int] = ()) -> None:
        settings = [VIEW_1, VIEW_2] + [ExtraViewSettings()] * len(local_sizes)
        self.views, self.worker_only, self.epoch = MultiView(size, settings, 0, local_sizes), worker_only, 0
        self.crop = Cropper(self.views, PixelFormat())
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def __call__(self, images: list[Any]) -> None:
        self.epoch += 1
        if isinstance(images[0], np.ndarray):
            batch: Any = (
                torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
                np.arange(len(images)),
                self.epoch,
            )
        else:
            items = [Item(i, partial(_identity, p), "") for i, p in enumerate(images)]
            batch = self.crop(items, self.epoch, lambda _: iter(()))[:3]
        if not self.worker_only:
            for x in self.views(*batch):
                _ = x.sub_(self.mean).div_(self.std)


def _identity(data: Any) -> Any:
    return data


def pipelines(size: int) -> dict[str, BatchFunction]:
    """Return the installed pipelines, as functions of a list of images."""
    factories: dict[str, Callable[[], BatchFunction]] = {
        "PIL (the paper's)": lambda: partial(one_by_one, paper(size), as_pil),
        "torchvision v2": lambda: partial(one_by_one, torchvision_v2(size), as_tensor),
        "lightly": lambda: partial(one_by_one, lightly(size), as_pil),
        "kornia": lambda: partial(batched, kornia(size)),
        "mec": lambda: MecPipeline(size),
    }
    installed: dict[str, BatchFunction] = {}
    for name, create in factories.items():
        try:
            installed[name] = create()
        except ImportError as error:
            print(f"{name}: not installed ({error})", file=sys.stderr)
    return installed
