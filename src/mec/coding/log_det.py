"""log det(I + C) of a square matrix (s, s): exact, or its Taylor series, each with a hand-written backward pass.

The gradient is a matrix polynomial or an inverse of C, so forward computes it and saves nothing else. Autograd
through the powers would save each of them and need twice as many additional products. The value is the sum of one
contribution from each process. In a sharded plan each process computes one block of rows of the gradient, and repeats
only the factorization (s^3 / 3 FLOPs for Cholesky).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mec.coding.cost import Plan, choose_step
from mec.coding.gram import Group, all_gather_rows, get_world_size

REPLICATED = Plan(feature_side=True, sharded=False)


def log_det(C: Tensor, order: int | None, symmetric: bool, plan: Plan = REPLICATED, group: Group = None) -> Tensor:
    """Return the contribution of this process to log |det(I + C)|, or to its series if ``order`` is not None.

    C is what gram.py computes with the same plan. ``symmetric`` matrices must be positive semi-definite.
    """
    if order is None and C.device.type == "mps":  # MPS lacks some factorizations; C is the smallest tensor to move
        return log_det(C.cpu(), None, symmetric, plan, group).to(C.device)
    with torch.autocast(C.device.type, enabled=False):
        value: Tensor = _LogDet.apply(C, order, symmetric, plan, group)
    if plan.sharded or get_world_size(group) == 1:
        return value
    # Every process computes the whole value. Its gradient is not divided: C also enters the contributions of the other
    # processes, and their gradients do not reach this one.
    return attach_gradient(value.detach() / get_world_size(group), value)


def sum_contributions(contribution: Tensor, group: Group) -> Tensor:
    """Return the sum over processes, in all of them. The gradient is multiplied by the world size, because
    DistributedDataParallel averages gradients, and that average must be the gradient of the global batch."""
    world_size = get_world_size(group)
    if world_size == 1:
        return contribution
    total = contribution.detach().clone()
    dist.all_reduce(total, group=group)
    return attach_gradient(total, contribution, world_size)


def attach_gradient(value: Tensor, source: Tensor, factor: float = 1.0) -> Tensor:
    """Return ``value`` with its own gradient and ``factor`` times that of ``source``, also where one is infinite."""
    attached: Tensor = _AttachGradient.apply(value, source, factor)
    return attached


class _AttachGradient(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, source: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, grad * ctx.factor, None


class _LogDet(Function):
    """Contribution of this process. The gradient is that of the total value: full, or the local rows in a sharded plan
    of the batch side."""

    @staticmethod
    def forward(ctx: Any, C: Tensor, order: int | None, symmetric: bool, plan: Plan, group: Group) -> Tensor:
        if plan.sharded and not plan.feature_side:
            C = all_gather_rows(C, group)
        first, block = 0, len(C)
        if plan.sharded:
            block = -(-len(C) // get_world_size(group))  # the last blocks may extend past the end: those rows are zero
            first = dist.get_rank(group) * block
        with_gradient = ctx.needs_input_grad[0]
        rows: Tensor | None  # of the gradient; None if it is not needed
        if order is None:
            contribution, rows = (_cholesky if symmetric else _lu)(C, first, block, with_gradient)
        elif plan.sharded:
            contribution, rows = _taylor_rows(C, order, first, block)
        else:
            contribution, rows = _taylor(C, order, with_gradient)
        if with_gradient and rows is not None:
            gathered = plan.sharded and plan.feature_side
            ctx.save_for_backward(all_gather_rows(rows, group)[: len(C)] if gathered else rows)
        return contribution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (G,) = ctx.saved_tensors
        return grad * G, None, None, None, None


def _plus_identity(C: Tensor) -> Tensor:
    A = C.clone()
    A.diagonal().add_(1.0)
    return A


def _identity_rows(C: Tensor, first: int, block: int) -> Tensor:
    """Return the rows ``first`` to ``first + block`` of the identity, (block, s), zero past the end."""
    rows = C.new_zeros((block, len(C)))
    rows.diagonal(first).fill_(1.0)
    return rows


def _cholesky(C: Tensor, first: int, block: int, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Return the contribution to log det(I + C) of a positive semi-definite C, and the local rows of (I + C)^-1."""
    lower, failed = torch.linalg.cholesky_ex(_plus_identity(C))
    # rounding can make I + C indefinite when C is 1e7 in float32; ``lower`` is then meaningless
    contribution = torch.where(failed == 0, lower.diagonal()[first : first + block].log().sum() * 2.0, torch.nan)
    if not with_gradient:
        return contribution, None
    # Solve from the right to get rows directly: cholesky_solve takes 1.5 times as long. cholesky_inverse is less work
    # but takes seconds in MKL when another process shares the cores.
    rows = _identity_rows(C, first, block)
    torch.linalg.solve_triangular(lower.T, rows, upper=True, left=False, out=rows)  # local rows of (L^-1)^T
    if block == len(C):
        del lower
        return contribution, rows @ rows.T
    return contribution, torch.linalg.solve_triangular(lower, rows, upper=False, left=False)


