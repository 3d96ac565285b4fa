"""Sums over the aligned pairs of views, without a loop over the pairs: those of a global view and any other view."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def differences(unit: Tensor, num_views: int, num_global: int) -> Tensor:
    """Return rows whose covariance is the mean over the aligned pairs of views of (u_a - u_b) (u_a - u_b)^T / 2.

    Its trace is the disagreement, 1 - mean cosine. One row for each view replaces one for each pair: the difference
    from the mean of the global views, with a factor that counts the pairs.

    Args:
        unit: rows (V m, d) of all views.
        num_views: V.
        num_global: number of global views, with which all others are compared.

    Returns:
        (V m, d); of two views, whose differences from their mean are opposite, (m, d).
    """
    views = unit.view(num_views, -1, unit.shape[1])
    if num_views == 2:
        return (views[0] - views[1]) * math.sqrt(0.5)
    from_mean = (views - views[:num_global].mean(0)).flatten(0, 1)
    of_global = (num_views + num_global) / (2 * num_global * (num_views - 1))
    return _weighted(from_mean, num_views, num_global, of_global)


def weighted_by_pairs(unit: Tensor, num_views: int, num_global: int) -> Tensor:
    """Return rows (V m, d) whose covariance is the mean over the aligned pairs of views of (S_aa + S_bb) / 2.

    That of differences is at most twice it. Views that were counted in it by another weight than in the differences
    would spread without agreement, or collapse.
    """
    return _weighted(unit, num_views, num_global, (num_views + num_global - 2) / (2 * num_global * (num_views - 1)))


def _weighted(rows: Tensor, num_views: int, num_global: int, of_global: float) -> Tensor:
    """Return rows (V m, d) in whose covariance a global view has the weight ``of_global``, a local one 1/(2V - 2)."""
    of_local = 0.5 / (num_views - 1)
    first, rest = rows.tensor_split([len(rows) // num_views * num_global])
    return torch.cat([first * math.sqrt(of_global), rest * math.sqrt(of_local)])
