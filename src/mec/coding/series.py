"""log det(I + C) of a square matrix (s, s): exact, or its Taylor series, each with a backward written by hand.

The gradient is a matrix polynomial, or an inverse, of the same C, so it is made on the way forward and
is all that is kept: autograd through the powers would keep each of them and multiply twice as often again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def split_order(order: int) -> int:
    """Step s for which the powers C, ..., C^s and C^s, C^2s, ... give every trace up to ``order`` in the
    fewest matrix products (about 2 sqrt(order)); among equals, one that divides ``order``."""

    def products(s: int) -> tuple[int, int]:
        return (s - 1) + max(0, -(-order // s) - 2), order % s

    return min(range(1, order + 1), key=products)


def plus_identity(C: Tensor) -> Tensor:
    """I + C, in a copy."""
    A = C.clone()
    A.diagonal().add_(1.0)
    return A


def _identity(C: Tensor) -> Tensor:
    return torch.eye(C.shape[0], dtype=C.dtype, device=C.device)


def _alternating(C: Tensor, powers: list[Tensor], step: int) -> Tensor:
    """I + sum_i (-1)^(i step) powers[i - 1], where ``powers`` are C^step, C^2step, ..."""
    total = _identity(C)
    for i, power in enumerate(powers, start=1):
        total.add_(power, alpha=(-1.0) ** (i * step))
    return total


def taylor(k: int) -> float:
    """Coefficient of x^k in log(1 + x)."""
    return (-1.0) ** (k + 1) / k


class _TaylorLogDet(Function):
    """Tr sum_{k=1..order} (-1)^(k+1) / k C^k. The gradient in C is (sum_{k<order} (-C)^k)^T."""

    @staticmethod
    def forward(ctx: Any, C: Tensor, order: int) -> Tensor:
        s = split_order(order)
        small = [C]  # C^1 ... C^s
        while len(small) < s:
            small.append(small[-1] @ C)
        giant = [small[-1]]  # C^s, C^2s, ...: the largest exponent stays below order
        while (len(giant) + 1) * s < order:
            giant.append(giant[-1] @ small[-1])

        value = C.new_zeros(())
        for k, power in enumerate(small, start=1):
            value += power.diagonal().sum() * taylor(k)
        for j, power in enumerate(giant, start=1):  # Tr C^(js + i) = <C^js, (C^i)^T>: a sum in place of a product
            for i, factor in enumerate(small[: order - j * s], start=1):
                value += factor.T.clone(memory_format=torch.contiguous_format).mul_(power).sum() * taylor(j * s + i)

        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_geometric_sum(small, giant, order, s))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (G,) = ctx.saved_tensors
        return grad * G.T, None


def _geometric_sum(small: list[Tensor], giant: list[Tensor], order: int, s: int) -> Tensor:
    """sum_{k<order} (-C)^k = (sum_{i<s} (-C)^i) (sum_{j<order//s} (-C)^js) + rest, in at most two products."""
    blocks, rest = divmod(order, s)
    C = small[0]
    G = _alternating(C, small[: s - 1], 1)
    if blocks > 1:
        across = _alternating(C, giant[: blocks - 1], s)
        G = across if s == 1 else G @ across
    if rest:
        sign = (-1.0) ** (blocks * s)
        last = giant[blocks - 1]
        if rest == 1:
            G.add_(last, alpha=sign)
        else:
            G.addmm_(last, _alternating(C, small[: rest - 1], 1), alpha=sign)
    return G


class _LogDet(Function):
    """log |det(I + C)| by LU. The gradient in C is (I + C)^-T."""

    @staticmethod
    def forward(ctx: Any, C: Tensor) -> Tensor:
        # LAPACK wants columns: the transpose, of the same determinant, is taken as it lies in memory
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
        # rounding can make I + C indefinite when C is 1e7 in float32; what is left in ``lower`` is then no answer
        value = torch.where(failed == 0, lower.diagonal().log().sum() * 2.0, torch.nan)
        if ctx.needs_input_grad[0]:
            # cholesky_inverse is less work, yet takes seconds in MKL once another process shares the cores
            root = _identity(C)
            torch.linalg.solve_triangular(lower.T, root, upper=True, left=False, out=root)  # (L^-1)^T, in place
            del lower
            ctx.save_for_backward(root @ root.T)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
        (inverse,) = ctx.saved_tensors
        return (grad * inverse,)


def log_det(C: Tensor, order: int | None, symmetric: bool) -> Tensor:
    """log |det(I + C)| of C (s, s), or its Taylor series up to ``order``: a scalar."""
    with torch.autocast(C.device.type, enabled=False):
        value: Tensor
        if order is not None:
            value = _TaylorLogDet.apply(C, order)
        elif C.device.type == "mps":  # factorizations are incomplete there; C is the smallest thing to move
            value = log_det(C.cpu(), None, symmetric).to(C.device)
        else:
            value = (_LogDetSymmetric if symmetric else _LogDet).apply(C)
    return value
