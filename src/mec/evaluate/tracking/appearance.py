"""Appearance features of objects, the cells of a feature map that lie in their boxes or masks, and the similarity of
two objects: how well the features of one are reconstructed from those of the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import roi_align

from mec.evaluate.tracking.dense_features import DenseFeatures
from mec.evaluate.tracking.sequences import JOINTS, LIMBS, Boxes

LETTERBOX_SIZE = (608, 1088)  # height and width of the frames from which the features of boxes are taken
GRAY = 128 / 255
BOX_CELLS = (4, 10)  # rows and columns of a box's features in the published protocol
CORRECTED_BOX_CELLS = (10, 4)
MEAN_DISTANCES = 2.0  # the box of a mask reaches this many mean distances from the center to each side
INVERSE_TEMPERATURE = 100.0  # a feature vector of cosine similarity s has the weight exp(100 s) in a reconstruction
TORSO = ("right_hip", "left_hip", "left_shoulder", "head_bottom", "right_shoulder")  # corners of a polygon, in order
MIN_LIMB_WIDTH = 8  # pixels
LIMB_WIDTH_DIVISOR = 20  # a limb is as wide as the longer side of the pose divided by this, but at least MIN_LIMB_WIDTH
EDGE_MARGIN = 0.4  # pixels. UniTrack draws with OpenCV, whose lines include the pixels that their edges touch
MAX_COORDINATE = 100_000  # pixels. Coordinates are clipped to this, which is far outside of any image
Point = tuple[int, int]
CHUNK_SIZE = 2048  # feature vectors that are reconstructed at once


@dataclass(frozen=True)
class Letterboxed:
    """A frame resized into LETTERBOX_SIZE with gray borders. A point (x, y) moves to scale * (x, y) + (left, top)."""

    image: Tensor
    scale: float
    left: float
    top: float


def letterbox(image: Tensor, dense: DenseFeatures) -> Letterboxed:
    """Resize an image (1, c, h, w), normalized by ``dense``, by area averaging, and pad it (UniTrack)."""
    height, width = image.shape[2:]
    scale = min(LETTERBOX_SIZE[0] / height, LETTERBOX_SIZE[1] / width)
    new_height, new_width = round(height * scale), round(width * scale)
    left, top = (LETTERBOX_SIZE[1] - new_width) / 2, (LETTERBOX_SIZE[0] - new_height) / 2
    # an odd pixel of padding goes to the right and to the bottom
    first_column, first_row = round(left - 0.1), round(top - 0.1)
    canvas = ((GRAY - dense.mean) / dense.std).expand(1, -1, *LETTERBOX_SIZE).clone()
    resized = _resize_by_area(_resize_by_area(image, new_height, 2), new_width, 3)
    canvas[:, :, first_row : first_row + new_height, first_column : first_column + new_width] = resized
    return Letterboxed(canvas, scale, left, top)


def _resize_by_area(x: Tensor, size: int, axis: int) -> Tensor:
    """Resize rows (axis 2) or columns (axis 3); a new pixel is the mean of the old ones, weighted by covered area."""
    length = x.shape[axis]
    scale = length / size
    edges = torch.arange(size + 1, dtype=torch.float64, device=x.device) * scale
    first = edges[:-1].long()
    resized = torch.zeros(1, device=x.device)
    for i in range(math.ceil(scale) + 1):
        pixel = first + i
        covered = torch.minimum(edges[1:], pixel + 1) - torch.maximum(edges[:-1], pixel)
        weight = (covered.clamp(min=0) / scale).to(x.dtype).view(-1, *[1] * (3 - axis))
        resized = resized + x.index_select(axis, pixel.clamp(max=length - 1)) * weight
    return resized


def box_features(frame: Letterboxed, boxes: Boxes, dense: DenseFeatures, corrected: bool = False) -> list[Tensor]:
    """Return the features (d, 40) of each box, in coordinates of the original frame, by RoIAlign. The protocol has 4
    rows and 10 columns of cells, half a cell off; ``corrected`` has 10 and 4, as suits upright people, not off."""
    if not len(boxes):
        return []
    features = dense(frame.image)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners = corners * frame.scale + [frame.left, frame.top] * 2
    regions = [torch.from_numpy(corners).to(features)]
    cells = CORRECTED_BOX_CELLS if corrected else BOX_CELLS
    pooled = roi_align(features, regions, cells, 1 / dense.stride, aligned=corrected)
    return list(pooled.flatten(2))


def masks_on_grid(masks: NDArray[np.uint8], dense: DenseFeatures) -> NDArray[np.bool_]:
    """Sample masks (k, h, w) at the upper left pixel of each cell of the feature map: (k, h', w')."""
    height, width = masks.shape[1:]
    size = -(-height // dense.stride), -(-width // dense.stride)
    sampled: NDArray[np.bool_] = F.interpolate(torch.from_numpy(masks)[:, None], size=size)[:, 0].numpy() > 0
    return sampled


def pose_mask(pose: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw a pose (joints, 3) as a mask (height, width) of 0 and 1: a filled torso of at least three visible corners,
    and limbs with round ends between visible joints."""
    points = {
        joint: (int(x), int(y))
        for joint, (x, y, visible) in zip(JOINTS, pose.clip(-MAX_COORDINATE, MAX_COORDINATE).tolist(), strict=True)
        if visible
    }
    image = Image.new("L", size[::-1])
    corners = [points[joint] for joint in TORSO if joint in points]
    if len(corners) >= 3:
        ImageDraw.Draw(image).polygon(corners, fill=1, outline=1)
    mask = np.array(image)
    limbs = [ends for ends in LIMBS if all(joint in points for joint in ends)]
    if limbs:
        side = max(np.ptp(list(points.values()), axis=0).tolist())
        radius = math.ceil(max(MIN_LIMB_WIDTH, side // LIMB_WIDTH_DIVISOR) / 2)
        for start, end in limbs:
            _draw_limb(mask, points[start], points[end], radius)
    return mask


def _draw_limb(mask: NDArray[np.uint8], start: Point, end: Point, radius: int) -> None:
    """Set all pixels within ``radius`` of a line segment. Pillow's wide lines are too narrow where they slant."""
    left, top = (max(min(ends) - radius, 0) for ends in zip(start, end, strict=True))
    right, bottom = (max(max(ends) + radius + 1, 0) for ends in zip(start, end, strict=True))
    window = mask[top:bottom, left:right]
    y, x = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
    dx, dy = end[0] - start[0], end[1] - start[1]
    # position of the nearest point on the segment, from 0 at its start to 1 at its end
    position = (((x - start[0]) * dx + (y - start[1]) * dy) / max(1, dx**2 + dy**2)).clip(0, 1)
    distance_squared = (x - start[0] - position * dx) ** 2 + (y - start[1] - position * dy) ** 2
    window[distance_squared <= (radius + EDGE_MARGIN) ** 2] = 1


def mask_box(cells: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the box (4,) of a mask (h', w') on the grid, in cells (UniTrack); zeros for an empty mask."""
    if not cells.any():
        return np.zeros(4)
    points = np.argwhere(cells)[:, ::-1]
    center = points.mean(axis=0)
    reach = MEAN_DISTANCES * np.maximum(np.abs(points - center).mean(axis=0), 1.0)
    return np.concatenate([center - reach, 2 * reach])


def mask_features(features: Tensor, cells: NDArray[np.bool_], max_cells: int) -> list[Tensor]:
    """Return the features (d, n) of the n cells in each mask (k, h', w') on a feature map (1, d, h', w'). Masks of more
    cells are downsampled with the masked feature map, to about ``max_cells``."""
    return [_cell_features(features[0], torch.from_numpy(mask).to(features.device), max_cells) for mask in cells]


def _cell_features(features: Tensor, mask: Tensor, max_cells: int) -> Tensor:
    height, width = mask.shape
    count = int(mask.sum())
    if count <= max_cells:
        return features[:, mask]
    scale = float(np.sqrt(max_cells / count))
    rows, columns = int(height * scale), int(width * scale)
    row_indices = torch.arange(rows, device=mask.device)
    column_indices = torch.arange(columns, device=mask.device)
    nearest_row = (row_indices / scale).long().clamp(max=height - 1)
    nearest_column = (column_indices / scale).long().clamp(max=width - 1)
    row, column = mask[nearest_row][:, nearest_column].nonzero(as_tuple=True)
    # bilinear interpolation at the remaining cells only
    interpolated = features.new_zeros(len(features), len(row))
    y, x = ((row + 0.5) / scale - 0.5).clamp(min=0), ((column + 0.5) / scale - 0.5).clamp(min=0)
    for upper in (True, False):
        for left in (True, False):
            i, j = y.long() + (not upper), x.long() + (not left)
            weight = (y.frac() if not upper else 1 - y.frac()) * (x.frac() if not left else 1 - x.frac())
            i, j = i.clamp(max=height - 1), j.clamp(max=width - 1)
            interpolated += features[:, i, j] * (weight * mask[i, j])
    return interpolated


@torch.no_grad()
def reconstruction_similarity(
    first: Sequence[Tensor], second: Sequence[Tensor], padded: bool = False
) -> NDArray[np.float64]:
    """Compare every object of ``first`` with every object of ``second`` (UniTrack's reconstruction similarity).

    Every feature vector of an object is reconstructed as a weighted mean of the feature vectors of all objects on the
    other side. The contribution of one object to this mean is compared with the original by cosine, over all feature
    vectors together; the similarity is the mean of both directions. Reconstructions are never materialized: inner
    products are enough. The feature vectors (d, n) of objects may differ in n; ``padded`` pads them with zero vectors
    to the largest n of a side, as UniTrack's code does, and padding takes part in the weights and in the norms.
    """
    if not first or not second:
        return np.zeros((len(first), len(second)))
    a, b = _FeatureSets(first), _FeatureSets(second)
    forward, backward = _one_way(a, b, padded), _one_way(b, a, padded)
    similarities: NDArray[np.float64] = ((forward + backward.T) / 2).double().cpu().numpy()
    return similarities


class _FeatureSets:
    """Unit feature vectors (n, d) of several objects, one object after the other."""

    def __init__(self, objects: Sequence[Tensor]) -> None:
        self.vectors = F.normalize(torch.cat(list(objects), dim=1).T, dim=1)
        self.counts = [features.shape[1] for features in objects]
        self.max_count = max(self.counts)
        owners = [torch.full((count,), i) for i, count in enumerate(self.counts)]
        self.owner = torch.cat(owners).to(self.vectors.device)

    def sum_per_object(self, values: Tensor) -> Tensor:
        """Sum (n, k) over the vectors of each object: (objects, k)."""
        return values.new_zeros(len(self.counts), values.shape[1]).index_add_(0, self.owner, values)

    def column(self, numbers: Sequence[float]) -> Tensor:
        """Return one number per object as (objects, 1)."""
        return self.vectors.new_tensor(numbers)[:, None]


def _one_way(target: _FeatureSets, source: _FeatureSets, padded: bool) -> Tensor:
    """Return the cosines (target, source) of each target object with its reconstruction from each source object."""
    gram = [vectors @ vectors.T for vectors in torch.split(source.vectors, source.counts)]
    padding = sum(source.max_count - count for count in source.counts) if padded else 0
    dots, squared_norms = [], []
    for rows in torch.split(target.vectors, CHUNK_SIZE):
        products = rows @ source.vectors.T
        weights = F.pad(INVERSE_TEMPERATURE * products, (0, padding)).softmax(dim=1)[:, : products.shape[1]]
        dots.append(torch.stack([x.sum(1) for x in torch.split(weights * products, source.counts, 1)], 1))
        object_weights = torch.split(weights, source.counts, 1)
        squared_norms.append(torch.stack([((w @ g) * w).sum(1) for w, g in zip(object_weights, gram, strict=True)], 1))
    dot, squared_norm = target.sum_per_object(torch.cat(dots)), target.sum_per_object(torch.cat(squared_norms))
    if padded:  # a zero vector is reconstructed as the plain mean of all vectors and padding
        mean_norms = source.column([float(g.sum()) for g in gram]) / (len(source.counts) * source.max_count) ** 2
        squared_norm = squared_norm + target.column([target.max_count - n for n in target.counts]) * mean_norms.T
    return dot / (squared_norm.clamp_min(1e-24) * target.column(target.counts)).sqrt()
