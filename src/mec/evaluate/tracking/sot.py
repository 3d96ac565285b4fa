"""``sot``: single-object tracking from the box in the first frame (UniTrack), by cross-correlation or a learned filter
on search regions at three scales."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.drawing import draw_objects
from mec.evaluate.tracking.datasets.single_object import open_box_sequences, read_boxes, write_boxes
from mec.evaluate.tracking.dense_features import DenseFeatures
from mec.evaluate.tracking.metrics.propagation import box_scores
from mec.evaluate.tracking.runner import DrawFrame, TrackingRun, TrackingSettings
from mec.evaluate.tracking.sequences import BoxSequence, Frame, FrameObjects, Scores, SequenceError
from mec.models.encoder import EncoderLike
from mec.results import Result

Box = NDArray[np.float64]
TRACKERS, BOTH = ("dcf", "xcorr"), "both"
PADDING = 3.5  # the search region is 1 + PADDING times as wide and as high as the target
SCALES = 1.0275 ** np.array([-1.0, 0.0, 1.0])
SCALE_WEIGHTS = np.array([0.985, 1.0, 0.985])
MIN_SCALE, MAX_SCALE = 0.2, 5.0  # limits of the target's size, relative to its size in the first frame
MIN_SIDE = 4.0  # pixels


def sot(
    data: str | os.PathLike[str], encoder: EncoderLike, tracker: str = "dcf", corrected: bool = False, **settings: Any
) -> Result:
    """Track one target through each sequence with frozen features, without training (UniTrack, Wang et al. 2021).

    Metrics are means over the targets, as in OTB's one-pass evaluation, which includes the first frame. AUC is the mean
    fraction of frames with an overlap above 0, 0.05, ... 1; precision is the fraction of frames with a center error of
    at most 20 pixels. The last row is the baseline of a box that never moves.

    Args:
        data: sequences in the layout of OTB, GOT-10k or LaSOT, or one of them.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        tracker: dcf, a correlation filter that is updated in every frame; xcorr, cross-correlation with the first
            frame; or both.
        corrected: fix the known errors of the published code; false is comparable with published results.
        settings: those of TrackingSettings. The video shows the ground truth in white.
    """
    if tracker not in (*TRACKERS, BOTH):
        raise InputError(f"tracker: expected dcf, xcorr or both, got {tracker!r}")
    shared = TrackingSettings(**settings)
    loaders = open_box_sequences(data, shared.sequences)
    run = TrackingRun("sot", data, encoder, loaders, shared, {"corrected": corrected})
    scores: Scores = {}
    attribute_rows: Scores = {}
    tracks: dict[str, Callable[[BoxSequence], list[Box]]] = {}
    for name in TRACKERS if tracker == BOTH else (tracker,):

        def track(sequence: BoxSequence, name: str = name) -> Iterator[Box]:
            return track_box(sequence.frames, sequence.ground_truth[0], run.dense, name, corrected)

        tracks[name] = run.track(track, lambda out, s, boxes: write_boxes(out, s.name, np.stack(boxes)), _read, name)
        boxes = {s.name: np.stack(tracks[name](s)) for s in run.sequences}
        for row, values in box_scores(run.sequences, boxes).items():
            scores[f"{name} {row}"] = values
            if row != "all" and row not in boxes:  # the mean over the targets with an attribute
                attribute_rows[f"{name}, {row}"] = values
    first_boxes = {s.name: np.repeat(s.ground_truth[:1], len(s.ground_truth), axis=0) for s in run.sequences}
    scores["first box"] = box_scores(run.sequences, first_boxes)["all"]

    def draw(sequence: BoxSequence) -> DrawFrame:
        boxes = [read(sequence) for read in tracks.values()]

        def draw_frame(i: int, frame: Frame) -> Frame:
            current = np.stack([tracked[i] for tracked in boxes])
            objects = FrameObjects(current, np.ones(len(current)), np.arange(1, len(current) + 1))
            return draw_objects(frame, objects, sequence.ground_truth[i])

        return draw_frame

    rows = {name: scores[f"{name} all"] for name in tracks} | attribute_rows | {"first box": scores["first box"]}
    cells = grid_size(run.dense.stride)
    search = {"search_regions": len(SCALES), "search_size": cells * run.dense.stride, "cells": cells}
    return run.finish(rows, scores, draw, **search)


def _read(folder: Path, sequence: BoxSequence) -> list[Box]:
    boxes = list(read_boxes(folder, sequence.name))
    if len(boxes) != len(sequence.frames):
        raise SequenceError(f"{folder}: expected {len(sequence.frames)} boxes of {sequence.name}, got {len(boxes)}")
    return boxes


def track_box(
    frames: Iterable[Frame], box: Box, dense: DenseFeatures, tracker: str = "dcf", corrected: bool = False
) -> Iterator[Box]:
    """Yield the box (4,) of the target in each frame. The first is ``box`` itself.

    ``box`` is left, top, width and height in pixels from (0, 0). ``corrected`` fixes the errors of UniTrack's code:
    crops are half a pixel off and 1/520 too wide, the maximum size has width and height swapped, and displacements of
    xcorr are 1.25 times too long and one cell off.
    """
    if tracker not in TRACKERS:
        raise InputError(f"tracker: expected dcf or xcorr, got {tracker!r}")
    # from the center of a box in corner coordinates to the center of its crop in pixel-center coordinates
    offset = 0.5 if corrected else 1.0
    cells = grid_size(dense.stride)
    side = cells * dense.stride
    # x, y with the center of the first pixel at (0, 0); width, height
    center, size = box[:2] + box[2:] / 2 - offset, box[2:].astype(np.float64)
    min_size = np.maximum(MIN_SCALE * size, MIN_SIDE)
    max_size = min_size
    correlator: CorrelationFilter | CrossCorrelation | None = None
    shape: tuple[int, ...] = ()
    for frame in frames:
        if correlator is None:
            shape = frame.shape
            height, width = shape[:2]
            if not (box[2:] > 0).all() or (box[:2] >= (width, height)).any() or (box[:2] + box[2:] <= 0).any():
                numbers = ", ".join(f"{number:g}" for number in box)
                raise SequenceError(f"the box {numbers} is not within the first frame ({width} x {height})")
            max_size = np.minimum((width, height) if corrected else (height, width), MAX_SCALE * size)
        elif frame.shape != shape:
            raise SequenceError(f"a frame is {frame.shape[1]} x {frame.shape[0]}, the first {width} x {height}")
        image = dense.preprocess(frame)
        if correlator is None:
            features = dense(crop(image, center, size[None] * (1 + PADDING), side, corrected))
            correlator = CorrelationFilter(features) if tracker == "dcf" else CrossCorrelation(features, corrected)
        else:
            windows = size * SCALES[:, None] * (1 + PADDING)
            response = correlator.respond(dense(crop(image, center, windows, side, corrected)))
            peaks, positions = response.flatten(1).max(1)
            best = int(np.argmax(peaks.cpu().numpy() * SCALE_WEIGHTS))
            down, right = correlator.displacement(*divmod(int(positions[best]), response.shape[2]))
            center = center + np.array([right, down]) * windows[best] / cells
            size = np.clip(windows[best] / (1 + PADDING), min_size, max_size)
            if isinstance(correlator, CorrelationFilter):
                correlator.update(dense(crop(image, center, size[None] * (1 + PADDING), side, corrected)))
        yield np.concatenate([center - size / 2 + offset, size])


def crop(
    image: Tensor, center: NDArray[np.float64], windows: NDArray[np.float64], side: int, corrected: bool = False
) -> Tensor:
    """Crop windows (n, 2) around a center of an image (1, c, h, w) to (n, c, side, side), 0 outside of the image."""
    height, width = image.shape[2:]
    steps = np.arange(side, dtype=np.float64)
    steps = (steps + 0.5) / side - 0.5 if corrected else steps / (side - 1) - 0.5
    coordinates = center[:, None] + windows[:, :, None] * steps  # (n, 2, side)
    normalized = (2 * coordinates + 1) / np.array([[width], [height]]) - 1
    grid = torch.from_numpy(normalized).to(image.device, torch.float32)
    x = grid[:, 0, None, :].expand(-1, side, -1)
    y = grid[:, 1, :, None].expand(-1, -1, side)
    images = image.expand(len(windows), -1, -1, -1)
    return F.grid_sample(images, torch.stack([x, y], dim=3), align_corners=False)


class CrossCorrelation:
    """Cross-correlation with the center of the first map (1, d, s, s) (SiamFC, Bertinetto et al. 2016), never updated.

    UniTrack's code treats the response, which has fewer cells than the map, as if it covered the whole search region,
    so that displacements are 1.25 times too long; its center is off by one cell. ``corrected`` fixes both.
    """

    def __init__(self, target: Tensor, corrected: bool = False) -> None:
        self.size = target.shape[2]
        self.start, stop = template_span(self.size)
        self.template = target[:, :, self.start : stop, self.start : stop]
        self.window = hann_window(self.size, target.device)
        self.corrected = corrected

    def respond(self, search: Tensor) -> Tensor:
        """Return responses (n, r, r) for feature maps (n, d, s, s) of search regions; the peak is the target."""
        return F.conv2d(search * self.window, self.template)[:, 0]

    def displacement(self, row: int, column: int) -> tuple[float, float]:
        """Return how far down and right the target has moved, in cells, if the response peaks at (row, column)."""
        if self.corrected:
            return row - self.start, column - self.start
        cells = self.size - self.template.shape[2] + 1
        return (row - cells * 0.5) * self.size / cells, (column - cells * 0.5) * self.size / cells


class CorrelationFilter:
    """Discriminative correlation filter (DCFNet, Wang et al. 2017; Henriques et al. 2015).

    A linear ridge regression from the target's map (1, d, s, s) to a narrow peak (standard deviation: ``sigma`` target
    widths), in closed form in the Fourier domain, solved in every frame and averaged over time with the weight ``lr``.
    """

    def __init__(self, target: Tensor, ridge: float = 1e-4, lr: float = 0.01, sigma: float = 0.1) -> None:
        self.size = target.shape[2]
        self.ridge, self.lr = ridge, lr
        self.window = hann_window(self.size, target.device)
        start, stop = template_span(self.size)
        inside = torch.zeros(self.size, device=target.device)
        inside[start:stop] = 1
        self.target_mask = inside[:, None] * inside
        # the peak is at cell 0, and coordinates are cyclic
        offsets = torch.fft.fftfreq(self.size, 1 / self.size).to(target.device)
        peak = torch.exp(-0.5 * (offsets / (sigma * self.size / (1 + PADDING))) ** 2)
        self.desired = torch.fft.rfft2(peak[:, None] * peak)
        self.template, self.weights = self._solve(target)

    def respond(self, search: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(search * self.window)
        product = (spectrum * self.template.conj()).sum(1) * self.weights
        response: Tensor = torch.fft.irfft2(product, s=(self.size, self.size))
        return response

    def update(self, target: Tensor) -> None:
        """Adapt to the feature map (1, d, s, s) around the target in the current frame."""
        template, weights = self._solve(target)
        self.template = (1 - self.lr) * self.template + self.lr * template
        self.weights = (1 - self.lr) * self.weights + self.lr * weights

    def _solve(self, target: Tensor) -> tuple[Tensor, Tensor]:
        template = torch.fft.rfft2(target * self.target_mask)
        energy = (template.real**2 + template.imag**2).sum(1)
        return template, self.desired / (energy + self.ridge)

    def displacement(self, row: int, column: int) -> tuple[float, float]:
        half = self.size / 2
        return row - self.size * (row > half), column - self.size * (column > half)


def template_span(size: int) -> tuple[int, int]:
    """Return the range [start, stop) of the cells that the target covers in a map of ``size`` cells around it."""
    half = int(size // (2 * (PADDING + 1)))
    return size // 2 - half, size // 2 + half


def hann_window(size: int, device: torch.device) -> Tensor:
    """Return a window (size, size) that is 0 at the borders and 1 in the center."""
    line = torch.hann_window(size, periodic=False, dtype=torch.float64, device=device)
    return (line[:, None] * line).float()


def grid_size(stride: int) -> int:
    """Return the cells per side of a search region's map: odd, and about 520 pixels, which is 65 at stride 8."""
    return 2 * max(4, math.floor(256 / stride + 0.5)) + 1
