import dataclasses
import math

import numpy as np
import pytest
import torch

from mec.coding import alpha_req, coding_length, effective_rank, health, rankme, spectral_norm

from . import reference


def rows_with_covariance(eigenvalues, m):
    """Return (m, d) unit rows whose z^T z / m has these eigenvalues (sum 1): a scaled, rotated Hadamard matrix."""
    d = len(eigenvalues)
    signs = torch.ones(1, 1, dtype=torch.float64)
    while len(signs) < m:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    rotation = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    return signs[:, :d] * torch.as_tensor(eigenvalues, dtype=torch.float64).sqrt() @ rotation


def power_law(exponent, d):
    weights = np.arange(1, d + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def test_evenly_spread_codes_have_full_rank():
    eye = torch.eye(8)
    for z in (eye, torch.cat([eye, -eye]), 5 * eye):
        assert effective_rank(z) == pytest.approx(8)
        assert rankme(z) == pytest.approx(8)
        assert alpha_req(z) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "d"), [(12, 5), (200, 150), (150, 200)])
def test_codes_of_one_direction_have_rank_1(dtype, m, d):
    # powers of two keep the rows parallel in any dtype
    direction = torch.randn(1, d, generator=torch.Generator().manual_seed(0)).to(dtype)
    z = direction * (2.0 ** (torch.arange(m) % 5)).to(dtype)[:, None]
    assert effective_rank(z) == pytest.approx(1, abs=1e-4)
    assert rankme(z) == pytest.approx(1, abs=1e-3)
    assert alpha_req(z) == math.inf


def test_zero_codes_have_zero_health():
    z = torch.zeros(5, 3)
    assert effective_rank(z) == rankme(z) == spectral_norm(z, z, 0.1) == 0
    assert health(z, z, 0.1).coding_length == 0


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_metrics_of_a_power_law_spectrum(exponent):
    eigenvalues = power_law(exponent, 24)
    z = rows_with_covariance(eigenvalues, 64)
    assert alpha_req(z) == pytest.approx(exponent, abs=1e-6)
    assert effective_rank(z) == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))
    singular = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
    assert rankme(z) == pytest.approx(np.exp(-(singular * np.log(singular)).sum()))
    assert coding_length(z, 0.1).item() == pytest.approx((64 + 24) / 2 * np.log1p(eigenvalues / 0.1).sum())


@pytest.mark.parametrize(("m", "d"), [(30, 12), (12, 12), (12, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rankme_and_effective_rank_match_singular_values(m, d, dtype):
    (z,) = reference.random_codes(1, m, d, dtype)
    rows = z.detach().double().numpy()
    singular = np.linalg.svd(rows / np.linalg.norm(rows, axis=1, keepdims=True), compute_uv=False)
    for metric, weights in ((rankme, singular), (effective_rank, singular**2)):
        probabilities = weights / weights.sum()
        assert metric(z) == pytest.approx(np.exp(-(probabilities * np.log(probabilities)).sum()), rel=1e-6)


@pytest.mark.parametrize(("m", "d"), [(30, 12), (12, 30)])
def test_spectral_norm_is_the_largest_singular_value(m, d):
    p, z = reference.random_codes(2, m, d)
    a, b = (torch.nn.functional.normalize(view).detach().numpy() for view in (p, z))
    expected = np.linalg.norm(a @ b.T, 2) / (m * 0.05)
    assert spectral_norm(p, z, 0.05, steps=300) == pytest.approx(expected, rel=1e-6)
    assert 0.9 * expected < spectral_norm(p, z, 0.05) <= expected * (1 + 1e-9)
    collapsed = torch.ones(6, 3)
    assert spectral_norm(collapsed, collapsed, 0.25) == pytest.approx(4)
    assert spectral_norm(collapsed, -collapsed, 0.25) == pytest.approx(4)


@pytest.mark.parametrize("series", ["cross", "pooled", "reduction"])
def test_health_returns_all_metrics(series):
    eigenvalues = power_law(1.0, 24)
    z = rows_with_covariance(eigenvalues, 64)
    p = z.flip(0)
    a, b = (p, z) if series == "cross" else (torch.cat([p, z]),) * 2
    singular = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
    assert dataclasses.asdict(health(p, z, 0.1, series=series)) == pytest.approx(
        {
            "coding_length": (64 + 24) / 2 * np.log1p(eigenvalues / 0.1).sum(),
            "spectral_norm": np.linalg.norm((a @ b.T).numpy(), 2) / (len(a) * 0.1),
            "effective_rank": np.exp(-(eigenvalues * np.log(eigenvalues)).sum()),
            "rankme": np.exp(-(singular * np.log(singular)).sum()),
            "alpha_req": 1.0,
        },
        rel=1e-5,
    )
