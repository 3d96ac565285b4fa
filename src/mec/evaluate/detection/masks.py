"""Conversions of instance masks from and to COCO's run-length encoding (RLE)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.detection.datasets.annotations import Rle

MAX_RUN_CHARACTERS = 8
"""Characters of a run in compressed RLE; the runs of any real image have fewer."""


def parse_rle_counts(text: str) -> NDArray[np.int64]:
    """Parse compressed RLE counts into run lengths.

    Each character holds 5 bits, the lowest first. From the fourth run on, a run is stored as the difference to the run
    two before. The parser is here because not every version of the COCO library detects damaged counts.

    Raises:
        ValueError: not compressed RLE counts.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    damaged = (
        not len(ends) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32 or lengths.max() > MAX_RUN_CHARACTERS
    )
    if damaged:
        raise ValueError(f"expected COCO's compressed RLE counts, got {text[:20]!r}")
    positions = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << 5 * positions, starts)
    runs -= (codes[ends] >> 4 & 1) << 5 * lengths
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return np.asarray(runs)


def decode_masks(masks: list[Rle], size: tuple[int, int], flip: bool = False) -> Tensor:
    """Decode masks to (k, height, width) uint8 of 0 and 1, resized to ``size`` by the nearest pixel."""
    if not masks:
        return torch.zeros(0, *size, dtype=torch.uint8)
    # RLE is in column-major order
    decoded = torch.from_numpy(np.ascontiguousarray(coco_mask.decode(masks).transpose(2, 0, 1)))
    resized = F.interpolate(decoded[None], size, mode="nearest-exact")[0]
    return resized.flip(2) if flip else resized


def paste_masks(probabilities: Tensor, boxes: NDArray[np.float32], size: tuple[int, int]) -> list[Rle]:
    """Convert masks predicted within their boxes to masks of the image, with a threshold of 0.5.

    Args:
        probabilities: (k, s, s); the cells fill the box, and are interpolated between their centers.
        boxes: (k, 4) x1, y1, x2, y2 in pixels of the image.
        size: height and width of the image.
    """
    masks = []
    # one mask at a time to save memory: an image has up to a hundred
    for mask_probabilities, box in zip(probabilities, boxes.tolist(), strict=True):
        mask = np.zeros(size, np.uint8, order="F")
        x, y = (_pixel_range(low, high, end) for low, high, end in zip(box[:2], box[2:], size[::-1], strict=True))
        if x and y:
            grid = torch.stack(
                torch.meshgrid(_box_coordinates(x, box[0], box[2]), _box_coordinates(y, box[1], box[3]), indexing="xy"),
                2,
            )
            values = F.grid_sample(mask_probabilities[None, None].float(), grid[None], align_corners=False)[0, 0]
            mask[y.start : y.stop, x.start : x.stop] = (values >= 0.5).numpy()
        masks.append(coco_mask.encode(mask))
    return masks


def _pixel_range(low: float, high: float, end: int) -> range:
    return range(max(0, int(np.floor(low))), min(end, int(np.ceil(high))))


def _box_coordinates(pixels: range, low: float, high: float) -> Tensor:
    """Return the centers of pixels in grid_sample's coordinates: -1 and 1 at the edges of the box."""
    centers = torch.arange(pixels.start, pixels.stop) + 0.5
    return (centers - low) / (high - low) * 2 - 1
