"""Where a view looks: the crop, drawn as torchvision's RandomResizedCrop draws it, and its resampling."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mec.data.rng import Numbers

ATTEMPTS = 10
CROP_NUMBERS = 2 * ATTEMPTS + 2
Boxes = NDArray[np.int64]
Sides = int | NDArray[np.int64]


def crop_boxes(
    numbers: Numbers, height: Sides, width: Sides, scale: tuple[float, float], ratio: tuple[float, float]
) -> Boxes:
    """(n, CROP_NUMBERS), images of height x width pixels (one size, or n) -> (n, 4) top, left, height, width.

    Area uniform in ``scale`` times the image's, log aspect ratio uniform; the first of ten attempts that fits,
    else the largest central crop with an allowed ratio: the distribution of torchvision's RandomResizedCrop.
    """
    height, width = (np.broadcast_to(np.asarray(side, dtype=np.int64), len(numbers)) for side in (height, width))
    area = (scale[0] + numbers[:, :ATTEMPTS] * (scale[1] - scale[0])) * (height * width)[:, None]
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + numbers[:, ATTEMPTS : 2 * ATTEMPTS] * (high - low))
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (widths >= 1) & (widths <= width[:, None]) & (heights >= 1) & (heights <= height[:, None])
    rows = np.arange(len(numbers))
    first = fits.argmax(axis=1)
    h, w = heights[rows, first], widths[rows, first]
    top = (numbers[:, -2] * (height - h + 1)).astype(np.int64)
    left = (numbers[:, -1] * (width - w + 1)).astype(np.int64)
    boxes = np.stack([top, left, h, w], axis=1)

    none_fits = ~fits.any(axis=1)
    if none_fits.any():
        too_narrow, too_wide = width / height < ratio[0], width / height > ratio[1]
        h = np.where(too_narrow, np.maximum(1, np.rint(width / ratio[0])), height).astype(np.int64)
        w = np.where(too_wide, np.maximum(1, np.rint(height * ratio[1])), width).astype(np.int64)
        central = np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1)
        boxes[none_fits] = central[none_fits]
    return boxes


def resampling(start: Tensor, length: Tensor, source: int, target: int, mirrored: Tensor | None = None) -> Tensor:
    """Matrices (n, target, source) that resize [start, start + length) to ``target`` samples along one axis.

    Bilinear with antialiasing as PIL does it: a triangle as wide as the larger of a source and a target
    pixel, cut at the crop and normalized. ``mirrored`` (n,) marks the rows to write backwards.
    """
    scale = (length / target).view(-1, 1, 1)
    support = scale.clamp_min(1.0)
    out = torch.arange(target, device=start.device, dtype=torch.float32).view(1, -1, 1)
    if mirrored is not None:
        out = torch.where(mirrored.view(-1, 1, 1), target - 1 - out, out)
    center = start.view(-1, 1, 1) + (out + 0.5) * scale
    pixel = torch.arange(source, device=start.device, dtype=torch.float32).view(1, 1, -1) + 0.5
    weights = (1 - (pixel - center).abs() / support).clamp_min(0)
    inside = (pixel > start.view(-1, 1, 1)) & (pixel < (start + length).view(-1, 1, 1))
    weights = weights * inside
    return weights / weights.sum(dim=2, keepdim=True)


def resized_crops(images: Tensor, boxes: Boxes, size: int, mirrored: NDArray[np.bool_]) -> Tensor:
    """uint8 or float (n, c, h, w) and a box each -> float (n, c, size, size), in the range of the input."""
    device = images.device
    box = torch.from_numpy(boxes).to(device, torch.float32)
    mirror = torch.from_numpy(mirrored).to(device)
    n, c, h, w = images.shape
    vertical = resampling(box[:, 0], box[:, 2], h, size)
    horizontal = resampling(box[:, 1], box[:, 3], w, size, mirror)
    # rows of all channels at once: (n, size, h) (n, h, c w), then (n, size c, w) (n, w, size)
    x = torch.bmm(vertical, images.transpose(1, 2).float().reshape(n, h, c * w)).view(n, size * c, w)
    return torch.bmm(x, horizontal.mT).view(n, size, c, size).transpose(1, 2).contiguous()
