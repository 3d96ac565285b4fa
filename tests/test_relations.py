"""The other losses that benchmarks/relations.py stands beside MEC are those of their authors, and its claims hold."""

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

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield relations
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", ["SimSiam, BYOL", "SimCLR", "VICReg", "Barlow Twins"])
def test_whole_losses_are_those_of_lightly(relations: ModuleType, name: str) -> None:
    losses = pytest.importorskip("lightly.loss", reason="lightly is not installed; it comes with the extra bench")
    theirs = {
        "SimSiam, BYOL": losses.NegativeCosineSimilarity(),
        "SimCLR": losses.NTXentLoss(temperature=0.5),
        "VICReg": losses.VICRegLoss(25.0, 25.0, 1.0),
        "Barlow Twins": losses.BarlowTwinsLoss(lambda_param=5e-3),
    }[name]
    a, b = (relations.long_rows(z) for z in relations.codes(seed=7, noise=0.3))
    # lightly's BatchNorm adds 1e-5 to a variance
    torch.testing.assert_close(relations.WHOLE[name](a, b), theirs(a, b), rtol=2e-4, atol=0)


def test_order_two_of_views_that_agree_is_half_the_spectral_contrastive_loss(relations: ModuleType) -> None:
    z, _ = relations.codes(seed=7, noise=0.3)
    upto_two: Tensor = relations.MECLoss(distortion=1.0, order=2, form="cross")((z, z))
    m = len(z)
    negatives = (
        relations.spectral_negatives(z, z) * (m - 1) / m
    )  # a mean over m^2 pairs, less the m of each with itself
    torch.testing.assert_close(2 * upto_two, 2 * relations.simsiam(z, z) + negatives + 1 / m)


def test_slopes_are_those_of_the_coding_rate(relations: ModuleType) -> None:
    # all codes in one direction: C has the one eigenvalue 1 / distortion, so the slope in it is had by differences
    z, x, h = torch.ones(4, 1), 0.7, 1e-6
    for order in (1, 2, 3, 4, None):
        rates = [relations.MECLoss(1 / at, order, "cross")((z, z)) * -at for at in (x - h, x + h)]
        assert float((rates[1] - rates[0]) / (2 * h)) == pytest.approx(float(relations.slope(torch.tensor(x), order)))


def test_balanced_codes_have_even_rows_and_features(relations: ModuleType) -> None:
    z = relations.balanced(relations.codes(seed=7, noise=0.3)[0])
    torch.testing.assert_close(z.norm(dim=1), torch.full((256,), 8.0))
    torch.testing.assert_close(z.mean(0), torch.zeros(64), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.square().mean(0), torch.ones(64))


def test_the_drawing_is_legible_on_dark_pages(relations: ModuleType, tmp_path: Path) -> None:
    """No ink is left in it that a dark page would hide."""
    kinds = ("as they come", "balanced")
    rows = [
        {"order": order, "term": name} | dict.fromkeys(kinds, 1.0)
        for order, terms in relations.TERMS.items()
        for name in terms
    ]
    relations.draw(rows, {name: [0.5] * len(relations.DISTORTIONS) for name in relations.WHOLE}, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn.count("prefers-color-scheme: dark") == 1
    assert not any(f": {color}" in drawn for color in relations.DARK)
