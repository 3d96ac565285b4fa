"""Masks of whole images from and to COCO's run lengths, and those from their text."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.detection.datasets.annotations import Rle

LONGEST = 8
"""Characters of a run; those of any image are shorter."""


def run_lengths(text: str) -> NDArray[np.int64]:
    """COCO's text: 5 bits a character, the lowest first; from the fourth run on, less the run two before.

    Read here, for not every version of what decodes them looks whether they are damaged.

    Raises:
        ValueError: no such text.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    damaged = not len(ends) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32 or lengths.max() > LONGEST
    if damaged:
        raise ValueError(f"expected COCO's compressed run lengths, got {text[:20]!r}")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << 5 * places, starts)
    runs -= (codes[ends] >> 4 & 1) << 5 * lengths
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return np.asarray(runs)


def decoded(masks: list[Rle], size: tuple[int, int], mirrored: bool = False) -> Tensor:
    """Run lengths -> (k, height, width) uint8 0 and 1, resized to ``size`` by the nearest pixel."""
    if not masks:
        return torch.zeros(0, *size, dtype=torch.uint8)
    # decoded column by column, as run lengths are
    whole = torch.from_numpy(np.ascontiguousarray(coco_mask.decode(masks).transpose(2, 0, 1)))
    resized = F.interpolate(whole[None], size, mode="nearest-exact")[0]
    return resized.flip(2) if mirrored else resized


def pasted(shares: Tensor, boxes: NDArray[np.float32], size: tuple[int, int]) -> list[Rle]:
    """Masks as predicted within their boxes -> run lengths of masks of the whole image.

    Args:
        shares: (k, s, s) probabilities; the cells fill the box, and are interpolated between their centers.
        boxes: (k, 4) x1, y1, x2, y2 in pixels of the image.
        size: height and width of the image.
    """
    found = []
    for share, box in zip(shares, boxes.tolist(), strict=True):  # one by one: an image has up to a hundred
        whole = np.zeros(size, np.uint8, order="F")
        x, y = (_cells_crossed(low, high, end) for low, high, end in zip(box[:2], box[2:], size[::-1], strict=True))
        if x and y:
            grid = torch.stack(torch.meshgrid(_within(x, box[0], box[2]), _within(y, box[1], box[3]), indexing="xy"), 2)
            values = F.grid_sample(share[None, None].float(), grid[None], align_corners=False)[0, 0]
            whole[y.start : y.stop, x.start : x.stop] = (values >= 0.5).numpy()
        found.append(coco_mask.encode(whole))
    return found


def _cells_crossed(low: float, high: float, end: int) -> range:
    return range(max(0, int(np.floor(low))), min(end, int(np.ceil(high))))


def _within(cells: range, low: float, high: float) -> Tensor:
    """Centers of pixels, -1 at one edge of the box and 1 at the other."""
    centers = torch.arange(cells.start, cells.stop) + 0.5
    return (centers - low) / (high - low) * 2 - 1
