"""Following one box through a video: three scales of a search region around where it last was."""

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
from mec.evaluate.tracking.dense_features import Dense
from mec.evaluate.tracking.sequences import Frames, SequenceError

TRACKERS = ("dcf", "xcorr")
SCALES = 1.0275 ** np.array([-1.0, 0.0, 1.0])
PENALTIES = np.array([0.985, 1.0, 0.985])
LEAST, LEAST_PIXELS, MOST = 0.2, 4.0, 5.0
"""How small and how large a target may become, of its first size."""


@dataclass
class _Target:
    """Where it is: ``center`` x, y with the middle of the first pixel at (0, 0), and ``size`` w, h, in pixels."""

    center: NDArray[np.float64]
    size: NDArray[np.float64]


def track_box(
    frames: Frames, box: NDArray[np.float64], dense: Dense, tracker: str = "dcf", corrected: bool = False
) -> Iterator[NDArray[np.float64]]:
    """The box (4,) in each frame: that of the first as it was given, then what is found.

    Args:
        frames: of one video.
        box: left, top, width, height of the target in the first frame; the upper left corner of the image is (0, 0).
        dense: whose features tell it.
        tracker: dcf (a discriminative correlation filter) or xcorr (cross-correlation with the first frame).
        corrected: put right what UniTrack's code does otherwise than it means to: crops half a pixel off and 1/520 too
            wide, the largest size with sides swapped, and, for xcorr, steps 1.25 times too long and a cell off. False
            gives figures that compare with published ones.

    Raises:
        SequenceError: a frame that cannot be read, of another size, or a box outside the first.
    """
    if tracker not in TRACKERS:
        raise InputError(f"tracker: expected dcf or xcorr, got {tracker!r}")
    # pixels between the middle of a box and that of its crop, as measured from the middle of the first pixel
    offset = 0.5 if corrected else 1.0
    cells = grid_size(dense.stride)
    side = cells * dense.stride
    target = _Target(box[:2] + box[2:] / 2 - offset, box[2:].astype(np.float64))
    smallest = np.maximum(LEAST * target.size, LEAST_PIXELS)
    correlator: Correlator | None = None
    shape: tuple[int, ...] = ()
    largest: NDArray[np.float64] = smallest
    for frame in frames:
        if correlator is None:
            shape = frame.shape
            height, width = shape[:2]
            if not (box[2:] > 0).all() or (box[:2] >= (width, height)).any() or (box[:2] + box[2:] <= 0).any():
                raise SequenceError(f"the box {_words(box)} is not within the first frame ({width} x {height})")
            sides = (width, height) if corrected else (height, width)
            largest = np.minimum(sides, MOST * target.size)
        elif frame.shape != shape:
            raise SequenceError(f"a frame is {frame.shape[1]} x {frame.shape[0]}, the first {width} x {height}")
        image = dense.image(frame)
        if correlator is None:
            around = dense(crop(image, target.center, target.size[None] * (1 + PADDING), side, corrected))
            correlator = CorrelationFilter(around) if tracker == "dcf" else CrossCorrelation(around, corrected)
        else:
            windows = target.size * SCALES[:, None] * (1 + PADDING)
            response = correlator.respond(dense(crop(image, target.center, windows, side, corrected)))
            peaks, places = response.flatten(1).max(1)
            best = int(np.argmax(peaks.cpu().numpy() * PENALTIES))
            down, right = correlator.shift(*divmod(int(places[best]), response.shape[2]))
            target.center = target.center + np.array([right, down]) * windows[best] / cells
            target.size = np.clip(windows[best] / (1 + PADDING), smallest, largest)
            if tracker == "dcf":
                correlator.learn(dense(crop(image, target.center, target.size[None] * (1 + PADDING), side, corrected)))
        yield np.concatenate([target.center - target.size / 2 + offset, target.size])


def crop(
    image: Tensor, center: NDArray[np.float64], windows: NDArray[np.float64], side: int, corrected: bool = False
) -> Tensor:
    """Windows (n, 2) of w, h pixels around ``center`` -> (n, c, side, side), 0 beyond the image (1, c, h, w)."""
    height, width = image.shape[2:]
    along = np.arange(side, dtype=np.float64)
    along = (along + 0.5) / side - 0.5 if corrected else along / (side - 1) - 0.5
    places = center[:, None] + windows[:, :, None] * along  # (n, 2, side)
    scaled = (2 * places + 1) / np.array([[width], [height]]) - 1
    grid = torch.from_numpy(scaled).to(image.device, torch.float32)
    across = grid[:, 0, None, :].expand(-1, side, -1)
    down = grid[:, 1, :, None].expand(-1, -1, side)
    images = image.expand(len(windows), -1, -1, -1)
    return F.grid_sample(images, torch.stack([across, down], dim=3), align_corners=False)


def _words(box: NDArray[np.float64]) -> str:
    return ", ".join(f"{number:g}" for number in box)
