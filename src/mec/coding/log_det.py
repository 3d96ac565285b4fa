"""log det(I + C) of a square matrix (s, s): exact, or its Taylor series, each with a hand-written backward pass.

The gradient is a matrix polynomial or an inverse of C, so forward computes it and saves nothing else. Autograd
through the powers would save each of them and need twice as many additional products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def choose_step(order: int) -> int:
    """Return the step s for which the powers C, ..., C^s and C^s, C^2s, ... give every trace up to ``order`` with
    the fewest matrix products (about 2 sqrt(order)). Ties prefer a step that divides ``order``."""

    def num_products(s: int) -> tuple[int, int]:
        return (s - 1) + max(0, -(-order // s) - 2), order % s

    return min(range(1, order + 1), key=num_products)


def plus_identity(C: Tensor) -> Tensor:
    """Return a copy, I + C."""
    A = C.clone()
    A.diagonal().add_(1.0)
    return A


def _identity(C: Tensor) -> Tensor:
    return torch.eye(C.shape[0], dtype=C.dtype, device=C.device)


def _alternating(C: Tensor, powers: list[Tensor], step: int) -> Tensor:
    """Return I + sum_i (-1)^(i step) powers[i - 1], where ``powers`` are C^step, C^2step, ..."""
    total = _identity(C)
    for i, power in enumerate(powers, start=1):
        total.add_(power, alpha=(-1.0) ** (i * step))
    return total


def taylor_coefficient(k: int) -> float:
    """Return the coefficient of x^k in log(1 + x)."""
    return (-1.0) ** (k + 1) / k


class _TaylorLogDet(Function):
    """Tr sum_{k=1..order} (-1)^(k+1) / k C^k. The gradient in C is (sum_{k<order} (-C)^k)^T."""

    @staticmethod
    def forward(ctx: Any, C: Tensor, order: int) -> Tensor:
        s = choose_step(order)
        small = [C]  # C^1 ... C^s
        while len(small) < s:
            small.append(small[-1] @ C)
        giant = [small[-1]]  # C^s, C^2s, ...: the largest exponent stays below order
        while (len(giant) + 1) * s < order:
            giant.append(giant[-1] @ small[-1])

        value = C.new_zeros(())
        for k, power in enumerate(small, start=1):
            value += power.diagonal().sum() * taylor_coefficient(k)
        for j, power in enumerate(giant, start=1):
            for i, factor in enumerate(small[: order - j * s], start=1):
                # Tr C^(js + i) = <C^js, (C^i)^T>: an elementwise sum instead of a matrix product
                trace = factor.T.clone(memory_format=torch.contiguous_format).mul_(power).sum()
                value += trace * taylor_coefficient(j * s + i)

        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_geometric_sum(small, giant, order, s))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (G,) = ctx.saved_tensors
        return grad * G.T, None


def _geometric_sum(small: list[Tensor], giant: list[Tensor], order: int, s: int) -> Tensor:
    """Return sum_{k<order} (-C)^k = (sum_{i<s} (-C)^i) (sum_{j<order//s} (-C)^js) + remainder, in at most two
    products."""
    blocks, remainder = divmod(order, s)
    C = small[0]
    G = _alternating(C, small[: s - 1], 1)
    if blocks > 1:
        giant_sum = _alternating(C, giant[: blocks - 1], s)
        G = giant_sum if s == 1 else G @ giant_sum
    if remainder:
        sign = (-1.0) ** (blocks * s)
        last = giant[blocks - 1]
        if remainder == 1:
            G.add_(last, alpha=sign)
        else:
            G.addmm_(last, _alternating(C, small[: remainder - 1], 1), alpha=sign)
    return G


class _LogDet(Function):
    """log |det(I + C)| by LU. The gradient in C is (I + C)^-T."""

    @staticmethod
    def forward(ctx: Any, C: Tensor) -> Tensor:
        # LAPACK expects column-major matrices: the transpose has the same determinant and needs no copy
        factors, pivots, _ = torch.linalg.lu_factor_ex(plus_identity(C).T)
        value: Tensor = factors.diagonal().abs().log().sum()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.linalg.lu_solve(factors, pivots, _identity(C).T, adjoint=True))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
        (inverse,) = ctx.saved_tensors
        return (grad * inverse.T,)


class _LogDetSymmetric(Function):
    """log det(I + C) of a positive semi-definite C by Cholesky, half the work of LU. Gradient (I + C)^-1."""

    @staticmethod
    def forward(ctx: Any, C: Tensor) -> Tensor:
        lower, failed = torch.linalg.cholesky_ex(plus_identity(C))
        # rounding can make I + C indefinite when C is 1e7 in float32; ``lower`` is then meaningless
        value = torch.where(failed == 0, lower.diagonal().log().sum() * 2.0, torch.nan)
        if ctx.needs_input_grad[0]:
            # cholesky_inverse is less work but takes seconds in MKL when another process shares the cores
            inverse_lower_t = _identity(C)  # becomes (L^-1)^T
            torch.linalg.solve_triangular(lower.T, inverse_lower_t, upper=True, left=False, out=inverse_lower_t)
            del lower
            ctx.save_for_backward(inverse_lower_t @ inverse_lower_t.T)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
        (inverse,) = ctx.saved_tensors
        return (grad * inverse,)


def log_det(C: Tensor, order: int | None, symmetric: bool) -> Tensor:
    """Return log |det(I + C)| of C (s, s), or its Taylor series up to ``order``: a scalar."""
    with torch.autocast(C.device.type, enabled=False):
        value: Tensor
        if order is not None:
            value = _TaylorLogDet.apply(C, order)
        elif C.device.type == "mps":  # MPS lacks some factorizations; C is the smallest tensor to move
            value = log_det(C.cpu(), None, symmetric).to(C.device)
        else:
            value = (_LogDetSymmetric if symmetric else _LogDet).apply(C)
    return value
