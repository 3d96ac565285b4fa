"""Label propagation: each cell takes the labels of its most similar cells in the first and the previous frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.tracking.dense_features import STRIDE


@dataclass(frozen=True)
class PropagationSettings:
    """Settings of label propagation. The defaults are UniTrack's.

    Attributes:
        neighbors: number of most similar cells that vote.
        temperature: a neighbor of cosine similarity s has the weight exp(s / temperature).
        radius: in previous frames, only cells closer than this are compared, in units of 8 pixels. The first frame is
            compared as a whole.
        context: number of previous frames that vote, in addition to the first one.
    """

    neighbors: int = 10
    temperature: float = 0.05
    radius: float = 12.0
    context: int = 5

    def __post_init__(self) -> None:
        for name, minimum in (("neighbors", 1), ("context", 0)):
            if getattr(self, name) < minimum:
                raise InputError(f"{name}: expected at least {minimum}, got {getattr(self, name)}")
        for name in ("temperature", "radius"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected a positive number, got {getattr(self, name)}")


TILE_SIZE = {"cpu": 12}
"""Side of the square of query cells that are compared at once; their similarities fit into the cache of a CPU."""
GPU_TILE_SIZE = 32
CHUNK_SIZE = 16
"""Similarities that ``topk`` first reduces to their maximum."""


class LabelPropagation:
    """Soft labels on the grid of a video's feature maps, propagated from frame to frame.

    Memory: the features of ``context`` + 1 frames, and the similarities of one tile of cells at a time. The full
    similarity matrix of two frames is never materialized.

    Args:
        features: (1, d, h, w) of the first frame.
        labels: (c, h, w) of the first frame, the fraction of each class.
        stride: pixels per cell.
        settings: None takes the defaults.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, stride: int, settings: PropagationSettings | None = None
    ) -> None:
        self.settings = settings or PropagationSettings()
        self.radius = self.settings.radius * STRIDE / stride
        self.reach = math.ceil(min(self.radius, sum(features.shape[2:]))) - 1
        self.tile_size = TILE_SIZE.get(features.device.type, GPU_TILE_SIZE)
        first = F.normalize(features[0], dim=0)
        self.first, self.first_labels = first.flatten(1), labels.flatten(1).T.contiguous()
        # frames before the first are copies of it
        self.context = first[:, None].repeat(1, self.settings.context, 1, 1)
        self.context_labels = labels[:, None].repeat(1, self.settings.context, 1, 1)
        self.steps = 0
        self.masks: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def step(self, features: Tensor) -> Tensor:
        """Return the labels (c, h, w) of the next frame, given its features (1, d, h, w)."""
        queries = F.normalize(features[0], dim=0)
        height, width = queries.shape[1:]
        labels = torch.empty(self.context_labels.shape[0], height, width, device=queries.device)
        for top in range(0, height, self.tile_size):
            for left in range(0, width, self.tile_size):
                bottom, right = min(top + self.tile_size, height), min(left + self.tile_size, width)
                labels[:, top:bottom, left:right] = self._tile_labels(queries, top, bottom, left, right)
        if self.settings.context:
            oldest = self.steps % self.settings.context
            self.context[:, oldest], self.context_labels[:, oldest] = queries, labels
        self.steps += 1
        return labels

    def _tile_labels(self, queries: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Return the labels (c, bottom - top, right - left) of a tile."""
        height, width = queries.shape[1:]
        rows = slice(max(0, top - self.reach), min(height, bottom + self.reach))
        columns = slice(max(0, left - self.reach), min(width, right + self.reach))
        context = self.context[:, :, rows, columns].flatten(1)
        tile = queries[:, top:bottom, left:right].flatten(1).T
        first_count = self.first.shape[1]
        count = first_count + context.shape[1]
        similarity = tile.new_full((len(tile), -(-count // CHUNK_SIZE) * CHUNK_SIZE), -torch.inf)
        torch.mm(tile, self.first, out=similarity[:, :first_count])
        torch.mm(tile, context, out=similarity[:, first_count:count])
        mask = self._outside_radius(top, bottom, left, right, rows, columns)
        similarity[:, first_count:count].view(len(tile), -1, mask.shape[1]).masked_fill_(mask[:, None], -torch.inf)
        values, indices = topk(similarity, self.settings.neighbors)
        weights = F.softmax(values / self.settings.temperature, dim=1)
        key_labels = torch.cat([self.first_labels, self.context_labels[:, :, rows, columns].flatten(1).T])
        # with fewer cells than neighbors, padding is selected too, with weight 0
        labels = (key_labels[indices.clamp(max=count - 1)] * weights[:, :, None]).sum(1)
        return labels.T.reshape(-1, bottom - top, right - left)

    def _outside_radius(self, top: int, bottom: int, left: int, right: int, rows: slice, columns: slice) -> Tensor:
        """Return a mask (queries, cells around them), cached because most tiles of a frame share it."""
        spans = (
            bottom - top,
            right - left,
            rows.start - top,
            rows.stop - top,
            columns.start - left,
            columns.stop - left,
        )
        if spans not in self.masks:
            tile_height, tile_width, first_row, last_row, first_column, last_column = spans
            dy = torch.arange(tile_height)[:, None] - torch.arange(first_row, last_row)
            dx = torch.arange(tile_width)[:, None] - torch.arange(first_column, last_column)
            squared_distance = dy[:, None, :, None] ** 2 + dx[None, :, None, :] ** 2
            mask = squared_distance.flatten(2).flatten(0, 1) >= self.radius**2
            self.masks[spans] = mask.to(self.first.device)
        return self.masks[spans]


def topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return ``values.topk(k, dim=1)`` of (n, m), m a multiple of CHUNK_SIZE; many times faster on a CPU.

    The k largest values are in the chunks with the k largest maxima.
    """
    chunks = values.view(len(values), CHUNK_SIZE, -1)
    if chunks.shape[2] <= k:
        result = values.topk(min(k, values.shape[1]), dim=1)
        return result.values, result.indices
    selected = chunks.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = chunks.gather(2, selected[:, None].expand(-1, CHUNK_SIZE, -1))
    largest, positions = candidates.flatten(1).topk(k, dim=1)
    return largest, (positions // k) * chunks.shape[2] + selected.gather(1, positions % k)
