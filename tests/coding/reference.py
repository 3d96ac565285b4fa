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


def cross_loss(p: tuple[Tensor, Tensor], z: tuple[Tensor, Tensor], distortion: float, order: int | None) -> Tensor:
    rates = coding_rate(p[0], z[1], distortion, order) + coding_rate(p[1], z[0], distortion, order)
    return -distortion * rates / 2


def pooled_loss(z1: Tensor, z2: Tensor, distortion: float, order: int | None = None) -> Tensor:
    cosine = (normalize(z1) * normalize(z2)).sum(dim=1).mean()
    both = torch.cat([z1, z2])
    return 1 - cosine - distortion * coding_rate(both, both, distortion, order)


def ordered_pairs(num_global: int, num_views: int) -> list[tuple[int, int]]:
    """Return the pairs of a global view and any other view."""
    return [(a, b) for a in range(num_global) for b in range(num_views) if a != b]


def pooled_loss_of_views(
    views: list[Tensor],
    distortion: float,
    order: int | None = None,
    rate_weight: float = 1.0,
    global_views: int | None = None,
    rate_views: str = "all",
) -> Tensor:
    num_global = global_views or len(views)
    pairs = ordered_pairs(num_global, len(views))
    cosines = [(normalize(views[a]) * normalize(views[b])).sum(dim=1).mean() for a, b in pairs]
    counted = torch.cat(views[:num_global] if rate_views == "global" else views)
    return 1 - sum(cosines) / len(pairs) - rate_weight * distortion * coding_rate(counted, counted, distortion, order)


def loss_with_targets(
    predictions: list[Tensor],
    targets: list[Tensor],
    distortion: float,
    order: int | None,
    form: str = "cross",
    rate_weight: float = 1.0,
) -> Tensor:
    """Return the mean over pairs of a prediction and a target of another view; targets of a prediction are averaged."""
    total = 0.0
    for v, p in enumerate(predictions):
        others = [normalize(z) for b, z in enumerate(targets) if b != v]
        if not others:
            continue
        u, t = normalize(p), sum(others) / len(others)
        value = -distortion * log_det(u @ t.T / (len(u) * distortion), order)
        if form == "pooled":
            both = torch.cat([u, t])
            rate = log_det(both @ both.T / (len(both) * distortion), order)
            value = 1 - (u * t).sum(dim=1).mean() - rate_weight * distortion * rate
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
