"""Views of each image, two for pretraining: the paper's augmentations, batched, with own parameters for each image.

What an image goes through: crop and flip (PIL's bilinear filter), rotation, one affine map of its colors,
blur, solarization, normalization. Brightness, contrast, saturation, hue and gray are each affine in the
color, so all of them are one 3 x 4 matrix per image. Against the PIL pipeline that leaves out the clamp
between the steps and turns hue in YIQ, not in HSV.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mec.data.rng import uniforms
from mec.data.transforms.color import apply_color, color_maps, rotate
from mec.data.transforms.geometry import Sides, resized_crops
from mec.data.transforms.view_settings import NUMBERS, VIEW_1, VIEW_2, ViewParameters, ViewSettings, sample_parameters
from mec.errors import InputError

CACHE_BYTES = 3 * 2**20
"""On a CPU views are made a few images at a time, so that what lies between two steps stays in the cache."""


class Views(nn.Module):
    """Views of each image of a batch, one for each of ``settings``, on the batch's device.

    Args:
        size: side of a view, in pixels.
        settings: what each view goes through.
        seed: with the epoch and the number of an image it fixes the image's views, for any batch and device.
    """

    def __init__(self, size: int, settings: Sequence[ViewSettings], seed: int = 0) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"size: expected at least 1 pixel, got {size}")
        self.size, self.settings, self.seed = size, tuple(settings), seed

    def parameters_of(self, view: int, indices: NDArray[np.int64], epoch: int, h: Sides, w: Sides) -> ViewParameters:
        """What a view of the images with these numbers (n,), of h x w pixels, goes through in an epoch."""
        return sample_parameters(self.settings[view], uniforms(self.seed, epoch, indices, NUMBERS, view), h, w)

    @torch.no_grad()
    def forward(self, images: Tensor, indices: NDArray[np.int64] | Tensor, epoch: int) -> tuple[Tensor, ...]:
        """Images -> a float batch (n, c, size, size) in [0, 1] for each view.

        images: uint8, or float in [0, 1]; (n, c, h, w) whole images, or (n, views, c, size, size): the views
            already cropped and flipped by the loader (mec.data.transforms.crop). indices: (n,) numbers of the images.
        """
        numbers = np.asarray(indices)
        # half precision has fewer tones than a byte
        with torch.autocast(images.device.type, enabled=False):
            return tuple(self._view(view, images, numbers, epoch) for view in range(len(self.settings)))

    def _view(self, view: int, images: Tensor, indices: NDArray[np.int64], epoch: int) -> Tensor:
        n, c, device = len(images), images.shape[-3], images.device
        parameters = self.parameters_of(view, indices, epoch, images.shape[-2], images.shape[-1])
        white = 1.0 if images.is_floating_point() else 255.0
        maps = torch.from_numpy((color_maps(parameters, c) / white).astype(np.float32)).to(device)
        out = torch.empty(n, c, self.size, self.size, device=device)
        at_once = max(1, CACHE_BYTES // (4 * c * self.size**2)) if device.type == "cpu" else n
        for start in range(0, n, at_once):
            rows = slice(start, start + at_once)
            some = parameters.rows(rows)
            if images.ndim == 5:
                x = images[rows, view].to(torch.float32, memory_format=torch.contiguous_format)
            else:
                x = resized_crops(images[rows], some.boxes, self.size, some.flip)
            if self.settings[view].rotation:
                x = rotate(x, some.angle)
            apply_color(x, some, maps[rows], out[rows])
        return out


class TwoViews(Views):
    """Two views of each image of a batch, on the batch's device.

    ``views(images, indices, epoch)`` takes images (n, c, h, w), uint8 or float in [0, 1], and their numbers (n,) in
    the source, and gives two float batches (n, c, size, size) in [0, 1].

    Args:
        size: side of a view, in pixels.
        view_1: what the first view goes through; the default is the paper's.
        view_2: what the second view goes through; the default is the paper's.
        seed: with the epoch and the number of an image it fixes the image's views, for any batch and device.

    Examples:
        >>> import torch
        >>> images = torch.randint(0, 256, (4, 3, 40, 60), dtype=torch.uint8)
        >>> x1, x2 = TwoViews(32)(images, torch.arange(4), epoch=0)
        >>> x1.shape, float(x1.min()) >= 0, float(x2.max()) <= 1
        (torch.Size([4, 3, 32, 32]), True, True)
    """

    def __init__(self, size: int, view_1: ViewSettings = VIEW_1, view_2: ViewSettings = VIEW_2, seed: int = 0) -> None:
        super().__init__(size, (view_1, view_2), seed)
