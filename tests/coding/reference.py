"""Reference implementation of the objective as the paper writes it: normalize, m x m, matrix powers, slogdet,
autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def log_det(C: Tensor, order: int | None) -> Tensor:
    if order is None:
        return torch.linalg.slogdet(torch.eye(len(C), dtype=C.dtype) + C).logabsdet
    return sum((-1) ** (k + 1) / k * torch.trace(torch.linalg.matrix_power(C, k)) for k in range(1, order + 1))


def coding_rate(p: Tensor, z: Tensor, distortion: float, order: int | None) -> Tensor:
    return log_det(normalize(p) @ normalize(z).T / (len(p) * distortion), order)


def ordered_pairs(num_global: int, num_views: int) -> list[tuple[int, int]]:
    """Return the pairs of a global view and any other view."""
    return [(a, b) for a in range(num_global) for b in range(num_views) if a != b]


def _stable_loss(
    views: list[Tensor],
    distortion: float,
    order: int | None,
    form: str,
    rate_weight: float,
    num_global: int,
    counted: int,
) -> Tensor:
    """Return the reduction or pooled loss of views whose rows are not normalized here; S is that of the pairs among the
    first ones."""
    pairs = ordered_pairs(num_global, len(views))
    differences = torch.cat([views[a] - views[b] for a, b in pairs])
    N = differences.T @ differences / (2 * len(differences))
    rows = torch.cat([views[v] for pair in pairs for v in pair if max(pair) < counted] or views[:1])
    rate = log_det(rows.T @ rows / (len(rows) * distortion), order)
    if form == "pooled":
        return torch.trace(N) - rate_weight * distortion * rate
    return -distortion * (rate - log_det(N / distortion, order))


def mec_loss(
    predictions: list[Tensor],
    targets: list[Tensor] | None = None,
    distortion: float = 1 / 32,
    order: int | None = None,
    form: str | None = None,
    rate_weight: float = 1.0,
    global_views: int | None = None,
    rate_views: str = "all",
    scaled: bool = False,
) -> Tensor:
    """Return what MECLoss returns for these arguments; ``scaled`` is its ``normalize``."""
    if scaled:
        m, d = predictions[0].shape
        rank = min(m, d)
        ideal = distortion * torch.logdet((1 + 1 / (rank * distortion)) * torch.eye(rank, dtype=torch.float64))
        value = mec_loss(predictions, targets, distortion, order, form, rate_weight, global_views, rate_views)
        return value / ideal
    form, num_global = form or ("cross" if targets else "reduction"), global_views or len(predictions)
    if targets is None and form != "cross":
        counted = num_global if rate_views == "global" else len(predictions)
        units = [normalize(z) for z in predictions]
        return _stable_loss(units, distortion, order, form, rate_weight, num_global, counted)
    targets, total = targets or predictions[:num_global], 0.0
    for v, p in enumerate(predictions):
        others = [normalize(z) for b, z in enumerate(targets) if b != v]
        if not others:
            continue
        u, t = normalize(p), sum(others) / len(others)
        value = -distortion * log_det(u @ t.T / (len(u) * distortion), order)
        if form != "cross":
            value = _stable_loss([u, t], distortion, order, form, rate_weight, 2, 2)
        total = total + value * len(others)
    return total / len(ordered_pairs(len(targets), len(predictions)))


def random_codes(n: int, m: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Return n correlated matrices (m, d) with uneven row norms that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(m, d, generator=generator, dtype=torch.float64)
    norms = torch.rand(m, 1, generator=generator, dtype=torch.float64) * 5 + 0.2
    views = [(shared + torch.randn(m, d, generator=generator, dtype=torch.float64)) * norms for _ in range(n)]
    return [view.to(dtype).requires_grad_() for view in views]


def in_float64(views: list[Tensor]) -> list[Tensor]:
    return [view.detach().double().requires_grad_(view.requires_grad) for view in views]


def assert_close_in_scale(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert that the largest difference is at most ``tolerance`` times the scale: the largest entry, at least 0.01."""
    assert actual.shape == expected.shape
    difference, scale = (actual.double() - expected.double()).abs().max(), expected.abs().max().clamp_min(0.01)
    assert difference <= tolerance * scale, f"difference {difference:.3g} at scale {scale:.3g}"
