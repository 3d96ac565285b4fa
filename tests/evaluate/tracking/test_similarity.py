"""Reconstruction similarity against its formula, cell by cell, with what is rebuilt held."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.tracking import similarity
from mec.evaluate.tracking.similarity import reconstruction_similarity

Floats = NDArray[np.float64]


def objects(seed: int, counts: tuple[int, ...], d: int = 5, spread: float = 0.15) -> list[Floats]:
    """Sets of cells (d, n); with a small spread they are so alike that all share in rebuilding one."""
    rng = np.random.default_rng(seed)
    return [1 + spread * (rng.normal(size=(d, 1)) + rng.normal(size=(d, count))) for count in counts]


def unit(cells: Floats) -> Floats:
    """(d, n) -> (n, d), of length 1, or 0 where they are."""
    return np.array([cell / max(np.linalg.norm(cell), 1e-12) for cell in cells.T]).reshape(-1, len(cells))


def filled(sets: list[Floats]) -> list[Floats]:
    most = max(cells.shape[1] for cells in sets)
    return [np.pad(cells, ((0, 0), (0, most - cells.shape[1]))) for cells in sets]


def one_way(wanted: list[Floats], given: list[Floats]) -> Floats:
    """(wanted, given): cosine of all numbers of an object with what another has rebuilt of them."""
    found = np.zeros((len(wanted), len(given)))
    for i, cells in enumerate(map(unit, wanted)):
        for j in range(len(given)):
            rebuilt = []
            for cell in cells:
                weights = [np.exp(100 * unit(other) @ cell) for other in given]
                total = sum(weight.sum() for weight in weights)
                rebuilt.append(weights[j] / total @ unit(given[j]))
            flat = np.concatenate(rebuilt)
            # shorter than that is nothing, as to torch's normalize
            found[i, j] = flat @ cells.flatten() / (max(np.linalg.norm(flat), 1e-12) * np.linalg.norm(cells))
    return found


def literal(some: list[Floats], others: list[Floats], padded: bool) -> Floats:
    if padded:
        some, others = filled(some), filled(others)
    return (one_way(some, others) + one_way(others, some).T) / 2


def tensors(sets: list[Floats], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.from_numpy(cells).to(dtype) for cells in sets]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("some", "others"),
    [((6, 6, 6), (6, 6)), ((3, 7, 1), (5, 2)), ((4,), (9,)), ((1,), (1,)), ((2, 2), (8,)), ((1,), (3, 5, 2, 4))],
)
@pytest.mark.parametrize("spread", [0.15, 1.0])
def test_as_the_formula_says(some: tuple[int, ...], others: tuple[int, ...], padded: bool, spread: float) -> None:
    first, second = objects(1, some, spread=spread), objects(2, others, spread=spread)
    wanted = literal(first, second, padded)
    found = reconstruction_similarity(tensors(first), tensors(second), padded)
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    single = reconstruction_similarity(tensors(first, torch.float32), tensors(second, torch.float32), padded)
    np.testing.assert_allclose(single, wanted, atol=1e-4)


@pytest.mark.parametrize("padded", [True, False])
def test_where_cells_are_no_more_alike_than_cells_of_zeros_are(padded: bool) -> None:
    rng = np.random.default_rng(0)
    first, second = ([0.02 * rng.normal(size=(6, count)) for count in counts] for counts in ((3, 5), (2, 6)))
    for cells in first:
        cells[:3] += rng.normal(size=(3, 1))
    for cells in second:
        cells[3:] += rng.normal(size=(3, 1))
    found = reconstruction_similarity(tensors(first), tensors(second), padded)
    np.testing.assert_allclose(found, literal(first, second, padded), atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_as_many_at_once_as_one_likes(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = objects(1, (3, 7, 1)), objects(2, (5, 2))
    monkeypatch.setattr(similarity, "ROWS", rows)
    for padded in (True, False):
        found = reconstruction_similarity(tensors(first), tensors(second), padded)
        np.testing.assert_allclose(found, literal(first, second, padded), atol=1e-9)


def test_filling_up_matters_only_where_sizes_are_unequal() -> None:
    first, second = tensors(objects(1, (4, 4))), tensors(objects(2, (4, 4, 4)))
    np.testing.assert_allclose(
        reconstruction_similarity(first, second, True), reconstruction_similarity(first, second, False), atol=1e-12
    )
    first = tensors(objects(1, (2, 8), 12))
    differ = reconstruction_similarity(first, second_of(12), True) - reconstruction_similarity(first, second_of(12))
    assert np.abs(differ).max() > 1e-3


def second_of(d: int) -> list[Tensor]:
    return tensors(objects(2, (3, 9), d))


@pytest.mark.parametrize("padded", [True, False])
def test_roles_are_symmetric(padded: bool) -> None:
    first, second = tensors(objects(3, (3, 5))), tensors(objects(4, (2, 6, 4)))
    there, back = reconstruction_similarity(first, second, padded), reconstruction_similarity(second, first, padded)
    np.testing.assert_allclose(there, back.T, atol=1e-12)


def test_lengths_and_order_of_cells_say_nothing() -> None:
    first, second = tensors(objects(5, (4, 6))), tensors(objects(6, (5, 3)))
    other = [cells.flip(1) * torch.linspace(0.1, 9, cells.shape[1]) for cells in second]
    np.testing.assert_allclose(
        reconstruction_similarity(first, other), reconstruction_similarity(first, second), atol=1e-12
    )


def test_the_same_is_alike_and_what_shares_nothing_is_not() -> None:
    a, b, c = (torch.eye(9)[:, start : start + 3] for start in (0, 3, 6))
    np.testing.assert_allclose(reconstruction_similarity([a, b, c], [b, a]), [[0, 1], [1, 0], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("padded", [True, False])
def test_an_object_without_a_cell_is_like_none(padded: bool) -> None:
    first, second, none = tensors(objects(7, (3, 4))), tensors(objects(8, (5, 2))), torch.zeros(5, 0).double()
    with_none = reconstruction_similarity([first[0], none, first[1]], second, padded)
    assert not (with_none[1] > 0).any(), "0 or NaN, which both join nothing"
    if not padded:
        np.testing.assert_allclose(with_none[[0, 2]], reconstruction_similarity(first, second), atol=1e-12)
    assert not (reconstruction_similarity(second, [none], padded) > 0).any()
    assert not (reconstruction_similarity([none, none], [none], padded) > 0).any()


def test_nothing_on_either_side() -> None:
    some = tensors(objects(0, (3, 2)))
    assert reconstruction_similarity([], some).shape == (0, 2)
    assert reconstruction_similarity(some, []).shape == (2, 0)
    assert reconstruction_similarity([], []).shape == (0, 0)
