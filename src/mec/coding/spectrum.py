"""Label-free health of a set of codes, all read off the spectrum of one small matrix.

Functions take codes (m, d) and give a Python float; ``health`` gives all of them for one decomposition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mec.coding.checks import check_distortion, check_embeddings, check_finite, check_pair
from mec.coding.gram import (
    SMALLEST_NORM,
    Group,
    gather_rows,
    in_full_precision,
    inverse_norms,
    own_rows,
    self_gram,
    size_of,
    sum_over,
)


@dataclass(frozen=True)
class Health:
    """What the codes of one batch say about a run, without labels.

    Attributes:
        coding_length: nats that code the batch, (m + d) / 2 * log det (Eq. 1). Grows while learning.
        spectral_norm: ||C||_2 of the matrix in the log det. Above 1 a truncated series need not converge.
        effective_rank: directions in use, exp of the entropy of the covariance eigenvalues. Near 1: collapsed.
        rankme: the same for singular values (RankMe, 2210.02885).
        alpha_req: decay exponent of the eigenvalues (alpha-ReQ, NeurIPS 2022); good near 1.
    """

    coding_length: float
    spectral_norm: float
    effective_rank: float
    rankme: float
    alpha_req: float


def _eigenvalues(z: Tensor, group: Group = None) -> Tensor:
    """Of the covariance z^T z / m of unit rows, falling, at most min(m, d); they sum to 1. float64, on the CPU."""
    # from float64 rows: a zero eigenvalue read as 1e-8 in float32 counts as 1e-4 in the square roots of RankMe
    rows = (z.detach().cpu() if z.device.type == "mps" else z.detach()).double()
    m, d = len(rows) * size_of(group), rows.shape[1]
    C, _ = self_gram([rows], float(m), d < m, group)
    if d >= m:
        C = gather_rows(C, group)
    check_finite(C.diagonal().sum(), z=z)
    eigenvalues: Tensor = torch.linalg.eigvalsh(C)
    return eigenvalues.flip(0).clamp_min(0).cpu()


def _exp_entropy(weights: Tensor) -> float:
    total = weights.sum()
    if total <= 0:
        return 0.0
    share = weights / total
    return math.exp(float(torch.special.entr(share).sum()))


def _decay_exponent(eigenvalues: Tensor) -> float:
    # eigenvalues at rounding level say nothing of the codes and would rule the fit
    kept = eigenvalues[eigenvalues > eigenvalues.max() * 1e-6]
    if len(kept) < 3:
        return math.inf
    x = torch.arange(1, len(kept) + 1, dtype=kept.dtype).log()
    y = kept.log()
    x = x - x.mean()
    return -float((x * (y - y.mean())).sum() / (x * x).sum())


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the covariance eigenvalues of unit rows: 1 (one direction) to min(m, d).

    Examples:
        >>> round(effective_rank(torch.eye(6)), 3)
        6.0
    """
    check_embeddings("z", z)
    return _exp_entropy(_eigenvalues(z))


def rankme(z: Tensor) -> float:
    """exp of the entropy of the singular values of unit rows (Garrido et al. 2022, RankMe, Eq. 1)."""
    check_embeddings("z", z)
    return _exp_entropy(_eigenvalues(z).sqrt())


def alpha_req(z: Tensor) -> float:
    """Exponent a of the least-squares fit eigenvalue_i ~ i^-a (Agrawal et al. 2022); inf below three directions."""
    check_embeddings("z", z)
    return _decay_exponent(_eigenvalues(z))


def spectral_norm(p: Tensor, z: Tensor, distortion: float, steps: int = 16) -> float:
    """||p z^T / (m distortion)||_2 of unit rows, by power iteration: a lower bound, close after ``steps``.

    The Taylor series of the coding rate converges where this is below 1.
    """
    check_pair("p", p, "z", z)
    check_distortion(distortion)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected an integer >= 1, got {steps!r}")
    return _spectral_norm(p.detach(), z.detach(), distortion, steps)


def _spectral_norm(p: Tensor, z: Tensor, distortion: float, steps: int = 16, group: Group = None) -> float:
    p, z = in_full_precision((p, z))
    p, z = p * inverse_norms(p), z * inverse_norms(z)
    # fixed, that the figure is repeatable; each process holds its own rows of v and sends vectors of d only
    v = torch.linspace(1.0, 2.0, len(z) * size_of(group), dtype=z.dtype, device=z.device)[own_rows(len(z), group)]
    for _ in range(steps):
        across = sum_over(torch.cat([z.T @ v, v.square().sum(0, keepdim=True)]), group)
        across = across[:-1] / across[-1].sqrt().clamp_min(SMALLEST_NORM)  # of zero codes it is 0
        v = z @ sum_over(p.T @ (p @ across), group)
    square = sum_over(v.square().sum(), group)
    check_finite(square, p=p, z=z)
    # ||C^T C v|| of a unit v tends to ||C||^2; the m x m matrix is never made
    return math.sqrt(math.sqrt(float(square))) / (len(z) * size_of(group) * distortion)


def health(p: Tensor, z: Tensor, distortion: float, group: Group = None) -> Health:
    """All measures for the codes of two views: the norm of the pair, the rest of z alone.

    Args:
        p: codes of one view, (m, d), m >= 2; rows are normalized.
        z: codes of the other view, (m, d).
        distortion: the paper's eps_d^2 > 0.
        group: joins the rows of several processes, each of which must then call this; None is this one alone.

    Raises:
        ValueError: naming the argument, what came and what was expected.
    """
    check_pair("p", p, "z", z)
    check_distortion(distortion)
    norm = _spectral_norm(p.detach(), z.detach(), distortion, group=group)
    eigenvalues = _eigenvalues(z, group)
    m, d = z.shape[0] * size_of(group), z.shape[1]
    return Health(
        coding_length=float(torch.log1p(eigenvalues / distortion).sum()) * (m + d) / 2,
        spectral_norm=norm,
        effective_rank=_exp_entropy(eigenvalues),
        rankme=_exp_entropy(eigenvalues.sqrt()),
        alpha_req=_decay_exponent(eigenvalues),
    )
