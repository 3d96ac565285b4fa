"""Where the target is: the response of its template over a search region, by cross-correlation or a learned filter."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 3.5
"""The search region is 1 + PADDING times the target, each way."""


class Correlator(Protocol):
    """What finds the target again in a search region, and may learn how it looks by now."""

    def respond(self, search: Tensor) -> Tensor:
        """Maps (n, d, s, s) of search regions -> (n, r, r), highest where the target is."""

    def learn(self, target: Tensor) -> None:
        """The map (1, d, s, s) around the target as it now looks."""

    def shift(self, row: int, column: int) -> tuple[float, float]:
        """Down and right, in cells, that a peak at (row, column) of the response means."""


def template_span(size: int) -> tuple[int, int]:
    """First cell of the target in the middle of a map of ``size`` cells, and the one after its last."""
    half = int(size // (2 * (PADDING + 1)))
    return size // 2 - half, size // 2 + half


class CrossCorrelation:
    """The middle of the first map, slid over the search map (SiamFC, Bertinetto et al. 2016). Never updated.

    Args:
        target: (1, d, s, s), around the target in the first frame.
        corrected: UniTrack takes the response, which has fewer cells than the map, for all of the search region, so
            that steps are too long (1.25 times), and its middle to be half a template off by one cell; True puts
            both right.
    """

    def __init__(self, target: Tensor, corrected: bool = False) -> None:
        self.size = target.shape[2]
        self.start, stop = template_span(self.size)
        self.template = target[:, :, self.start : stop, self.start : stop]
        self.window = hann(self.size, target.device)
        self.corrected = corrected

    def respond(self, search: Tensor) -> Tensor:
        return F.conv2d(search * self.window, self.template)[:, 0]

    def learn(self, target: Tensor) -> None:
        pass

    def shift(self, row: int, column: int) -> tuple[float, float]:
        if self.corrected:
            return row - self.start, column - self.start
        cells = self.size - self.template.shape[2] + 1
        return (row - cells * 0.5) * self.size / cells, (column - cells * 0.5) * self.size / cells


class CorrelationFilter:
    """The ridge regression from the target's map to a narrow peak, in closed form in the Fourier domain, with a linear
    kernel (DCFNet, Wang et al. 2017; Henriques et al. 2015); learned anew in every frame and averaged over time.

    Args:
        target: (1, d, s, s), around the target in the first frame.
        ridge, rate, sigma: of the regression; of the average; of the peak, in widths of the target.
    """

    def __init__(self, target: Tensor, ridge: float = 1e-4, rate: float = 0.01, sigma: float = 0.1) -> None:
        self.size = target.shape[2]
        self.ridge, self.rate = ridge, rate
        self.window = hann(self.size, target.device)
        start, stop = template_span(self.size)
        inside = torch.zeros(self.size, device=target.device)
        inside[start:stop] = 1
        self.box = inside[:, None] * inside
        away = torch.fft.fftfreq(self.size, 1 / self.size).to(target.device)  # cells from the first, either way round
        peak = torch.exp(-0.5 * (away / (sigma * self.size / (1 + PADDING))) ** 2)
        self.wanted = torch.fft.rfft2(peak[:, None] * peak)
        self.template, self.weights = self._learned(target)

    def respond(self, search: Tensor) -> Tensor:
        found = torch.fft.rfft2(search * self.window)
        joined = (found * self.template.conj()).sum(1) * self.weights
        response: Tensor = torch.fft.irfft2(joined, s=(self.size, self.size))
        return response

    def learn(self, target: Tensor) -> None:
        template, weights = self._learned(target)
        self.template = (1 - self.rate) * self.template + self.rate * template
        self.weights = (1 - self.rate) * self.weights + self.rate * weights

    def _learned(self, target: Tensor) -> tuple[Tensor, Tensor]:
        template = torch.fft.rfft2(target * self.box)
        energy = (template.real**2 + template.imag**2).sum(1)
        return template, self.wanted / (energy + self.ridge)

    def shift(self, row: int, column: int) -> tuple[float, float]:
        half = self.size / 2
        return row - self.size * (row > half), column - self.size * (column > half)


def hann(size: int, device: torch.device) -> Tensor:
    """(size, size), 0 at the borders and 1 in the middle."""
    line = torch.hann_window(size, periodic=False, dtype=torch.float64, device=device)
    return (line[:, None] * line).float()


def grid_size(stride: int) -> int:
    """Cells of a search map: an odd number near 65, those of 520 pixels at stride 8."""
    return 2 * max(4, math.floor(256 / stride + 0.5)) + 1
