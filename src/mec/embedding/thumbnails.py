"""Thumbnails: 16 x 16 gray images, whose correlation finds copies of an image without a trained encoder."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SIDE = 16
PIXELS = SIDE * SIDE
BYTES = 2 * PIXELS  # float16
CORRELATION = 0.98
"""Smallest correlation of near-duplicates."""
MIN_SIDE = 32
"""Shorter side in pixels from which thumbnails are compared: digits of 8 px are alike without being copies."""
MIN_CONTRAST = 1 / 255
"""Standard deviation of the pixels below which a thumbnail is flat: its correlation with others would be noise."""


def thumbnails(images: Tensor) -> NDArray[np.float16]:
    """Average images (n, c, h, w), uint8 or in [0, 1], over channels and areas to (n, 256) gray pixels in [0, 1]."""
    gray = images.float().mean(dim=1, keepdim=True) / (255 if images.dtype == torch.uint8 else 1)
    pooled: NDArray[np.float16] = F.adaptive_avg_pool2d(gray, SIDE).flatten(1).half().cpu().numpy()
    return pooled


def standardized(blocks: Iterable[NDArray[np.float16]], rows: int) -> Tensor:
    """Return ``rows`` thumbnails (rows, 256) float16 with mean 0 and length 1, whose dot products are correlations.
    Flat ones become zeros: they correlate with nothing."""
    table, start = torch.empty(rows, PIXELS, dtype=torch.float16), 0
    for block in blocks:
        pixels = torch.from_numpy(block.astype(np.float32))
        centered = pixels - pixels.mean(dim=1, keepdim=True)
        is_flat = centered.square().mean(dim=1, keepdim=True).sqrt() < MIN_CONTRAST
        table[start : start + len(block)] = F.normalize(centered, dim=1).masked_fill(is_flat, 0).half()
        start += len(block)
    return table
