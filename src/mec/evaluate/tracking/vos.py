"""``vos``: video object segmentation from the masks in the first frame (UniTrack). Each cell of a feature map takes the
labels of its most similar cells in the first and the previous frames."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.drawing import draw_labels
from mec.evaluate.tracking.datasets.davis import open_mask_sequences, read_masks, write_masks
from mec.evaluate.tracking.dense_features import STRIDE, DenseFeatures
from mec.evaluate.tracking.metrics.propagation import mask_scores
from mec.evaluate.tracking.runner import DrawFrame, TrackingRun, TrackingSettings
from mec.evaluate.tracking.sequences import VOID, Frame, Labels, MaskSequence, SequenceError
from mec.models.encoder import EncoderLike
from mec.results import Result

TILE_SIZE, GPU_TILE_SIZE = 12, 32  # side of the square of query cells compared at once; 12 fits into the cache of a CPU
CHUNK_SIZE = 16  # similarities that ``topk`` first reduces to their maximum


@dataclass(frozen=True)
class PropagationSettings:
    """Settings of label propagation, described in ``vos``. The defaults are UniTrack's."""

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


def vos(
    data: str | os.PathLike[str],
    encoder: EncoderLike,
    neighbors: int = 10,
    temperature: float = 0.05,
    radius: float = 12.0,
    context: int = 5,
    **settings: Any,
) -> Result:
    """Propagate the masks of the first frame through each sequence with frozen features, without training (UniTrack,
    Wang et al. 2021; Jabri et al. 2020).

    Metrics are those of DAVIS 2017, means over the objects without the first and the last frame. J is the overlap of
    masks and F that of their contours; recall is the fraction of frames above 0.5, decay the loss from the first to the
    last quarter. The last row is the baseline of masks that never move.

    Args:
        data: DAVIS 2016 or 2017, or a folder of that layout.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        neighbors: number of most similar cells that vote for the label of a cell.
        temperature: a neighbor of cosine similarity s has the weight exp(s / temperature).
        radius: maximum movement of a cell since one of the previous frames, in units of 8 pixels. The first frame is
            compared as a whole.
        context: number of previous frames that vote, in addition to the first one.
        settings: those of TrackingSettings. Without ``sequences``, DAVIS's val list is used if there is one.
    """
    shared, propagation = TrackingSettings(**settings), PropagationSettings(neighbors, temperature, radius, context)
    loaders = open_mask_sequences(Path(data).expanduser(), shared.sequences)
    run = TrackingRun("vos", data, encoder, loaders, shared, vars(propagation))
    hint = f"the predicted masks are in {run.folder}" if shared.out else "pass --out to keep the predicted masks"
    no_metrics = f"data: {data} has masks for first frames only, so there are no metrics; {hint}"
    if shared.out is None and not any(sequence.evaluated for sequence in run.sequences):
        raise InputError(no_metrics)

    def track(sequence: MaskSequence) -> Iterator[Labels]:
        return track_masks(sequence.frames, _first_labels(sequence), run.dense, propagation)

    tracks = run.track(track, write_masks, read_masks)
    scores = mask_scores(run.sequences, tracks)
    if "all" not in scores:
        raise InputError(no_metrics)
    baseline = mask_scores(run.sequences, lambda s: [_first_labels(s)] * len(s.frames))["all"]

    def draw(sequence: MaskSequence) -> DrawFrame:
        labels = tracks(sequence)
        return lambda i, frame: draw_labels(frame, labels[i], sequence.palette)

    rows = {"encoder": scores["all"], "first mask": baseline}
    return run.finish(rows, {**scores, "first mask": baseline}, draw)


def _first_labels(sequence: MaskSequence) -> Labels:
    labels = sequence.ground_truth(0)
    assert labels is not None
    return labels


def track_masks(
    frames: Iterable[Frame], first: Labels, dense: DenseFeatures, settings: PropagationSettings | None = None
) -> Iterator[Labels]:
    """Yield the labels (h, w) of each frame of a video. The first are ``first`` itself."""
    ids = np.union1d([0], first[first != VOID]).astype(np.uint8)
    propagation: LabelPropagation | None = None
    for frame in frames:
        if frame.shape[:2] != first.shape:
            frame_size, mask_size = (f"{array.shape[1]} x {array.shape[0]}" for array in (frame, first))
            raise SequenceError(f"a frame is {frame_size}, the mask of the first {mask_size}")
        features = dense(dense.preprocess(frame))
        if propagation is None:
            one_hot = torch.from_numpy(first[None] == ids[:, None, None]).to(features)
            coarse = F.interpolate(one_hot[None], size=features.shape[2:], mode="bilinear")[0]
            propagation = LabelPropagation(features, coarse, dense.stride, settings)
            yield first
            continue
        soft = propagation.step(features)
        yield ids[F.interpolate(soft[None], size=first.shape, mode="bilinear")[0].argmax(0).cpu().numpy()]


class LabelPropagation:
    """Soft labels (c, h, w), the fraction of each class, on the grid of feature maps (1, d, h, w) of a video. To save
    memory, similarities are computed for one tile of cells at a time, never for all cells of two frames."""

    def __init__(
        self, features: Tensor, labels: Tensor, stride: int, settings: PropagationSettings | None = None
    ) -> None:
        self.settings = settings or PropagationSettings()
        self.radius = self.settings.radius * STRIDE / stride
        self.reach = math.ceil(min(self.radius, sum(features.shape[2:]))) - 1
        self.tile_size = TILE_SIZE if features.device.type == "cpu" else GPU_TILE_SIZE
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
            bottom - top, right - left,
            rows.start - top, rows.stop - top, columns.start - left, columns.stop - left,
        )  # fmt: skip
        if spans not in self.masks:
            tile_height, tile_width, first_row, last_row, first_column, last_column = spans
            dy = torch.arange(tile_height)[:, None] - torch.arange(first_row, last_row)
            dx = torch.arange(tile_width)[:, None] - torch.arange(first_column, last_column)
            squared_distance = dy[:, None, :, None] ** 2 + dx[None, :, None, :] ** 2
            mask = squared_distance.flatten(2).flatten(0, 1) >= self.radius**2
            self.masks[spans] = mask.to(self.first.device)
        return self.masks[spans]


def topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return ``values.topk(k, dim=1)`` of (n, m), m a multiple of CHUNK_SIZE; many times faster on a CPU."""
    # the k largest values are in the chunks with the k largest maxima
    chunks = values.view(len(values), CHUNK_SIZE, -1)
    if chunks.shape[2] <= k:
        result = values.topk(min(k, values.shape[1]), dim=1)
        return result.values, result.indices
    selected = chunks.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = chunks.gather(2, selected[:, None].expand(-1, CHUNK_SIZE, -1))
    largest, positions = candidates.flatten(1).topk(k, dim=1)
    return largest, (positions // k) * chunks.shape[2] + selected.gather(1, positions % k)
