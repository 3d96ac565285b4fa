"""Where a view looks: the crop, drawn as torchvision's RandomResizedCrop draws it, and its resampling."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mec.data.draws import Numbers

ATTEMPTS = 10
CROP_NUMBERS = 2 * ATTEMPTS + 2
Boxes = NDArray[np.int64]


def crop_boxes(
    numbers: Numbers, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Boxes:
    """(n, CROP_NUMBERS) -> (n, 4) top, left, height, width in pixels.

    Area uniform in ``scale`` times the picture's, log aspect ratio uniform; the first of ten attempts that fits,
    else the largest central crop with an allowed ratio: the distribution of torchvision's RandomResizedCrop.
    """
    area = (scale[0] + numbers[:, :ATTEMPTS] * (scale[1] - scale[0])) * height * width
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + numbers[:, ATTEMPTS : 2 * ATTEMPTS] * (high - low))
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    rows = np.arange(len(numbers))
    first = fits.argmax(axis=1)
    h, w = heights[rows, first], widths[rows, first]

    own_ratio = width / height
    central_w = min(width, int(np.rint(height * ratio[1])) or 1)
    central_h = min(height, int(np.rint(width / ratio[0])) or 1)
    if own_ratio < ratio[0]:
        central_w = width
    elif own_ratio > ratio[1]:
        central_h = height
    none_fits = ~fits.any(axis=1)
    h, w = np.where(none_fits, central_h, h), np.where(none_fits, central_w, w)
    top = (numbers[:, -2] * (height - h + 1)).astype(np.int64)
    left = (numbers[:, -1] * (width - w + 1)).astype(np.int64)
    top = np.where(none_fits, (height - central_h) // 2, top)
    left = np.where(none_fits, (width - central_w) // 2, left)
    return np.stack([top, left, h, w], axis=1)


def resampling(start: Tensor, length: Tensor, source: int, target: int, mirrored: Tensor | None = None) -> Tensor:
    """Matrices (n, target, source) that resize [start, start + length) to ``target`` samples along one axis.

    Bilinear with antialiasing as PIL does it: a triangle as wide as the larger of a source and a target
    pixel, cut at the crop and normalised. ``mirrored`` (n,) marks the rows to write backwards.
    """
    scale = (length / target).view(-1, 1, 1)
    support = scale.clamp_min(1.0)
    out = torch.arange(target, device=start.device, dtype=torch.float32).view(1, -1, 1)
    if mirrored is not None:
        out = torch.where(mirrored.view(-1, 1, 1), target - 1 - out, out)
    centre = start.view(-1, 1, 1) + (out + 0.5) * scale
    pixel = torch.arange(source, device=start.device, dtype=torch.float32).view(1, 1, -1) + 0.5
    weights = (1 - (pixel - centre).abs() / support).clamp_min(0)
    inside = (pixel > start.view(-1, 1, 1)) & (pixel < (start + length).view(-1, 1, 1))
    weights = weights * inside
    return weights / weights.sum(dim=2, keepdim=True)


def resized_crops(pictures: Tensor, boxes: Boxes, size: int, mirrored: NDArray[np.bool_]) -> Tensor:
    """uint8 or float (n, c, h, w) and a box each -> float (n, c, size, size), in the range of the input."""
    device = pictures.device
    box = torch.from_numpy(boxes).to(device, torch.float32)
    mirror = torch.from_numpy(mirrored).to(device)
    vertical = resampling(box[:, 0], box[:, 2], pictures.shape[2], size)
    horizontal = resampling(box[:, 1], box[:, 3], pictures.shape[3], size, mirror)
    # (n, size, h) (n, c, h, w) (n, w, size): two batched products in place of an indexed gather
    return vertical[:, None] @ pictures.float() @ horizontal.mT[:, None]
