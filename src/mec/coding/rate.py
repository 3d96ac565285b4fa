"""Coding rates of codes, as functions, and their parts of one process for the loss.

m is the number of codes, d their dimension, ``distortion`` the paper's eps_d^2 = eps^2 / d: lambda^-1 = m * distortion.
All values are in nats, computed in float32 or float64 even under autocast, and differentiable once.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mec.coding.checks import check_distortion, check_embeddings, check_finite, check_order, check_pair
from mec.coding.cost import cheapest_plan
from mec.coding.gram import Group, Scale, cross_gram, get_world_size, gram, unit_rows
from mec.coding.log_det import log_det


def coding_rate(z: Tensor, distortion: float, order: int | None = None) -> Tensor:
    """Return the coding rate of z in nats: log det(I + z z^T / (m distortion)).

    Args:
        z: codes, (m, d), m >= 2, any scale: rows are normalized; a zero row stays zero.
        distortion: the paper's eps_d^2 > 0. A smaller value means a finer code.
        order: None for the exact log det, by Cholesky on the smaller of m x m and d x d; n >= 1 for the
            first n terms of its Taylor series, which converges when the norm of the matrix is below 1.

    Returns:
        A scalar: 0 for zero codes, log(1 + 1/distortion) when all rows are equal,
        d log(1 + 1/(d distortion)) when they are spread evenly over d <= m directions.

    Raises:
        ValueError: an invalid argument; the message names it, the expected value and the actual one.

    Examples:
        >>> import torch
        >>> collapsed, spread = torch.ones(8, 8), torch.eye(8)
        >>> round(coding_rate(collapsed, distortion=0.125).item(), 4)  # log(1 + 8)
        2.1972
        >>> round(coding_rate(spread, distortion=0.125).item(), 4)  # 8 log(1 + 1)
        5.5452
    """
    check_embeddings("z", z)
    check_distortion(distortion)
    check_order(order)
    value = self_rate(unit_rows([z]), distortion, order, len(z), None)
    check_finite(value, z=z)
    return value


def cross_coding_rate(p: Tensor, z: Tensor, distortion: float, order: int | None = None) -> Tensor:
    """Return the coding rate shared by two views: log |det(I + p z^T / (m distortion))| (Eq. 3 without mu).

    Args:
        p: codes of one view, (m, d), m >= 2; rows are normalized.
        z: codes of the other view, (m, d); row i belongs to the same image as row i of p.
        distortion: the paper's eps_d^2 > 0.
        order: None for the exact log |det| by LU; n >= 1 for Tr sum_{k<=n} (-1)^(k+1)/k C^k with
            C = p z^T / (m distortion). C is not symmetric: the series is unbounded where its eigenvalues exceed 1
            in absolute value (see docs/objective.md).

    Returns:
        A scalar; equal to ``coding_rate(z)`` when p = z.

    Raises:
        ValueError: an invalid argument; the message names it, the expected value and the actual one.

    Examples:
        >>> import torch
        >>> p, z = torch.randn(16, 4), torch.randn(16, 4)
        >>> cosine = torch.nn.functional.cosine_similarity(p, z).mean()
        >>> torch.allclose(cross_coding_rate(p, z, distortion=1.0, order=1), cosine, atol=1e-6)
        True
    """
    check_pair("p", p, "z", z)
    check_distortion(distortion)
    check_order(order)
    value = cross_rate(p, z, distortion, order, Rows(len(p), len(p), len(p)), None)
    check_finite(value, p=p, z=z)
    return value


def coding_length(z: Tensor, distortion: float) -> Tensor:
    """Return the coding length of the rows of z (m, d) in nats, (m + d) / 2 * coding_rate (Eq. 1).

    Examples:
        >>> import torch
        >>> round(coding_length(torch.eye(8), distortion=0.125).item(), 3)  # (8 + 8) / 2 * 8 log 2
        44.361
    """
    m, d = z.shape if getattr(z, "ndim", 0) == 2 else (0, 0)
    return coding_rate(z, distortion) * ((m + d) / 2)


class Rows(NamedTuple):
    """Numbers of rows of one view in a batch over all processes."""

    local: int  # in this process
    padded: int  # in each process after padding with zero rows, equal in all
    total: Scale  # in all processes together, without the padding


def cross_rate(
    p: Tensor, z: Tensor, distortion: float, order: int | None, rows: Rows, group: Group, z_is_mean: bool = False
) -> Tensor:
    """Return the contribution of this process to the cross coding rate of the rows (padded, d) of all processes; for
    ``z_is_mean`` see ``cross_gram``."""
    world_size = get_world_size(group)
    plan = cheapest_plan(rows.padded * world_size, p.shape[1], world_size, order, symmetric=False)
    C = cross_gram(p, z, rows.total * distortion, plan.feature_side, group, z_is_mean)
    return log_det(C, order, False, plan, group)


def self_rate(rows: Tensor, distortion: float, order: int | None, scale: Scale, group: Group) -> Tensor:
    """Return the contribution of this process to the coding rate log det(I + R^T R / (scale distortion)) of the rows R
    (n, d) of all processes, which are not normalized. n must be equal in all."""
    world_size = get_world_size(group)
    plan = cheapest_plan(len(rows) * world_size, rows.shape[1], world_size, order, symmetric=True)
    C = gram(rows, scale * distortion, plan.feature_side, group)
    return log_det(C, order, True, plan, group)
