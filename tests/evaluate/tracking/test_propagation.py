"""Propagation against all cells compared with all, sorted, in float64."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.tracking import propagation as module
from mec.evaluate.tracking.propagation import CHUNK, LabelPropagation, Propagation, largest

Floats = NDArray[np.float64]


def reference(features: Floats, first: Floats, settings: Propagation, stride: int) -> list[Floats]:
    """(frames, d, h, w) and (c, h, w) -> labels of frames 1, ..., every cell asked one after the other."""
    height, width = features.shape[2:]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows, columns = np.divmod(np.arange(height * width), width)
    apart = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    within = apart * stride**2 < (settings.radius * 8) ** 2
    labels = [first.reshape(len(first), -1)]
    for frame in range(1, len(features)):
        recent = [max(0, frame - back) for back in range(1, settings.context + 1)]
        found = np.zeros_like(labels[0])
        for cell in range(height * width):
            asking = unit[frame].reshape(-1, height * width)[:, cell]
            voters: list[tuple[float, Floats]] = []
            for number, memory in enumerate([0, *recent]):
                alike = asking @ unit[memory].reshape(-1, height * width)
                for other in np.arange(height * width) if number == 0 else np.flatnonzero(within[cell]):
                    voters.append((float(alike[other]), labels[memory][:, other]))
            voters.sort(key=lambda voter: -voter[0])
            weights = np.array([math.exp(alike / settings.temperature) for alike, _ in voters[: settings.neighbors]])
            shares = np.array([share for _, share in voters[: settings.neighbors]])
            found[:, cell] = weights @ shares / weights.sum()
        labels.append(found)
    return [found.reshape(first.shape) for found in labels[1:]]


def scene(frames: int, size: tuple[int, int], classes: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Features that drift from frame to frame, and shares of classes."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(frames, 6, *size)).cumsum(0)
    return features, rng.dirichlet(np.full(classes, 0.3), size).transpose(2, 0, 1)


def propagated(features: Floats, first: Floats, settings: Propagation, stride: int) -> list[Floats]:
    x = torch.from_numpy(features)
    carried = LabelPropagation(x[:1], torch.from_numpy(first), stride, settings)
    return [carried.step(x[frame : frame + 1]).double().numpy() for frame in range(1, len(features))]


def check(found: Sequence[Floats], wanted: Sequence[Floats]) -> None:
    for frame, (one, other) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(one, other, atol=2e-6, err_msg=f"frame {frame + 1}")
        np.testing.assert_allclose(one.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("context", [0, 1, 5])
@pytest.mark.parametrize(
    ("size", "radius", "stride"),
    [
        ((7, 5), 12.0, 8),  # farther than the map is wide
        ((13, 14), 3.0, 8),  # a tile and a little more each way; cells 3 away are out
        ((5, 25), 2.5, 8),  # two tiles and a cell
        ((12, 6), 4.0, 16),  # 2 cells of 16 pixels
        ((9, 9), 1.0, 16),  # half a cell: only itself
        ((1, 26), 3.0, 14),
    ],
)
def test_as_by_comparing_all_cells_with_all(size: tuple[int, int], radius: float, stride: int, context: int) -> None:
    features, first = scene(4 if context < 5 else 8, size, 3)
    settings = Propagation(neighbors=10, temperature=0.05, radius=radius, context=context)
    check(propagated(features, first, settings, stride), reference(features, first, settings, stride))


@pytest.mark.parametrize("tile", [1, 4, 7, 32])
def test_tiles_change_nothing(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", {"cpu": tile})
    features, first = scene(4, (8, 9), 5, seed=tile)
    settings = Propagation(neighbors=3, temperature=0.2, radius=3.2, context=2)
    check(propagated(features, first, settings, 8), reference(features, first, settings, 8))


@pytest.mark.parametrize("context", [0, 1, 3])
def test_fewer_cells_than_neighbors(context: int) -> None:
    for size in ((1, 1), (2, 2), (3, 5)):
        features, first = scene(4, size, 2)
        settings = Propagation(neighbors=50, temperature=0.5, radius=1.0, context=context)
        check(propagated(features, first, settings, 8), reference(features, first, settings, 8))


def test_no_limit_is_a_limit_beyond_the_map() -> None:
    features, first = scene(3, (6, 7), 2)
    endless, wide = (propagated(features, first, Propagation(radius=radius), 8) for radius in (math.inf, 30.0))
    for found, wanted in zip(endless, wide, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_an_object_that_moves_takes_its_labels_along() -> None:
    """Cells no two of which are alike, moved by one down and two to the right in each frame."""
    rng = np.random.default_rng(0)
    start = np.zeros((2, 16, 18))
    start[1, 2:6, 1:5] = 1
    start[0] = 1 - start[1]
    cells = rng.normal(size=(64, 16, 18))
    moved = [np.roll(cells, (step, 2 * step), (1, 2)) for step in range(6)]
    found = propagated(np.stack(moved), start, Propagation(neighbors=1, radius=3), 8)
    for step, labels in enumerate(found, 1):
        np.testing.assert_allclose(labels, np.roll(start, (step, 2 * step), (1, 2)), atol=1e-6)


def test_from_one_of_the_last_frames_only_within_the_radius() -> None:
    """An object turns: as it looks in the third frame it does only in the second, and that was at cell 1."""
    object_, ground, turned = np.eye(3)
    features = np.tile(ground[:, None, None], (3, 1, 1, 8))
    features[0, :, 0, 1] = object_
    features[1, :, 0, 1] = (object_ + turned) / 2**0.5
    features[2, :, 0, [0, 3, 4, 7]] = 0.9 * turned + 0.4 * ground
    first = np.zeros((2, 1, 8))
    first[1, 0, 1] = 1
    first[0] = 1 - first[1]
    found = propagated(features, first, Propagation(neighbors=1, radius=3, context=1), 8)
    np.testing.assert_array_equal(found[0], first)
    assert found[1][1, 0].tolist() == [1, 0, 0, 1, 0, 0, 0, 0], "three cells are not less than three"


@pytest.mark.parametrize(("columns", "k"), [(1, 3), (3, 3), (4, 3), (40, 10), (40, 1), (2, 100)])
@pytest.mark.parametrize("numbers", ["apart", "tied", "mostly none"])
def test_largest_numbers_and_where_they_are(columns: int, k: int, numbers: str) -> None:
    rng = np.random.default_rng(columns)
    values = rng.normal(size=(9, CHUNK * columns))
    if numbers == "tied":
        values = np.rint(values)
    if numbers == "mostly none":
        values[rng.random(values.shape) < 0.97] = -np.inf
    found, places = largest(torch.from_numpy(values), k)
    taken = min(k, values.shape[1])
    wanted = -np.sort(-values, axis=1)[:, :taken]
    np.testing.assert_array_equal(-np.sort(-found.numpy(), axis=1), wanted)
    np.testing.assert_array_equal(np.take_along_axis(values, places.numpy(), 1), found.numpy())
    assert all(len(set(row)) == taken for row in places.tolist())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("neighbors", 0, "neighbors: expected at least 1, got 0"),
        ("context", -1, "context: expected at least 0, got -1"),
        ("temperature", 0.0, "temperature: expected a positive number, got 0.0"),
        ("radius", math.nan, "radius: expected a positive number, got nan"),
    ],
)
def test_settings_that_cannot_be(name: str, value: float, said: str) -> None:
    with pytest.raises(InputError) as error:
        Propagation(**{name: value})
    assert str(error.value) == said
