"""log det(I + C) of the global batch of several processes: each process computes its own block.

C (s, s) is the Gram matrix of gram.py: s = d on the feature side, s = the rows of all processes on the batch side.
The value is the sum of one contribution from each process. The gradient dL/dC is computed in blocks of rows, one per
process: from the powers of C, or from its factors. Every process repeats only the factorization: s^3 / 3 FLOPs for
Cholesky.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mec.coding.cost import Plan
from mec.coding.gram import Group, all_gather_rows, get_world_size
from mec.coding.log_det import log_det, plus_identity, taylor_coefficient


def log_det_contribution(C: Tensor, order: int | None, symmetric: bool, plan: Plan, group: Group) -> Tensor:
    """Return the scalar contribution of this process to log |det(I + C)|, or to its series.

    Args:
        C: the full matrix on the feature side, the local rows of the matrix on the batch side, as gram.py returns them.
        order: None for the exact log det, or the number of terms of the series.
        symmetric: whether the matrix is positive semi-definite.
        plan: the plan that C was computed with.
        group: the processes that share the work.
    """
    contribution: Tensor
    if get_world_size(group) == 1:
        contribution = log_det(C, order, symmetric)
    elif not plan.sharded:
        contribution = _EqualContribution.apply(log_det(C, order, symmetric), get_world_size(group))
    else:
        with torch.autocast(C.device.type, enabled=False):
            contribution = _ShardedLogDet.apply(C, order, symmetric, plan.feature_side, group)
    return contribution


def sum_contributions(contribution: Tensor, group: Group) -> Tensor:
    """Return the sum over processes, the same value in all of them.

    The gradient is multiplied by the world size: DistributedDataParallel averages gradients over processes, and that
    average must be the gradient of the global batch.
    """
    if get_world_size(group) == 1:
        return contribution
    total: Tensor = _SumContributions.apply(contribution, group)
    return total


class _SumContributions(Function):
    @staticmethod
    def forward(ctx: Any, contribution: Tensor, group: Group) -> Tensor:
        total = contribution.clone()
        dist.all_reduce(total, group=group)
        ctx.world_size = get_world_size(group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.world_size, None


class _EqualContribution(Function):
    """1 / world_size of a value that every process computes in full. The gradient is that of the value.

    It is not divided: C also enters the contributions of the other processes, and their gradients do not reach this
    process. _ShardedLogDet returns the gradient of the total for the same reason.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, world_size: int) -> Tensor:
        return value / world_size

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ShardedLogDet(Function):
    """Contribution of this process. The gradient is that of the total value: full on the feature side, local rows on
    the batch side."""

    @staticmethod
    def forward(ctx: Any, C: Tensor, order: int | None, symmetric: bool, feature_side: bool, group: Group) -> Tensor:
        if not feature_side:
            C = all_gather_rows(C, group)
        block = -(-len(C) // get_world_size(group))  # the last blocks may extend past the end: those rows are zero
        first = dist.get_rank(group) * block
        with_gradient = ctx.needs_input_grad[0]
        if order is not None:
            contribution, rows = _taylor_rows(C, order, first, block)
        else:
            contribution, rows = (_cholesky_rows if symmetric else _lu_rows)(C, first, block, with_gradient)
        if with_gradient:
            ctx.save_for_backward(all_gather_rows(rows, group)[: len(C)] if feature_side else rows)
        return contribution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (G,) = ctx.saved_tensors
        return grad * G, None, None, None, None


def _identity_rows(C: Tensor, first: int, block: int) -> Tensor:
    """Return the rows ``first`` to ``first + block`` of the identity, (block, s), zero past the end."""
    rows = C.new_zeros((block, len(C)))
    rows.diagonal(first).fill_(1.0)
    return rows


def _taylor_rows(C: Tensor, order: int, first: int, block: int) -> tuple[Tensor, Tensor]:
    """Return the contribution to Tr sum_{k=1..order} (-1)^(k+1) C^k / k, and the local rows of its gradient
    (sum_{k<order} (-C)^k)^T."""
    local = C[first : first + block]
    power = C.new_zeros((block, len(C)))
    power[: len(local)] = C.T[first : first + block]  # local rows of (C^k)^T
    rows = _identity_rows(C, first, block)
    contribution = power.diagonal(first).sum()
    for k in range(2, order + 1):
        rows.add_(power, alpha=(-1.0) ** (k - 1))
        trace = (local * power[: len(local)]).sum()  # Tr C^k = <C, (C^(k-1))^T>
        contribution = contribution + trace * taylor_coefficient(k)
        if k < order:
            power = power @ C.T
    return contribution, rows


def _cholesky_rows(C: Tensor, first: int, block: int, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Return the contribution to log det(I + C) of a positive semi-definite C, and the local rows of (I + C)^-1.

    Without ``with_gradient`` the rows are those of the identity.
    """
    lower, failed = torch.linalg.cholesky_ex(plus_identity(C))
    contribution = lower.diagonal()[first : first + block].log().sum() * 2.0
    rows = _identity_rows(C, first, block)
    if with_gradient:
        # solve from the right to get rows directly: cholesky_solve takes 1.5 times as long
        rows = torch.linalg.solve_triangular(lower.T, rows, upper=True, left=False)
        rows = torch.linalg.solve_triangular(lower, rows, upper=False, left=False)
    return torch.where(failed == 0, contribution, torch.nan), rows


def _lu_rows(C: Tensor, first: int, block: int, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Return the contribution to log |det(I + C)|, and the local rows of (I + C)^-T.

    Without ``with_gradient`` the rows are those of the identity.
    """
    factors, pivots, _ = torch.linalg.lu_factor_ex(plus_identity(C).T)  # LAPACK expects column-major matrices
    contribution = factors.diagonal()[first : first + block].abs().log().sum()
    rows = _identity_rows(C, first, block)
    if with_gradient:
        rows = torch.linalg.lu_solve(factors, pivots, rows.T, adjoint=True).T
    return contribution, rows
