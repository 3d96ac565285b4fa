"""log det(I + C) of the batch of many processes: each works on its own block and has a share of the value.

The shares of all processes sum to the value. Rows of the gradient dL/dC are computed in blocks, one a process: by
the powers of C, or from its factors. What is replicated is the factorization itself, s^3 / 3 by Cholesky.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mec.coding.cost import Way
from mec.coding.gram import Group, gather_rows, size_of
from mec.coding.series import log_det, plus_identity, taylor


def share_of_log_det(C: Tensor, order: int | None, symmetric: bool, way: Way, group: Group) -> Tensor:
    """Scalar share of log |det(I + C)|, or of its series.

    C is whole (d, d) on the feature side, and the own rows of (rows, rows) else, as gram.py makes it.
    """
    share: Tensor
    if size_of(group) == 1:
        share = log_det(C, order, symmetric)
    elif not way.shared:
        share = _EqualShare.apply(log_det(C, order, symmetric), size_of(group))
    else:
        with torch.autocast(C.device.type, enabled=False):
            share = _SharedLogDet.apply(C, order, symmetric, way.feature_side, group)
    return share


def sum_of_shares(share: Tensor, group: Group) -> Tensor:
    """The value, in all processes the same.

    Its gradient is multiplied by their number, so that the average which DistributedDataParallel takes over
    the gradients leaves that of the joined batch.
    """
    if size_of(group) == 1:
        return share
    total: Tensor = _SumOfShares.apply(share, group)
    return total


class _SumOfShares(Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, group: Group) -> Tensor:
        total = share.clone()
        dist.all_reduce(total, group=group)
        ctx.size = size_of(group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.size, None


class _EqualShare(Function):
    """Of a value that every process has. The gradient is that of the value, as that of _SharedLogDet."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, size: int) -> Tensor:
        return value / size

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _SharedLogDet(Function):
    """Own share of the value. The gradient is that of the value: whole on the feature side, own rows else."""

    @staticmethod
    def forward(ctx: Any, C: Tensor, order: int | None, symmetric: bool, feature_side: bool, group: Group) -> Tensor:
        if not feature_side:
            C = gather_rows(C, group)
        block = -(-len(C) // size_of(group))  # the last blocks run over the end: their rows there are zero
        first = dist.get_rank(group) * block
        with_gradient = ctx.needs_input_grad[0]
        if order is not None:
            share, rows = _taylor_rows(C, order, first, block)
        else:
            share, rows = (_cholesky_rows if symmetric else _lu_rows)(C, first, block, with_gradient)
        if with_gradient:
            ctx.save_for_backward(gather_rows(rows, group)[: len(C)] if feature_side else rows)
        return share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (G,) = ctx.saved_tensors
        return grad * G, None, None, None, None


def _identity_rows(C: Tensor, first: int, block: int) -> Tensor:
    """(block, s): rows ``first`` and on of the identity, zero past the end."""
    rows = C.new_zeros((block, len(C)))
    rows.diagonal(first).fill_(1.0)
    return rows


def _taylor_rows(C: Tensor, order: int, first: int, block: int) -> tuple[Tensor, Tensor]:
    """Share of Tr sum_{k=1..order} (-1)^(k+1) / k C^k, and own rows of its gradient (sum_{k<order} (-C)^k)^T."""
    own = C[first : first + block]
    power = C.new_zeros((block, len(C)))
    power[: len(own)] = C.T[first : first + block]  # own rows of (C^k)^T
    rows = _identity_rows(C, first, block)
    share = power.diagonal(first).sum()
    for k in range(2, order + 1):
        rows.add_(power, alpha=(-1.0) ** (k - 1))
        share = share + (own * power[: len(own)]).sum() * taylor(k)  # Tr C^k = <C, (C^(k-1))^T>
        if k < order:
            power = power @ C.T
    return share, rows


def _cholesky_rows(C: Tensor, first: int, block: int, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Share of log det(I + C) of a positive semi-definite C, and own rows of (I + C)^-1."""
    lower, failed = torch.linalg.cholesky_ex(plus_identity(C))
    share = lower.diagonal()[first : first + block].log().sum() * 2.0
    rows = _identity_rows(C, first, block)
    if with_gradient:
        # from the right, so that rows stay rows: cholesky_solve takes half as long again
        rows = torch.linalg.solve_triangular(lower.T, rows, upper=True, left=False)
        rows = torch.linalg.solve_triangular(lower, rows, upper=False, left=False)
    return torch.where(failed == 0, share, torch.nan), rows


def _lu_rows(C: Tensor, first: int, block: int, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Share of log |det(I + C)|, and own rows of (I + C)^-T."""
    factors, pivots, _ = torch.linalg.lu_factor_ex(plus_identity(C).T)  # columns, as LAPACK wants them
    share = factors.diagonal()[first : first + block].abs().log().sum()
    rows = _identity_rows(C, first, block)
    if with_gradient:
        rows = torch.linalg.lu_solve(factors, pivots, rows.T, adjoint=True).T
    return share, rows
