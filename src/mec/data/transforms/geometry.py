"""Geometry of a view: the random crop of torchvision's RandomResizedCrop and its resize, batched."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mec.data.rng import Uniforms

ATTEMPTS = 10
NUM_CROP_UNIFORMS = 2 * ATTEMPTS + 2
"""Random numbers per crop: an area and an aspect ratio for each attempt, and the position."""
Boxes = NDArray[np.int64]
"""Crops as (top, left, height, width), in pixels."""
Sides = int | NDArray[np.int64]


def crop_boxes(
    u: Uniforms, height: Sides, width: Sides, scale: tuple[float, float], ratio: tuple[float, float]
) -> Boxes:
    """Sample one crop per image with the distribution of torchvision's RandomResizedCrop.

    The area is uniform in ``scale`` times the area of the image, the logarithm of the aspect ratio is uniform. The
    first of ten attempts that fits is taken, else the largest central crop with an allowed ratio.

    Args:
        u: (n, NUM_CROP_UNIFORMS) uniform random numbers.
        height: height of the images in pixels, one number or (n,).
        width: width of the images in pixels, one number or (n,).
        scale: smallest and largest fraction of the area.
        ratio: smallest and largest width / height.

    Returns:
        (n, 4) boxes: top, left, height, width.
    """
    height, width = (np.broadcast_to(np.asarray(side, dtype=np.int64), len(u)) for side in (height, width))
    area = (scale[0] + u[:, :ATTEMPTS] * (scale[1] - scale[0])) * (height * width)[:, None]
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + u[:, ATTEMPTS : 2 * ATTEMPTS] * (high - low))
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (widths >= 1) & (widths <= width[:, None]) & (heights >= 1) & (heights <= height[:, None])
    rows = np.arange(len(u))
    first = fits.argmax(axis=1)
    h, w = heights[rows, first], widths[rows, first]
    top = (u[:, -2] * (height - h + 1)).astype(np.int64)
    left = (u[:, -1] * (width - w + 1)).astype(np.int64)
    boxes = np.stack([top, left, h, w], axis=1)

    none_fits = ~fits.any(axis=1)
    if none_fits.any():
        too_narrow, too_wide = width / height < ratio[0], width / height > ratio[1]
        h = np.where(too_narrow, np.maximum(1, np.rint(width / ratio[0])), height).astype(np.int64)
        w = np.where(too_wide, np.maximum(1, np.rint(height * ratio[1])), width).astype(np.int64)
        central = np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1)
        boxes[none_fits] = central[none_fits]
    return boxes


def resize_matrices(
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


def resized_crops(images: Tensor, boxes: Boxes, size: int, flip: NDArray[np.bool_]) -> Tensor:
    """Crop, resize and flip each image by its own box.

    Args:
        images: (n, c, h, w), uint8 or float.
        boxes: (n, 4) top, left, height, width.
        size: side of the result in pixels.
        flip: (n,), images to flip horizontally.

    Returns:
        Float (n, c, size, size), in the range of the input.
    """
    device = images.device
    box = torch.from_numpy(boxes).to(device, torch.float32)
    flipped = torch.from_numpy(flip).to(device)
    n, c, h, w = images.shape
    vertical = resize_matrices(box[:, 0], box[:, 2], h, size)
    horizontal = resize_matrices(box[:, 1], box[:, 3], w, size, flipped)
    # rows of all channels in one product: (n, size, h) (n, h, c w), then (n, size c, w) (n, w, size)
    x = torch.bmm(vertical, images.transpose(1, 2).float().reshape(n, h, c * w)).view(n, size * c, w)
    return torch.bmm(x, horizontal.mT).view(n, size, c, size).transpose(1, 2).contiguous()
