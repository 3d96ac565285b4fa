"""Label propagation against a comparison of all cells with all, sorted, in float64."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.tracking import vos as module
from mec.evaluate.tracking.vos import CHUNK_SIZE, LabelPropagation, PropagationSettings, topk

Floats = NDArray[np.float64]


def reference(features: Floats, first: Floats, settings: PropagationSettings, stride: int) -> list[Floats]:
    """Propagate labels (c, h, w) through features (frames, d, h, w), one cell after the other."""
    height, width = features.shape[2:]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows, columns = np.divmod(np.arange(height * width), width)
    squared_distances = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    within_radius = squared_distances * stride**2 < (settings.radius * 8) ** 2
    labels = [first.reshape(len(first), -1)]
    for frame in range(1, len(features)):
        previous = [max(0, frame - back) for back in range(1, settings.context + 1)]
        propagated = np.zeros_like(labels[0])
        for cell in range(height * width):
            query = unit[frame].reshape(-1, height * width)[:, cell]
            neighbors: list[tuple[float, Floats]] = []
            for number, key_frame in enumerate([0, *previous]):
                similarities = query @ unit[key_frame].reshape(-1, height * width)
                for key in np.arange(height * width) if number == 0 else np.flatnonzero(within_radius[cell]):
                    neighbors.append((float(similarities[key]), labels[key_frame][:, key]))
            neighbors.sort(key=lambda neighbor: -neighbor[0])
            nearest = neighbors[: settings.neighbors]
            weights = np.array([math.exp(similarity / settings.temperature) for similarity, _ in nearest])
            propagated[:, cell] = weights @ np.array([label for _, label in nearest]) / weights.sum()
        labels.append(propagated)
    return [propagated.reshape(first.shape) for propagated in labels[1:]]


def random_video(frames: int, size: tuple[int, int], classes: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Return features that drift from frame to frame, and soft labels."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(frames, 6, *size)).cumsum(0)
    return features, rng.dirichlet(np.full(classes, 0.3), size).transpose(2, 0, 1)


def propagate(features: Floats, first: Floats, settings: PropagationSettings, stride: int) -> list[Floats]:
    x = torch.from_numpy(features)
    propagation = LabelPropagation(x[:1], torch.from_numpy(first), stride, settings)
    return [propagation.step(x[frame : frame + 1]).double().numpy() for frame in range(1, len(features))]


def assert_same_labels(result: Sequence[Floats], expected: Sequence[Floats]) -> None:
    for frame, (a, b) in enumerate(zip(result, expected, strict=True), 1):
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=f"frame {frame}")
        np.testing.assert_allclose(a.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "radius", "stride", "context"),
    [
        ((7, 5), 12.0, 8, 0),
        ((7, 5), 12.0, 8, 5),  # larger than the map
        ((13, 14), 3.0, 8, 1),  # slightly more than one tile each way; cells at distance 3 are excluded
        ((5, 25), 2.5, 8, 5),  # two tiles and a cell
        ((12, 6), 4.0, 16, 1),  # 2 cells of 16 pixels
        ((9, 9), 1.0, 16, 5),  # half a cell: only the cell itself
        ((1, 26), 3.0, 14, 1),
    ],
)
def test_propagation_equals_reference(size: tuple[int, int], radius: float, stride: int, context: int) -> None:
    features, first = random_video(4 if context < 5 else 8, size, 3)
    settings = PropagationSettings(neighbors=10, temperature=0.05, radius=radius, context=context)
    assert_same_labels(propagate(features, first, settings, stride), reference(features, first, settings, stride))


@pytest.mark.parametrize("tile_size", [1, 7, 32])
def test_tile_size_does_not_change_the_result(tile_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_SIZE", tile_size)
    features, first = random_video(4, (8, 9), 5, seed=tile_size)
    settings = PropagationSettings(neighbors=3, temperature=0.2, radius=3.2, context=2)
    assert_same_labels(propagate(features, first, settings, 8), reference(features, first, settings, 8))


@pytest.mark.parametrize("context", [0, 1, 3])
def test_maps_may_have_fewer_cells_than_neighbors(context: int) -> None:
    for size in ((1, 1), (2, 2), (3, 5)):
        features, first = random_video(4, size, 2)
        settings = PropagationSettings(neighbors=50, temperature=0.5, radius=1.0, context=context)
        assert_same_labels(propagate(features, first, settings, 8), reference(features, first, settings, 8))


def test_infinite_radius_equals_a_radius_beyond_the_map() -> None:
    features, first = random_video(3, (6, 7), 2)
    infinite, large = (propagate(features, first, PropagationSettings(radius=radius), 8) for radius in (math.inf, 30.0))
    for result, expected in zip(infinite, large, strict=True):
        np.testing.assert_array_equal(result, expected)


def test_labels_move_with_the_object() -> None:
    """All cells differ, and move by one down and two to the right in each frame."""
    rng = np.random.default_rng(0)
    first = np.zeros((2, 16, 18))
    first[1, 2:6, 1:5] = 1
    first[0] = 1 - first[1]
    cells = rng.normal(size=(64, 16, 18))
    moved = [np.roll(cells, (step, 2 * step), (1, 2)) for step in range(6)]
    result = propagate(np.stack(moved), first, PropagationSettings(neighbors=1, radius=3), 8)
    for step, labels in enumerate(result, 1):
        np.testing.assert_allclose(labels, np.roll(first, (step, 2 * step), (1, 2)), atol=1e-6)


def test_previous_frames_vote_only_within_the_radius() -> None:
    """An object turns: its appearance in the third frame occurs before only in the second frame, at cell 1."""
    appearance, ground, turned = np.eye(3)
    features = np.tile(ground[:, None, None], (3, 1, 1, 8))
    features[0, :, 0, 1] = appearance
    features[1, :, 0, 1] = (appearance + turned) / 2**0.5
    features[2, :, 0, [0, 3, 4, 7]] = 0.9 * turned + 0.4 * ground
    first = np.zeros((2, 1, 8))
    first[1, 0, 1] = 1
    first[0] = 1 - first[1]
    result = propagate(features, first, PropagationSettings(neighbors=1, radius=3, context=1), 8)
    np.testing.assert_array_equal(result[0], first)
    assert result[1][1, 0].tolist() == [1, 0, 0, 1, 0, 0, 0, 0], "a distance of 3 cells is not less than 3"


@pytest.mark.parametrize(
    ("columns", "k", "values_kind"),
    [
        (1, 3, "distinct"), (3, 3, "tied"), (4, 3, "tied"), (40, 10, "mostly infinite"), (40, 10, "tied"),
        (40, 1, "distinct"), (2, 100, "mostly infinite"),
    ],
)  # fmt: skip
def test_topk_returns_the_largest_values_and_their_indices(columns: int, k: int, values_kind: str) -> None:
    rng = np.random.default_rng(columns)
    values = rng.normal(size=(9, CHUNK_SIZE * columns))
    if values_kind == "tied":
        values = np.rint(values)
    if values_kind == "mostly infinite":
        values[rng.random(values.shape) < 0.97] = -np.inf
    largest, indices = topk(torch.from_numpy(values), k)
    count = min(k, values.shape[1])
    expected = -np.sort(-values, axis=1)[:, :count]
    np.testing.assert_array_equal(-np.sort(-largest.numpy(), axis=1), expected)
    np.testing.assert_array_equal(np.take_along_axis(values, indices.numpy(), 1), largest.numpy())
    assert all(len(set(row)) == count for row in indices.tolist())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("neighbors", 0, "neighbors: expected at least 1, got 0"),
        ("context", -1, "context: expected at least 0, got -1"),
        ("temperature", 0.0, "temperature: expected a positive number, got 0.0"),
        ("radius", math.nan, "radius: expected a positive number, got nan"),
    ],
)
def test_invalid_settings_are_rejected(name: str, value: float, message: str) -> None:
    with pytest.raises(InputError) as error:
        PropagationSettings(**{name: value})
    assert str(error.value) == message
