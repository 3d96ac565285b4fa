"""Correlators: the response of a target's template over a search region, by cross-correlation or a learned filter."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 3.5
"""The search region is 1 + PADDING times as wide and as high as the target."""


class Correlator(Protocol):
    """Locates a target in search regions, and may adapt to its current appearance."""

    def respond(self, search: Tensor) -> Tensor:
        """Return responses (n, r, r) for feature maps (n, d, s, s) of search regions; the peak is the target."""

    def update(self, target: Tensor) -> None:
        """Adapt to the feature map (1, d, s, s) around the target in the current frame."""

    def displacement(self, row: int, column: int) -> tuple[float, float]:
        """Return how far down and right the target has moved, in cells, if the response peaks at (row, column)."""


def template_span(size: int) -> tuple[int, int]:
    """Return the range [start, stop) of the cells that the target covers in a map of ``size`` cells around it."""
    half = int(size // (2 * (PADDING + 1)))
    return size // 2 - half, size // 2 + half


class CrossCorrelation:
    """Cross-correlation with the center of the first map (SiamFC, Bertinetto et al. 2016). It is never updated.

    Args:
        target: (1, d, s, s) feature map around the target in the first frame.
        corrected: UniTrack's code treats the response, which has fewer cells than the map, as if it covered the whole
            search region, so that displacements are 1.25 times too long; its center is off by one cell. True fixes
            both.
    """

    def __init__(self, target: Tensor, corrected: bool = False) -> None:
        self.size = target.shape[2]
        self.start, stop = template_span(self.size)
        self.template = target[:, :, self.start : stop, self.start : stop]
        self.window = hann_window(self.size, target.device)
        self.corrected = corrected

    def respond(self, search: Tensor) -> Tensor:
        return F.conv2d(search * self.window, self.template)[:, 0]

    def update(self, target: Tensor) -> None:
        pass

    def displacement(self, row: int, column: int) -> tuple[float, float]:
        if self.corrected:
            return row - self.start, column - self.start
        cells = self.size - self.template.shape[2] + 1
        return (row - cells * 0.5) * self.size / cells, (column - cells * 0.5) * self.size / cells


class CorrelationFilter:
    """Discriminative correlation filter (DCFNet, Wang et al. 2017; Henriques et al. 2015).

    A ridge regression with a linear kernel from the target's map to a narrow peak, in closed form in the Fourier
    domain. It is solved again in every frame and averaged over time.

    Args:
        target: (1, d, s, s) feature map around the target in the first frame.
        ridge: regularization of the regression.
        lr: weight of a new frame in the moving average.
        sigma: standard deviation of the peak, in widths of the target.
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


def hann_window(size: int, device: torch.device) -> Tensor:
    """Return a window (size, size) that is 0 at the borders and 1 in the center."""
    line = torch.hann_window(size, periodic=False, dtype=torch.float64, device=device)
    return (line[:, None] * line).float()


def grid_size(stride: int) -> int:
    """Return the cells per side of a search region's map: odd, and about 520 pixels, which is 65 at stride 8."""
    return 2 * max(4, math.floor(256 / stride + 0.5)) + 1
