"""The losses that benchmarks/relations.py compares with MEC match their published code, and its claims hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


@pytest.fixture
def relations(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import relations

    previous_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield relations
    torch.set_default_dtype(previous_dtype)


@pytest.mark.parametrize("name", ["SimSiam, BYOL", "SimCLR", "VICReg", "Barlow Twins"])
def test_losses_equal_those_of_lightly(relations: ModuleType, name: str) -> None:
    losses = pytest.importorskip("lightly.loss", reason="lightly is not installed; it comes with the extra bench")
    expected = {
        "SimSiam, BYOL": losses.NegativeCosineSimilarity(),
        "SimCLR": losses.NTXentLoss(temperature=0.5),
        "VICReg": losses.VICRegLoss(25.0, 25.0, 1.0),
        "Barlow Twins": losses.BarlowTwinsLoss(lambda_param=5e-3),
    }[name]
    a, b = (relations.scale_rows(z) for z in relations.codes(seed=7, noise=0.3))
    # lightly's BatchNorm adds 1e-5 to the variance
    torch.testing.assert_close(relations.LOSSES[name](a, b), expected(a, b), rtol=2e-4, atol=0)


def test_order_two_of_identical_views_is_half_the_spectral_contrastive_loss(relations: ModuleType) -> None:
    z, _ = relations.codes(seed=7, noise=0.3)
    order_two: Tensor = relations.MECLoss(distortion=1.0, order=2, form="cross")((z, z))
    m = len(z)
    # MEC averages over all m^2 pairs, the spectral contrastive loss over the m (m - 1) pairs of different images
    negatives = relations.spectral_negatives(z, z) * (m - 1) / m
    torch.testing.assert_close(2 * order_two, 2 * relations.simsiam(z, z) + negatives + 1 / m)


def test_slopes_are_derivatives_of_the_coding_rate(relations: ModuleType) -> None:
    # codes in one direction: the only eigenvalue of C is 1 / distortion; the slope is a finite difference in it
    z, x, h = torch.ones(4, 1), 0.7, 1e-6
    for order in (1, 2, 3, 4, None):
        rates = [
            relations.MECLoss(1 / eigenvalue, order, "cross")((z, z)) * -eigenvalue for eigenvalue in (x - h, x + h)
        ]
        assert float((rates[1] - rates[0]) / (2 * h)) == pytest.approx(float(relations.slope(torch.tensor(x), order)))


def test_balanced_codes_have_normalized_rows_and_features(relations: ModuleType) -> None:
    z = relations.balanced(relations.codes(seed=7, noise=0.3)[0])
    torch.testing.assert_close(z.norm(dim=1), torch.full((256,), 8.0))
    torch.testing.assert_close(z.mean(0), torch.zeros(64), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.square().mean(0), torch.ones(64))


def test_drawing_has_no_fixed_colors_on_dark_pages(relations: ModuleType, tmp_path: Path) -> None:
    """Every color with a dark variant is a CSS variable."""
    kinds = ("raw", "balanced")
    rows = [
        {"order": order, "term": name} | dict.fromkeys(kinds, 1.0)
        for order, terms in relations.TERMS.items()
        for name in terms
    ]
    relations.draw(rows, {name: [0.5] * len(relations.DISTORTIONS) for name in relations.LOSSES}, tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count("prefers-color-scheme: dark") == 1
    assert not any(f": {color}" in svg for color in relations.DARK)
