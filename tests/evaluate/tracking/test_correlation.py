"""Both correlators against loops, and their displacements against targets that were moved."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.tracking.sot import (
    CorrelationFilter,
    CrossCorrelation,
    grid_size,
    hann_window,
    template_span,
)

Floats = NDArray[np.float64]


def reference_window(size: int) -> Floats:
    line = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / (size - 1)) for i in range(size)])
    return line[:, None] * line


def random_maps(seed: int, size: int, channels: int = 3, images: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=(images, channels, size, size))


def map_with_target(size: int, row: int, column: int) -> Tensor:
    """Return a map that is 0 except for one cell, the target."""
    features = torch.zeros(1, 32, size, size)
    features[0, :, row, column] = torch.randn(32, generator=torch.Generator().manual_seed(0))
    return features


def displacement(correlator: CrossCorrelation | CorrelationFilter, search: Tensor) -> tuple[float, float]:
    response = correlator.respond(search)[0]
    return correlator.displacement(*divmod(int(response.argmax()), response.shape[1]))


def test_window_and_template_span() -> None:
    np.testing.assert_allclose(hann_window(9, torch.device("cpu")), reference_window(9), atol=1e-7)
    # the target covers 65 / 4.5 cells, rounded down to an even number
    assert template_span(65) == (25, 39)
    assert template_span(33) == (13, 19)
    assert template_span(9) == (3, 5)


@pytest.mark.parametrize(("stride", "cells"), [(4, 129), (8, 65), (14, 37), (16, 33), (32, 17), (64, 9), (200, 9)])
def test_search_map_is_odd_and_about_520_pixels(stride: int, cells: int) -> None:
    assert grid_size(stride) == cells
    assert stride > 64 or abs(stride * cells - 520) <= 56


def test_cross_correlation_equals_loops() -> None:
    size, (start, stop) = 19, (7, 11)
    first, search = random_maps(1, size), random_maps(2, size, images=2)
    response = CrossCorrelation(torch.from_numpy(first).float()).respond(torch.from_numpy(search).float()).numpy()
    template, windowed = first[0, :, start:stop, start:stop], search * reference_window(size)
    expected = np.zeros((2, 16, 16))
    for image in range(2):
        for row in range(16):
            for column in range(16):
                expected[image, row, column] = (windowed[image, :, row : row + 4, column : column + 4] * template).sum()
    np.testing.assert_allclose(response, expected, atol=1e-4)


@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (-9, 0), (11, 12)])
def test_cross_correlation_finds_the_displacement(shift: tuple[int, int]) -> None:
    size = 65
    first, search = map_with_target(size, 32, 32), map_with_target(size, 32 + shift[0], 32 + shift[1])
    assert displacement(CrossCorrelation(first, corrected=True), search) == shift
    # the published code scales the 52 cells of the response to the 65 of the map and takes 26 for the center, not 25
    published = displacement(CrossCorrelation(first), search)
    np.testing.assert_allclose(published, [(shift[0] - 1) * 1.25, (shift[1] - 1) * 1.25])


def cyclic_correlation(search: Floats, template: Floats) -> Floats:
    """Return (s, s) for maps (d, s, s): at (i, j), the inner product with the template shifted cyclically by (i, j)."""
    size = search.shape[1]
    response = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            for channel, y, x in np.argwhere(template):
                response[row, column] += (
                    template[channel, y, x] * search[channel, (y + row) % size, (x + column) % size]
                )
    return response


def ridge_weights(template: Floats, ridge: float, sigma: float) -> Floats:
    """Return the dual weights (s, s) of the regression from all shifts of the template to a peak at shift 0."""
    size = template.shape[1]
    autocorrelation = cyclic_correlation(template, template)
    shifts = np.stack(np.divmod(np.arange(size * size), size), 1)
    differences = (shifts[:, None] - shifts) % size
    kernel = autocorrelation[differences[..., 0], differences[..., 1]]
    distances = np.minimum(shifts, size - shifts)
    peak = np.exp(-0.5 * (distances**2).sum(1) / (sigma * size / 4.5) ** 2)
    weights: Floats = np.linalg.solve(kernel + ridge * np.eye(size * size), peak).reshape(size, size)
    return weights


def weighted_response(correlation: Floats, weights: Floats) -> Floats:
    """Sum the correlations with all shifts of the template, times their dual weights."""
    size = len(correlation)
    response = np.zeros_like(correlation)
    for row in range(size):
        for column in range(size):
            for y in range(size):
                for x in range(size):
                    response[row, column] += weights[y, x] * correlation[(row - y) % size, (column - x) % size]
    return response


@pytest.mark.parametrize(("ridge", "lr", "sigma"), [(1e-2, 0.25, 0.5), (3.0, 0.6, 1.0)])
def test_correlation_filter_equals_loops(ridge: float, lr: float, sigma: float) -> None:
    size = 9
    inside = np.zeros((size, size))
    inside[3:5, 3:5] = 1
    first, second, search = (random_maps(seed, size)[0] for seed in (1, 2, 3))
    correlator = CorrelationFilter(torch.from_numpy(first)[None], ridge, lr, sigma)
    windowed = search * reference_window(size)
    template, weights = first * inside, ridge_weights(first * inside, ridge, sigma)
    response = correlator.respond(torch.from_numpy(search)[None])[0].numpy()
    np.testing.assert_allclose(response, weighted_response(cyclic_correlation(windowed, template), weights), atol=1e-4)
    # both the template and its weights are moving averages
    correlator.update(torch.from_numpy(second)[None])
    weights = (1 - lr) * weights + lr * ridge_weights(second * inside, ridge, sigma)
    template = (1 - lr) * template + lr * second * inside
    response = correlator.respond(torch.from_numpy(search)[None])[0].numpy()
    np.testing.assert_allclose(response, weighted_response(cyclic_correlation(windowed, template), weights), atol=1e-4)


@pytest.mark.parametrize("size", [65, 33, 9])
def test_correlation_filter_responds_to_its_target_with_the_learned_peak(size: int) -> None:
    target = map_with_target(size, size // 2, size // 2)
    response = CorrelationFilter(target, ridge=1e-6).respond(target)[0].numpy()
    distances = np.array([min(i, size - i) for i in range(size)])
    expected = np.exp(-0.5 * (distances[:, None] ** 2 + distances**2) / (0.1 * size / 4.5) ** 2)
    np.testing.assert_allclose(response, expected, atol=1e-4)


@pytest.mark.parametrize(("size", "shift"), [(65, (0, 0)), (65, (3, -5)), (33, (-8, 0)), (33, (7, 8))])
def test_correlation_filter_finds_the_displacement(size: int, shift: tuple[int, int]) -> None:
    down, right = shift
    correlator = CorrelationFilter(map_with_target(size, size // 2, size // 2))
    assert displacement(correlator, map_with_target(size, size // 2 + down, size // 2 + right)) == (down, right)
