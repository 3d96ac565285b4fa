"""Label propagation: every cell takes the labels of the cells most like it in the first frame and the last ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.tracking.dense_features import STRIDE


@dataclass(frozen=True)
class Propagation:
    """How labels are carried on; the defaults are UniTrack's.

    neighbors: most similar cells that vote.
    temperature: a neighbor of cosine similarity s weighs exp(s / temperature).
    radius: how far a cell may have moved since one of the last frames, strictly, in cells of 8 pixels; from the first
        frame it may come from anywhere.
    context: frames before this one that vote, beside the first.
    """

    neighbors: int = 10
    temperature: float = 0.05
    radius: float = 12.0
    context: int = 5

    def __post_init__(self) -> None:
        for name, least in (("neighbors", 1), ("context", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("temperature", "radius"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected a positive number, got {getattr(self, name)}")


TILE = {"cpu": 12}
"""Side in cells of the square of queries compared at once; their similarities stay in a processor's cache."""
GPU_TILE = 32
CHUNK = 16
"""Similarities of which the largest stands for all in the first look for the largest ones."""


class LabelPropagation:
    """Soft labels on the grid of a video's feature maps, carried from frame to frame.

    Memory: the features of ``context`` + 1 frames, and similarities of one tile of cells at a time; those between all
    cells of two frames are never held.

    Args:
        features: (1, d, h, w) of the first frame.
        labels: (c, h, w) of it, of each class a share.
        stride: pixels from cell to cell.
    """

    def __init__(self, features: Tensor, labels: Tensor, stride: int, settings: Propagation | None = None) -> None:
        self.settings = settings or Propagation()
        self.radius = self.settings.radius * STRIDE / stride
        self.reach = math.ceil(min(self.radius, sum(features.shape[2:]))) - 1
        self.tile = TILE.get(features.device.type, GPU_TILE)
        first = F.normalize(features[0], dim=0)
        self.first, self.first_labels = first.flatten(1), labels.flatten(1).T.contiguous()
        # before the first frame there were only more of it
        self.last = first[:, None].repeat(1, self.settings.context, 1, 1)
        self.last_labels = labels[:, None].repeat(1, self.settings.context, 1, 1)
        self.steps = 0
        self.far: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def step(self, features: Tensor) -> Tensor:
        """Features (1, d, h, w) of the next frame -> its labels (c, h, w)."""
        queries = F.normalize(features[0], dim=0)
        height, width = queries.shape[1:]
        found = torch.empty(self.last_labels.shape[0], height, width, device=queries.device)
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                bottom, right = min(top + self.tile, height), min(left + self.tile, width)
                found[:, top:bottom, left:right] = self._labels_of(queries, top, bottom, left, right)
        if self.settings.context:
            oldest = self.steps % self.settings.context
            self.last[:, oldest], self.last_labels[:, oldest] = queries, found
        self.steps += 1
        return found

    def _labels_of(self, queries: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
        """(c, bottom - top, right - left)."""
        height, width = queries.shape[1:]
        rows = slice(max(0, top - self.reach), min(height, bottom + self.reach))
        columns = slice(max(0, left - self.reach), min(width, right + self.reach))
        near = self.last[:, :, rows, columns].flatten(1)
        asking = queries[:, top:bottom, left:right].flatten(1).T
        everywhere = self.first.shape[1]
        total = everywhere + near.shape[1]
        similarity = asking.new_full((len(asking), -(-total // CHUNK) * CHUNK), -torch.inf)
        torch.mm(asking, self.first, out=similarity[:, :everywhere])
        torch.mm(asking, near, out=similarity[:, everywhere:total])
        far = self._too_far(top, bottom, left, right, rows, columns)
        similarity[:, everywhere:total].view(len(asking), -1, far.shape[1]).masked_fill_(far[:, None], -torch.inf)
        values, places = largest(similarity, self.settings.neighbors)
        weights = F.softmax(values / self.settings.temperature, dim=1)
        known = torch.cat([self.first_labels, self.last_labels[:, :, rows, columns].flatten(1).T])
        # where there are fewer cells than neighbors, filling is found too, and weighs nothing
        labels = (known[places.clamp(max=total - 1)] * weights[:, :, None]).sum(1)
        return labels.T.reshape(-1, bottom - top, right - left)

    def _too_far(self, top: int, bottom: int, left: int, right: int, rows: slice, columns: slice) -> Tensor:
        """(queries, cells around them): out of the radius. The same for all tiles within a frame."""
        spans = (
            bottom - top,
            right - left,
            rows.start - top,
            rows.stop - top,
            columns.start - left,
            columns.stop - left,
        )
        if spans not in self.far:
            high, wide, first_row, last_row, first_column, last_column = spans
            down = torch.arange(high)[:, None] - torch.arange(first_row, last_row)
            across = torch.arange(wide)[:, None] - torch.arange(first_column, last_column)
            squared = down[:, None, :, None] ** 2 + across[None, :, None, :] ** 2
            far = squared.flatten(2).flatten(0, 1) >= self.radius**2
            self.far[spans] = far.to(self.first.device)
        return self.far[spans]


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As ``values.topk(k)`` along the second dimension of (n, m), m a multiple of CHUNK, many times faster on a CPU.

    Of the numbers in chunks, those with the k largest maxima hold the k largest numbers.
    """
    chunks = values.view(len(values), CHUNK, -1)
    if chunks.shape[2] <= k:
        found = values.topk(min(k, values.shape[1]), dim=1)
        return found.values, found.indices
    chosen = chunks.amax(1).topk(k, dim=1, sorted=False).indices
    inside = chosen[:, None].expand(-1, CHUNK, -1)
    best, at = chunks.gather(2, inside).flatten(1).topk(k, dim=1)
    return best, (at // k) * chunks.shape[2] + chosen.gather(1, at % k)
