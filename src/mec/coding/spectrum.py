"""Label-free health metrics of codes (m, d), computed from the spectrum of one small matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mec.coding.checks import (
    FORMS,
    check_choice,
    check_distortion,
    check_embeddings,
    check_finite,
    check_pair,
    describe,
)
from mec.coding.gram import (
    MIN_NORM,
    Group,
    all_gather_rows,
    all_reduce_sum,
    gather_counts,
    gram,
    inverse_norms,
    min_rows,
    pad_rows,
    unit_rows,
    upcast,
)


@dataclass(frozen=True)
class Health:
    """Label-free health metrics of the codes of one batch.

    Attributes:
        coding_length: coding length of the batch in nats, (m + d) / 2 * log det (Eq. 1). Grows during training.
        effective_rank: number of directions in use, exp of the entropy of the covariance eigenvalues. Near 1 the
            codes have collapsed.
        rankme: the same for the singular values (RankMe, 2210.02885).
        alpha_req: decay exponent of the eigenvalues (alpha-ReQ, NeurIPS 2022). Best near 1.
        spectral_norm: ||C||_2 of the matrix in the log det, above 1 of which a Taylor series need not converge. None
            for the exact log det, which has no radius of convergence.
    """

    coding_length: float
    effective_rank: float
    rankme: float
    alpha_req: float
    spectral_norm: float | None = None


def _row_counts(z: Tensor, group: Group) -> list[int]:
    """Return the number of rows of z in each process of ``group``."""
    counts = gather_counts(len(z), z.device, group)
    return [len(z)] if counts is None else counts.tolist()


def _eigenvalues(z: Tensor, group: Group = None) -> Tensor:
    """Return the eigenvalues (min(m, d),) of the covariance z^T z / m of unit rows, descending: float64, on the CPU."""
    # float64, because a zero eigenvalue that float32 computes as 1e-8 counts as 1e-4 in the square roots of RankMe
    rows = (z.detach().cpu() if z.device.type == "mps" else z.detach()).double()
    counts = _row_counts(rows, group)
    m, d = sum(counts), rows.shape[1]
    C = gram(unit_rows([pad_rows(rows, max(counts))]), float(m), d < m, group)
    if d >= m:
        C = all_gather_rows(C, group)
    check_finite(C.diagonal().sum(), z=z)
    eigenvalues: Tensor = torch.linalg.eigvalsh(C)
    return eigenvalues.flip(0)[: min(m, d)].clamp_min(0).cpu()


def _exp_entropy(weights: Tensor) -> float:
    total = weights.sum()
    if total <= 0:
        return 0.0
    probabilities = weights / total
    return math.exp(float(torch.special.entr(probabilities).sum()))


def _decay_exponent(eigenvalues: Tensor) -> float:
    # eigenvalues at rounding level are noise and would dominate the fit
    significant = eigenvalues[eigenvalues > eigenvalues.max() * 1e-6]
    if len(significant) < 3:
        return math.inf
    x = torch.arange(1, len(significant) + 1, dtype=significant.dtype).log()
    y = significant.log()
    x = x - x.mean()
    return -float((x * (y - y.mean())).sum() / (x * x).sum())


def rank_metrics(z: Tensor, group: Group = None) -> dict[str, float]:
    """Return effective_rank, rankme and alpha_req of the codes z (m, d), from one decomposition; see ``Health``."""
    return _rank_metrics(_eigenvalues(z, group))


def _rank_metrics(eigenvalues: Tensor) -> dict[str, float]:
    return {
        "effective_rank": _exp_entropy(eigenvalues),
        "rankme": _exp_entropy(eigenvalues.sqrt()),
        "alpha_req": _decay_exponent(eigenvalues),
    }


def effective_rank(z: Tensor) -> float:
    """Return exp of the entropy of the covariance eigenvalues of unit rows: 1 (one direction) to min(m, d).

    Examples:
        >>> round(effective_rank(torch.eye(6)), 3)
        6.0
    """
    check_embeddings("z", z)
    return _exp_entropy(_eigenvalues(z))


def rankme(z: Tensor) -> float:
    """Return exp of the entropy of the singular values of unit rows (Garrido et al. 2022, RankMe, Eq. 1)."""
    check_embeddings("z", z)
    return _exp_entropy(_eigenvalues(z).sqrt())


def alpha_req(z: Tensor) -> float:
    """Return the exponent a of the least-squares fit eigenvalue_i ~ i^-a (Agrawal et al. 2022), inf for fewer than
    three directions."""
    check_embeddings("z", z)
    return _decay_exponent(_eigenvalues(z))


def spectral_norm(p: Tensor, z: Tensor, distortion: float, steps: int = 16, group: Group = None) -> float:
    """Return ||p z^T / (m distortion)||_2 of unit rows by power iteration, a lower bound that is tight after ``steps``.
    The Taylor series of the coding rate converges where this is below 1. ``group`` as in ``health``."""
    check_pair("p", p, "z", z, min_rows(group))
    check_distortion(distortion)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected an integer >= 1, got {describe(steps)}")
    p, z = upcast((p.detach(), z.detach()))
    p, z = p * inverse_norms(p), z * inverse_norms(z)
    counts = _row_counts(z, group)
    m, first = sum(counts), sum(counts[: dist.get_rank(group)]) if len(counts) > 1 else 0
    # a fixed start makes the value reproducible; each process holds its local rows of v and sends vectors of size d
    v = torch.linspace(1.0, 2.0, m, dtype=z.dtype, device=z.device)[first : first + len(z)]
    for _ in range(steps):
        u = all_reduce_sum(torch.cat([z.T @ v, v.square().sum(0, keepdim=True)]), group)  # z^T v and |v|^2
        u = u[:-1] / u[-1].sqrt().clamp_min(MIN_NORM)  # 0 for zero codes
        v = z @ all_reduce_sum(p.T @ (p @ u), group)
    square = all_reduce_sum(v.square().sum(), group)
    check_finite(square, p=p, z=z)
    # ||C^T C v|| of a unit v tends to ||C||^2; the m x m matrix is never formed
    return math.sqrt(math.sqrt(float(square))) / (m * distortion)


def health(
    p: Tensor,
    z: Tensor,
    distortion: float,
    group: Group = None,
    series: Literal["cross", "pooled", "reduction"] | None = None,
) -> Health:
    """Return the health metrics of the codes z (m, d).

    Args:
        p: codes of the other view, or predictions, (m, d); only ``spectral_norm`` depends on them.
        z: codes, (m, d), m >= 2, or m >= 1 in each of several processes.
        distortion: the paper's eps_d^2 > 0.
        group: process group whose rows form the batch, and all of whose processes must call this; None is this process
            alone.
        series: form of a loss with an order, which adds the spectral norm of its matrix: cross, that of p and z;
            pooled or reduction, that of the codes of both views.
    """
    check_pair("p", p, "z", z, min_rows(group))
    check_distortion(distortion)
    check_choice("series", series, FORMS)
    eigenvalues = _eigenvalues(z, group)
    counts = _row_counts(z, group)
    norm = None
    if series is not None:
        matrix = (p, z) if series == "cross" else (torch.cat([p, z]),) * 2
        norm = spectral_norm(*matrix, distortion, group=group)
    return Health(
        coding_length=float(torch.log1p(eigenvalues / distortion).sum()) * (sum(counts) + z.shape[1]) / 2,
        spectral_norm=norm,
        **_rank_metrics(eigenvalues),
    )
