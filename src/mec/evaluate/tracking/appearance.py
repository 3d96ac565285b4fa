"""How found objects look: the cells of a feature map in their box or mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import roi_align

from mec.evaluate.tracking.dense_features import Dense
from mec.evaluate.tracking.sequences import Boxes

Mask = NDArray[np.uint8]
LETTERBOX = (608, 1088)
"""Height and width that every frame is fitted into, for boxes."""
GRAY = 128 / 255
BOX_CELLS = (4, 10)
"""Rows and columns of a box's features in the published protocol."""
UPRIGHT_CELLS = (10, 4)
SPREAD = 2.0
"""A mask's box reaches this many mean distances from its middle, each way."""


@dataclass(frozen=True)
class Fitted:
    """A frame within LETTERBOX, gray around it. A point (x, y) of the frame lies at ratio * (x, y) + (left, top)."""

    image: Tensor
    ratio: float
    left: float
    top: float


def letterbox(image: Tensor, dense: Dense) -> Fitted:
    """(1, c, h, w) as ``Dense.image`` gives it -> resized by areas, and padded (UniTrack)."""
    height, width = image.shape[2:]
    ratio = min(LETTERBOX[0] / height, LETTERBOX[1] / width)
    high, wide = round(height * ratio), round(width * ratio)
    left, top = (LETTERBOX[1] - wide) / 2, (LETTERBOX[0] - high) / 2
    # the odd pixel, where there is one, goes to the right and below
    first_column, first_row = round(left - 0.1), round(top - 0.1)
    gray = ((GRAY - dense.mean) / dense.std).expand(1, -1, *LETTERBOX)
    fitted = gray.clone()
    small = _by_area(_by_area(image, high, 2), wide, 3)
    fitted[:, :, first_row : first_row + high, first_column : first_column + wide] = small
    return Fitted(fitted, ratio, left, top)


def _by_area(x: Tensor, size: int, axis: int) -> Tensor:
    """Along the rows (2) or columns (3): every pixel the mean of the part of the old ones that it covers."""
    length = x.shape[axis]
    scale = length / size
    edges = torch.arange(size + 1, dtype=torch.float64, device=x.device) * scale
    first = edges[:-1].long()
    small = torch.zeros(1, device=x.device)
    for beside in range(math.ceil(scale) + 1):
        pixel = first + beside
        covered = torch.minimum(edges[1:], pixel + 1) - torch.maximum(edges[:-1], pixel)
        share = (covered.clamp(min=0) / scale).to(x.dtype).view(-1, *[1] * (3 - axis))
        small = small + x.index_select(axis, pixel.clamp(max=length - 1)) * share
    return small


def box_looks(fitted: Fitted, boxes: Boxes, dense: Dense, corrected: bool = False) -> list[Tensor]:
    """Features (d, 40) of each box of the frame, by RoIAlign.

    Published figures have 4 rows and 10 columns of cells, and boxes half a cell off; ``corrected`` takes 10 rows and 4
    columns, as fits people, where they are.
    """
    if not len(boxes):
        return []
    features = dense(fitted.image)
    edges = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    edges = edges * fitted.ratio + [fitted.left, fitted.top] * 2
    regions = [torch.from_numpy(edges).to(features)]
    cells = UPRIGHT_CELLS if corrected else BOX_CELLS
    found = roi_align(features, regions, cells, 1 / dense.stride, aligned=corrected)
    return list(found.flatten(2))


def on_map(masks: NDArray[np.uint8], dense: Dense) -> NDArray[np.bool_]:
    """Masks (k, h, w) -> (k, h', w'): what they are at the upper left pixel of each cell."""
    height, width = masks.shape[1:]
    size = -(-height // dense.stride), -(-width // dense.stride)
    found: NDArray[np.bool_] = F.interpolate(torch.from_numpy(masks)[:, None], size=size)[:, 0].numpy() > 0
    return found


def spread_box(cells: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The box (4,) of a mask (h', w') on a map, in cells: twice the mean distances from its middle, each way."""
    if not cells.any():
        return np.zeros(4)
    places = np.argwhere(cells)[:, ::-1]
    middle = places.mean(axis=0)
    reach = SPREAD * np.maximum(np.abs(places - middle).mean(axis=0), 1.0)
    return np.concatenate([middle - reach, 2 * reach])


def mask_looks(features: Tensor, cells: NDArray[np.bool_], most: int) -> list[Tensor]:
    """Features (d, n) of the n cells in each mask (k, h', w') on the map (1, d, h', w').

    A mask of more than ``most`` cells is made smaller with the map, which is 0 around it, and leaves about that many.
    """
    return [_cells_of(features[0], torch.from_numpy(mask).to(features.device), most) for mask in cells]


def _cells_of(features: Tensor, mask: Tensor, most: int) -> Tensor:
    height, width = mask.shape
    count = int(mask.sum())
    if count <= most:
        return features[:, mask]
    scale = float(np.sqrt(most / count))
    rows, columns = int(height * scale), int(width * scale)
    at_row = torch.arange(rows, device=mask.device)
    at_column = torch.arange(columns, device=mask.device)
    nearest_row = (at_row / scale).long().clamp(max=height - 1)
    nearest_column = (at_column / scale).long().clamp(max=width - 1)
    row, column = mask[nearest_row][:, nearest_column].nonzero(as_tuple=True)
    found = features.new_zeros(len(features), len(row))
    down, right = ((row + 0.5) / scale - 0.5).clamp(min=0), ((column + 0.5) / scale - 0.5).clamp(min=0)
    for above in (True, False):
        for before in (True, False):
            y, x = down.long() + (not above), right.long() + (not before)
            weight = (down.frac() if not above else 1 - down.frac()) * (
                right.frac() if not before else 1 - right.frac()
            )
            y, x = y.clamp(max=height - 1), x.clamp(max=width - 1)
            found += features[:, y, x] * (weight * mask[y, x])
    return found
