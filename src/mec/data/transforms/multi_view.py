"""Augmented views of images, batched, with separate random parameters for each image.

The steps are those of the paper: crop and flip (PIL's bilinear filter), rotation, color jitter and grayscale, blur
and solarization. Normalization follows outside. Brightness, contrast, saturation, hue and grayscale are each affine in
the color, so one 3 x 4 matrix per image applies them all. Compared with the PIL pipeline, values are not clamped
between these steps, and hue is rotated in YIQ instead of HSV.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mec.data.rng import uniforms, view_stream
from mec.data.transforms.color import apply_color, color_maps, rotate
from mec.data.transforms.view_settings import (
    NUM_UNIFORMS,
    VIEW_1,
    VIEW_2,
    Boxes,
    Sides,
    ViewParameters,
    ViewSettings,
    sample_parameters,
)
from mec.errors import InputError

CACHE_BYTES = 3 * 2**20
"""On a CPU, images are processed in chunks of this size, so that intermediate results stay in the cache."""


class MultiView(nn.Module):
    """Makes one view of each image per entry of ``settings``, on the device of the batch.

    Args:
        size: side of a view in pixels.
        settings: augmentations of each view.
        seed: fixes the views of each image index and epoch, for any batch and device.
    """

    def __init__(self, size: int, settings: Sequence[ViewSettings], seed: int = 0) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"size: expected at least 1 pixel, got {size}")
        self.size, self.settings, self.seed = size, tuple(settings), seed

    def view_parameters(
        self, view: int, indices: NDArray[np.int64], epoch: int, height: Sides, width: Sides
    ) -> ViewParameters:
        """Return the augmentation parameters of one view of the images ``indices`` (n,), height x width pixels."""
        u = uniforms(self.seed, epoch, indices, NUM_UNIFORMS, view_stream(view))
        return sample_parameters(self.settings[view], u, height, width)

    @torch.no_grad()
    def forward(self, images: Tensor, indices: NDArray[np.int64] | Tensor, epoch: int) -> tuple[Tensor, ...]:
        """Make the views of a batch.

        Args:
            images: uint8, or float in [0, 1]; whole images (n, c, h, w), or the crops of each view
                (n, views, c, size, size), already flipped (mec.data.transforms.crop).
            indices: (n,) image indices.
            epoch: selects new views of the same images.

        Returns:
            A float batch (n, c, size, size) in [0, 1] for each view.
        """
        indices = np.asarray(indices)
        # 16-bit floats resolve fewer values than uint8
        with torch.autocast(images.device.type, enabled=False):
            return tuple(self._view(view, images, indices, epoch) for view in range(len(self.settings)))

    def _view(self, view: int, images: Tensor, indices: NDArray[np.int64], epoch: int) -> Tensor:
        n, c, device = len(images), images.shape[-3], images.device
        parameters = self.view_parameters(view, indices, epoch, images.shape[-2], images.shape[-1])
        white = 1.0 if images.is_floating_point() else 255.0
        maps = torch.from_numpy((color_maps(parameters, c) / white).astype(np.float32)).to(device)
        out = torch.empty(n, c, self.size, self.size, device=device)
        chunk_size = max(1, CACHE_BYTES // (4 * c * self.size**2)) if device.type == "cpu" else n
        for start in range(0, n, chunk_size):
            rows = slice(start, start + chunk_size)
            chunk = parameters.rows(rows)
            if images.ndim == 5:
                x = images[rows, view].to(torch.float32, memory_format=torch.contiguous_format)
            else:
                x = resized_crops(images[rows], chunk.boxes, self.size, chunk.flip)
            if self.settings[view].rotation:
                x = rotate(x, chunk.angle)
            apply_color(x, chunk, maps[rows], out[rows])
        return out


class TwoViews(MultiView):
    """Makes the two views of each image that pretraining compares, on the device of the batch.

    ``views(images, indices, epoch)`` takes images (n, c, h, w), uint8 or float in [0, 1], and their indices (n,) in
    the dataset, and returns two float batches (n, c, size, size) in [0, 1].

    Args:
        size: side of a view in pixels.
        view_1: augmentations of the first view; the default is the paper's.
        view_2: augmentations of the second view; the default is the paper's.
        seed: fixes the views of each image index and epoch, for any batch and device.

    Examples:
        >>> import torch
        >>> images = torch.randint(0, 256, (4, 3, 40, 60), dtype=torch.uint8)
        >>> x1, x2 = TwoViews(32)(images, torch.arange(4), epoch=0)
        >>> x1.shape, float(x1.min()) >= 0, float(x2.max()) <= 1
        (torch.Size([4, 3, 32, 32]), True, True)
    """

    def __init__(self, size: int, view_1: ViewSettings = VIEW_1, view_2: ViewSettings = VIEW_2, seed: int = 0) -> None:
        super().__init__(size, (view_1, view_2), seed)


def resized_crops(images: Tensor, boxes: Boxes, size: int, flip: NDArray[np.bool_]) -> Tensor:
    """Crop, resize and flip each of the images (n, c, h, w) by its own box (n, 4) and ``flip`` (n,).

    Returns:
        Float (n, c, size, size), in the range of the input.
    """
    device = images.device
    box = torch.from_numpy(boxes).to(device, torch.float32)
    flipped = torch.from_numpy(flip).to(device)
    n, c, h, w = images.shape
    vertical = _resize_matrices(box[:, 0], box[:, 2], h, size)
    horizontal = _resize_matrices(box[:, 1], box[:, 3], w, size, flipped)
    # rows of all channels in one product: (n, size, h) (n, h, c w), then (n, size c, w) (n, w, size)
    x = torch.bmm(vertical, images.transpose(1, 2).float().reshape(n, h, c * w)).view(n, size * c, w)
    return torch.bmm(x, horizontal.mT).view(n, size, c, size).transpose(1, 2).contiguous()


def _resize_matrices(
    start: Tensor, length: Tensor, source_size: int, target_size: int, flipped: Tensor | None = None
) -> Tensor:
    """Return matrices (n, target_size, source_size) that resize the interval [start, start + length) along one axis.

    Bilinear with antialiasing as in PIL: the filter is a triangle as wide as the larger of a source pixel and a
    target pixel, cut off at the crop and normalized. ``flipped`` (n,) marks the crops to write in reverse.
    """
    scale = (length / target_size).view(-1, 1, 1)
    support = scale.clamp_min(1.0)
    target = torch.arange(target_size, device=start.device, dtype=torch.float32).view(1, -1, 1)
    if flipped is not None:
        target = torch.where(flipped.view(-1, 1, 1), target_size - 1 - target, target)
    center = start.view(-1, 1, 1) + (target + 0.5) * scale
    pixel = torch.arange(source_size, device=start.device, dtype=torch.float32).view(1, 1, -1) + 0.5
    weights = (1 - (pixel - center).abs() / support).clamp_min(0)
    inside = (pixel > start.view(-1, 1, 1)) & (pixel < (start + length).view(-1, 1, 1))
    weights = weights * inside
    return weights / weights.sum(dim=2, keepdim=True)
