"""Reconstruction similarity against its formula, vector by vector, with materialized reconstructions."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.tracking import appearance
from mec.evaluate.tracking.appearance import reconstruction_similarity

Floats = NDArray[np.float64]


def objects(seed: int, counts: tuple[int, ...], d: int = 5, spread: float = 0.15) -> list[Floats]:
    """Return feature sets (d, n). With a small spread they are so similar that all contribute to a reconstruction."""
    rng = np.random.default_rng(seed)
    return [1 + spread * (rng.normal(size=(d, 1)) + rng.normal(size=(d, count))) for count in counts]


def unit(features: Floats) -> Floats:
    """(d, n) -> unit vectors (n, d); zero vectors stay zero."""
    return np.array([vector / max(np.linalg.norm(vector), 1e-12) for vector in features.T]).reshape(-1, len(features))


def pad(sets: list[Floats]) -> list[Floats]:
    max_count = max(features.shape[1] for features in sets)
    return [np.pad(features, ((0, 0), (0, max_count - features.shape[1]))) for features in sets]


def one_way(targets: list[Floats], sources: list[Floats]) -> Floats:
    """Return the cosines (targets, sources) of each object with its reconstruction from another."""
    cosines = np.zeros((len(targets), len(sources)))
    for i, vectors in enumerate(map(unit, targets)):
        for j in range(len(sources)):
            reconstruction = []
            for vector in vectors:
                weights = [np.exp(100 * unit(source) @ vector) for source in sources]
                total = sum(weight.sum() for weight in weights)
                reconstruction.append(weights[j] / total @ unit(sources[j]))
            flat = np.concatenate(reconstruction)
            # the same lower limit of the norm as torch's normalize
            cosines[i, j] = flat @ vectors.flatten() / (max(np.linalg.norm(flat), 1e-12) * np.linalg.norm(vectors))
    return cosines


def reference(first: list[Floats], second: list[Floats], padded: bool) -> Floats:
    if padded:
        first, second = pad(first), pad(second)
    return (one_way(first, second) + one_way(second, first).T) / 2


def tensors(sets: list[Floats], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.from_numpy(features).to(dtype) for features in sets]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("first_counts", "second_counts", "spread"),
    [((6, 6, 6), (6, 6), 1.0), ((3, 7, 1), (5, 2), 0.15), ((4,), (9,), 1.0), ((1,), (3, 5, 2, 4), 0.15)],
)
def test_similarity_equals_the_formula(
    first_counts: tuple[int, ...], second_counts: tuple[int, ...], padded: bool, spread: float
) -> None:
    first, second = objects(1, first_counts, spread=spread), objects(2, second_counts, spread=spread)
    expected = reference(first, second, padded)
    result = reconstruction_similarity(tensors(first), tensors(second), padded)
    np.testing.assert_allclose(result, expected, atol=1e-9)
    single = reconstruction_similarity(tensors(first, torch.float32), tensors(second, torch.float32), padded)
    np.testing.assert_allclose(single, expected, atol=1e-4)


@pytest.mark.parametrize("padded", [True, False])
def test_similarity_equals_the_formula_if_zero_vectors_have_large_weights(padded: bool) -> None:
    rng = np.random.default_rng(0)
    first, second = ([0.02 * rng.normal(size=(6, count)) for count in counts] for counts in ((3, 5), (2, 6)))
    for features in first:
        features[:3] += rng.normal(size=(3, 1))
    for features in second:
        features[3:] += rng.normal(size=(3, 1))
    result = reconstruction_similarity(tensors(first), tensors(second), padded)
    np.testing.assert_allclose(result, reference(first, second, padded), atol=1e-9)


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_chunk_size_does_not_change_the_result(chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = objects(1, (3, 7, 1)), objects(2, (5, 2))
    monkeypatch.setattr(appearance, "CHUNK_SIZE", chunk_size)
    for padded in (True, False):
        result = reconstruction_similarity(tensors(first), tensors(second), padded)
        np.testing.assert_allclose(result, reference(first, second, padded), atol=1e-9)


def test_equal_objects_have_similarity_1_and_orthogonal_ones_0() -> None:
    a, b, c = (torch.eye(9)[:, start : start + 3] for start in (0, 3, 6))
    np.testing.assert_allclose(reconstruction_similarity([a, b, c], [b, a]), [[0, 1], [1, 0], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("padded", [True, False])
def test_object_without_cells_is_similar_to_none(padded: bool) -> None:
    first, second, empty = tensors(objects(7, (3, 4))), tensors(objects(8, (5, 2))), torch.zeros(5, 0).double()
    with_empty = reconstruction_similarity([first[0], empty, first[1]], second, padded)
    assert not (with_empty[1] > 0).any(), "0 or NaN; neither is matched"
    if not padded:
        np.testing.assert_allclose(with_empty[[0, 2]], reconstruction_similarity(first, second), atol=1e-12)
    assert not (reconstruction_similarity(second, [empty], padded) > 0).any()
    assert not (reconstruction_similarity([empty, empty], [empty], padded) > 0).any()


def test_either_side_may_be_empty() -> None:
    sets = tensors(objects(0, (3, 2)))
    assert reconstruction_similarity([], sets).shape == (0, 2)
    assert reconstruction_similarity(sets, []).shape == (2, 0)
    assert reconstruction_similarity([], []).shape == (0, 0)
