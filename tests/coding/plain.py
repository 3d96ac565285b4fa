"""The objective as the paper writes it, to compare with: normalize, m x m, matrix powers, slogdet, autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def rate(p: Tensor, z: Tensor, distortion: float, order: int | None) -> Tensor:
    m = len(p)
    C = normalize(p) @ normalize(z).T / (m * distortion)
    if order is None:
        return torch.linalg.slogdet(torch.eye(m, dtype=C.dtype) + C).logabsdet
    return sum((-1) ** (k + 1) / k * torch.trace(torch.linalg.matrix_power(C, k)) for k in range(1, order + 1))


def cross_loss(p: tuple[Tensor, Tensor], z: tuple[Tensor, Tensor], distortion: float, order: int | None) -> Tensor:
    return -distortion * (rate(p[0], z[1], distortion, order) + rate(p[1], z[0], distortion, order)) / 2


def pooled_loss(z1: Tensor, z2: Tensor, distortion: float, order: int | None = None) -> Tensor:
    agreement = (normalize(z1) * normalize(z2)).sum(dim=1).mean()
    both = torch.cat([z1, z2])
    return 1 - agreement - distortion * rate(both, both, distortion, order)


def codes(n: int, m: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """n matrices (m, d) that agree in part, of uneven row norms, with gradient."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(m, d, generator=generator, dtype=torch.float64)
    norms = torch.rand(m, 1, generator=generator, dtype=torch.float64) * 5 + 0.2
    views = [(shared + torch.randn(m, d, generator=generator, dtype=torch.float64)) * norms for _ in range(n)]
    return [view.to(dtype).requires_grad_() for view in views]


def in_float64(views: list[Tensor]) -> list[Tensor]:
    return [view.detach().double().requires_grad_(view.requires_grad) for view in views]


def assert_close_in_scale(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """The largest difference is at most ``tolerance`` of the largest entry, or of 0.01 where that is less."""
    assert actual.shape == expected.shape
    difference, scale = (actual.double() - expected.double()).abs().max(), expected.abs().max().clamp_min(0.01)
    assert difference <= tolerance * scale, f"off by {difference:.3g} at a scale of {scale:.3g}"
