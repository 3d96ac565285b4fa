"""Both correlators against loops, and the shifts that they tell against targets that were moved."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.tracking.correlation import CorrelationFilter, CrossCorrelation, grid_size, hann, template_span

Floats = NDArray[np.float64]


def window(size: int) -> Floats:
    line = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / (size - 1)) for i in range(size)])
    return line[:, None] * line


def maps(seed: int, size: int, channels: int = 3, images: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=(images, channels, size, size))


def spot(size: int, row: int, column: int) -> Tensor:
    """One cell unlike any other, where the target is, on a ground that looks like nothing."""
    found = torch.zeros(1, 32, size, size)
    found[0, :, row, column] = torch.randn(32, generator=torch.Generator().manual_seed(0))
    return found


def moved(correlator: CrossCorrelation | CorrelationFilter, search: Tensor) -> tuple[float, float]:
    response = correlator.respond(search)[0]
    return correlator.shift(*divmod(int(response.argmax()), response.shape[1]))


def test_the_window_and_the_template() -> None:
    np.testing.assert_allclose(hann(9, torch.device("cpu")), window(9), atol=1e-7)
    # 65 / 4.5 cells are the target, even numbers of them
    assert template_span(65) == (25, 39)
    assert template_span(33) == (13, 19)
    assert template_span(9) == (3, 5)


@pytest.mark.parametrize(("stride", "cells"), [(4, 129), (8, 65), (14, 37), (16, 33), (32, 17), (64, 9), (200, 9)])
def test_the_search_map_is_odd_and_about_520_pixels(stride: int, cells: int) -> None:
    assert grid_size(stride) == cells
    assert stride > 64 or abs(stride * cells - 520) <= 56


def test_cross_correlation_by_loops() -> None:
    size, (start, stop) = 19, (7, 11)
    first, search = maps(1, size), maps(2, size, images=2)
    found = CrossCorrelation(torch.from_numpy(first).float()).respond(torch.from_numpy(search).float()).numpy()
    template, seen = first[0, :, start:stop, start:stop], search * window(size)
    wanted = np.zeros((2, 16, 16))
    for image in range(2):
        for row in range(16):
            for column in range(16):
                wanted[image, row, column] = (seen[image, :, row : row + 4, column : column + 4] * template).sum()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (-9, 0), (11, 12)])
def test_cross_correlation_tells_the_shift(shift: tuple[int, int]) -> None:
    size = 65
    first, search = spot(size, 32, 32), spot(size, 32 + shift[0], 32 + shift[1])
    assert moved(CrossCorrelation(first, corrected=True), search) == shift
    # the published rule: the response's 52 cells are taken for the 65 of the map, and its middle for 26, not 25
    published = moved(CrossCorrelation(first), search)
    np.testing.assert_allclose(published, [(shift[0] - 1) * 1.25, (shift[1] - 1) * 1.25])


def test_cross_correlation_never_learns() -> None:
    first, search = (torch.from_numpy(maps(seed, 9)).float() for seed in (1, 2))
    correlator = CrossCorrelation(first)
    before = correlator.respond(search)
    correlator.learn(search)
    torch.testing.assert_close(correlator.respond(search), before)


def circular(search: Floats, template: Floats) -> Floats:
    """(d, s, s) each -> (s, s): at (i, j) their product with the template moved there, around the borders."""
    size = search.shape[1]
    found = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            for channel, y, x in np.argwhere(template):
                found[row, column] += template[channel, y, x] * search[channel, (y + row) % size, (x + column) % size]
    return found


def ridge_weights(template: Floats, ridge: float, sigma: float) -> Floats:
    """(s, s): of the template at each place in the regression from all its places to a peak at the first."""
    size = template.shape[1]
    alike = circular(template, template)
    places = np.stack(np.divmod(np.arange(size * size), size), 1)
    apart = (places[:, None] - places) % size
    kernel = alike[apart[..., 0], apart[..., 1]]
    away = np.minimum(places, size - places)
    wanted = np.exp(-0.5 * (away**2).sum(1) / (sigma * size / 4.5) ** 2)
    weights: Floats = np.linalg.solve(kernel + ridge * np.eye(size * size), wanted).reshape(size, size)
    return weights


def summed(alike: Floats, weights: Floats) -> Floats:
    """What the weighted templates say together at each place."""
    size = len(alike)
    found = np.zeros_like(alike)
    for row in range(size):
        for column in range(size):
            for y in range(size):
                for x in range(size):
                    found[row, column] += weights[y, x] * alike[(row - y) % size, (column - x) % size]
    return found


@pytest.mark.parametrize(("ridge", "rate", "sigma"), [(1e-2, 0.25, 0.5), (3.0, 0.6, 1.0)])
def test_the_filter_by_loops(ridge: float, rate: float, sigma: float) -> None:
    size = 9
    inside = np.zeros((size, size))
    inside[3:5, 3:5] = 1
    first, second, search = (maps(seed, size)[0] for seed in (1, 2, 3))
    correlator = CorrelationFilter(torch.from_numpy(first)[None], ridge, rate, sigma)
    seen = search * window(size)
    template, weights = first * inside, ridge_weights(first * inside, ridge, sigma)
    found = correlator.respond(torch.from_numpy(search)[None])[0].numpy()
    np.testing.assert_allclose(found, summed(circular(seen, template), weights), atol=1e-4)
    # both the template and its weights are averages over time
    correlator.learn(torch.from_numpy(second)[None])
    weights = (1 - rate) * weights + rate * ridge_weights(second * inside, ridge, sigma)
    template = (1 - rate) * template + rate * second * inside
    found = correlator.respond(torch.from_numpy(search)[None])[0].numpy()
    np.testing.assert_allclose(found, summed(circular(seen, template), weights), atol=1e-4)


@pytest.mark.parametrize("size", [65, 33, 9])
def test_the_filter_answers_its_target_with_the_peak_that_it_learned(size: int) -> None:
    target = spot(size, size // 2, size // 2)
    response = CorrelationFilter(target, ridge=1e-6).respond(target)[0].numpy()
    away = np.array([min(i, size - i) for i in range(size)])
    wanted = np.exp(-0.5 * (away[:, None] ** 2 + away**2) / (0.1 * size / 4.5) ** 2)
    np.testing.assert_allclose(response, wanted, atol=1e-4)


@pytest.mark.parametrize("size", [65, 33])
@pytest.mark.parametrize("share", [(0, 0), (3, -5), (-8, 0), (7, 8)])
def test_the_filter_tells_the_shift(size: int, share: tuple[int, int]) -> None:
    down, right = share
    correlator = CorrelationFilter(spot(size, size // 2, size // 2))
    assert moved(correlator, spot(size, size // 2 + down, size // 2 + right)) == (down, right)


def test_places_beyond_half_of_the_map_are_behind() -> None:
    correlator = CorrelationFilter(spot(65, 32, 32))
    assert correlator.shift(0, 32) == (0, 32)
    assert correlator.shift(33, 64) == (-32, -1)
