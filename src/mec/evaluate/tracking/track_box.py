"""Tracking of one box: a correlator compares search regions at three scales around the last position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.tracking.correlation import (
    PADDING,
    CorrelationFilter,
    Correlator,
    CrossCorrelation,
    grid_size,
)
from mec.evaluate.tracking.dense_features import DenseFeatures
from mec.evaluate.tracking.sequences import Frames, SequenceError

TRACKERS = ("dcf", "xcorr")
SCALES = 1.0275 ** np.array([-1.0, 0.0, 1.0])
SCALE_WEIGHTS = np.array([0.985, 1.0, 0.985])
MIN_SCALE, MAX_SCALE = 0.2, 5.0
"""Limits of the target's size, relative to its size in the first frame."""
MIN_SIDE = 4.0
"""Pixels."""


@dataclass
class _Target:
    """Current estimate of the target in pixels.

    center: x, y, with the center of the first pixel at (0, 0).
    size: width, height.
    """

    center: NDArray[np.float64]
    size: NDArray[np.float64]


def track_box(
    frames: Frames,
    box: NDArray[np.float64],
    dense: DenseFeatures,
    tracker: str = "dcf",
    corrected: bool = False,
) -> Iterator[NDArray[np.float64]]:
    """Yield the box (4,) of the target in each frame. The first is ``box`` itself.

    Args:
        frames: frames of one video.
        box: left, top, width, height of the target in the first frame, in pixels; the upper left corner of the image
            is (0, 0).
        dense: encoder of the frames.
        tracker: dcf (discriminative correlation filter) or xcorr (cross-correlation with the first frame).
        corrected: fix the errors of UniTrack's code: crops are half a pixel off and 1/520 too wide, the maximum size
            has width and height swapped, and displacements of xcorr are 1.25 times too long and one cell off. False
            is comparable with published results.

    Raises:
        InputError: an unknown tracker.
        SequenceError: a frame that cannot be read or has another size, or a box outside of the first frame.
    """
    if tracker not in TRACKERS:
        raise InputError(f"tracker: expected dcf or xcorr, got {tracker!r}")
    # from the center of a box in corner coordinates to the center of its crop in pixel-center coordinates
    offset = 0.5 if corrected else 1.0
    cells = grid_size(dense.stride)
    side = cells * dense.stride
    target = _Target(box[:2] + box[2:] / 2 - offset, box[2:].astype(np.float64))
    min_size = np.maximum(MIN_SCALE * target.size, MIN_SIDE)
    correlator: Correlator | None = None
    shape: tuple[int, ...] = ()
    max_size: NDArray[np.float64] = min_size
    for frame in frames:
        if correlator is None:
            shape = frame.shape
            height, width = shape[:2]
            if not (box[2:] > 0).all() or (box[:2] >= (width, height)).any() or (box[:2] + box[2:] <= 0).any():
                numbers = ", ".join(f"{number:g}" for number in box)
                raise SequenceError(f"the box {numbers} is not within the first frame ({width} x {height})")
            sides = (width, height) if corrected else (height, width)
            max_size = np.minimum(sides, MAX_SCALE * target.size)
        elif frame.shape != shape:
            raise SequenceError(f"a frame is {frame.shape[1]} x {frame.shape[0]}, the first {width} x {height}")
        image = dense.preprocess(frame)
        if correlator is None:
            features = dense(crop(image, target.center, target.size[None] * (1 + PADDING), side, corrected))
            correlator = CorrelationFilter(features) if tracker == "dcf" else CrossCorrelation(features, corrected)
        else:
            windows = target.size * SCALES[:, None] * (1 + PADDING)
            response = correlator.respond(dense(crop(image, target.center, windows, side, corrected)))
            peaks, positions = response.flatten(1).max(1)
            best = int(np.argmax(peaks.cpu().numpy() * SCALE_WEIGHTS))
            down, right = correlator.displacement(*divmod(int(positions[best]), response.shape[2]))
            target.center = target.center + np.array([right, down]) * windows[best] / cells
            target.size = np.clip(windows[best] / (1 + PADDING), min_size, max_size)
            if tracker == "dcf":
                correlator.update(dense(crop(image, target.center, target.size[None] * (1 + PADDING), side, corrected)))
        yield np.concatenate([target.center - target.size / 2 + offset, target.size])


def crop(
    image: Tensor, center: NDArray[np.float64], windows: NDArray[np.float64], side: int, corrected: bool = False
) -> Tensor:
    """Crop and resize windows around one center; outside of the image they are 0.

    Args:
        image: (1, c, h, w).
        center: x, y in pixels.
        windows: (n, 2) width, height in pixels.
        side: side of the crops in pixels.
        corrected: see ``track_box``.

    Returns:
        (n, c, side, side).
    """
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