def _lu(C: Tensor, first: int, block: int, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Return the contribution to log |det(I + C)|, and the local rows of (I + C)^-T."""
    # LAPACK expects column-major matrices: the transpose has the same determinant and needs no copy
    factors, pivots, _ = torch.linalg.lu_factor_ex(_plus_identity(C).T)
    contribution = factors.diagonal()[first : first + block].abs().log().sum()
    if not with_gradient:
        return contribution, None
    return contribution, torch.linalg.lu_solve(factors, pivots, _identity_rows(C, first, block).T, adjoint=True).T


def _coefficient(k: int) -> float:
    """Return the coefficient of x^k in log(1 + x)."""
    return (-1.0) ** (k + 1) / k


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
        contribution = contribution + trace * _coefficient(k)
        if k < order:
            power = power @ C.T
    return contribution, rows


def _taylor(C: Tensor, order: int, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Return Tr sum_{k=1..order} (-1)^(k+1) C^k / k, and its gradient."""
    s = choose_step(order)
    small = [C]  # C^1 ... C^s
    while len(small) < s:
        small.append(small[-1] @ C)
    giant = [small[-1]]  # C^s, C^2s, ...: the largest exponent stays below order
    while (len(giant) + 1) * s < order:
        giant.append(giant[-1] @ small[-1])

    value = C.new_zeros(())
    for k, power in enumerate(small, start=1):
        value += power.diagonal().sum() * _coefficient(k)
    for j, power in enumerate(giant, start=1):
        for i, factor in enumerate(small[: order - j * s], start=1):
            # Tr C^(js + i) = <C^js, (C^i)^T>: an elementwise sum instead of a matrix product
            trace = factor.T.clone(memory_format=torch.contiguous_format).mul_(power).sum()
            value += trace * _coefficient(j * s + i)
    return value, _geometric_sum(small, giant, order, s).T if with_gradient else None


def _geometric_sum(small: list[Tensor], giant: list[Tensor], order: int, s: int) -> Tensor:
    """Return sum_{k<order} (-C)^k = (sum_{i<s} (-C)^i) (sum_{j<order//s} (-C)^js) + remainder, in at most two
    products."""

    def alternating(powers: list[Tensor], step: int) -> Tensor:
        """Return I + sum_i (-1)^(i step) powers[i - 1], where ``powers`` are C^step, C^2step, ..."""
        total = _identity_rows(small[0], 0, len(small[0]))
        for i, power in enumerate(powers, start=1):
            total.add_(power, alpha=(-1.0) ** (i * step))
        return total

    blocks, remainder = divmod(order, s)
    G = alternating(small[: s - 1], 1)
    if blocks > 1:
        giant_sum = alternating(giant[: blocks - 1], s)
        G = giant_sum if s == 1 else G @ giant_sum
    if remainder == 1:
        G.add_(giant[blocks - 1], alpha=(-1.0) ** (blocks * s))
    elif remainder:
        G.addmm_(giant[blocks - 1], alternating(small[: remainder - 1], 1), alpha=(-1.0) ** (blocks * s))
    return G
