"""log det(I + C) of square matrices (..., s, s): exact, or its Taylor series, each with a backward written by hand.

The gradient is a matrix polynomial, or an inverse, of the same C, so it is made on the way forward and
is all that is kept: autograd through the powers would keep each of them and multiply twice as often again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


@lru_cache(maxsize=64)
def split_order(order: int) -> int:
    """Step s for which the powers C, ..., C^s and C^s, C^2s, ... give every trace up to ``order`` in the
    fewest matrix products (about 2 sqrt(order)); among equals, one that divides ``order``."""

    def products(s: int) -> tuple[int, int]:
        return (s - 1) + max(0, -(-order // s) - 2), order % s

    return min(range(1, order + 1), key=products)


def _plus_identity(C: Tensor) -> Tensor:
    """I + C, in a copy."""
    A = C.clone()
    A.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return A


def _trace(C: Tensor) -> Tensor:
    return C.diagonal(dim1=-2, dim2=-1).sum(-1)


def _signed_sum(first: Tensor, powers: list[Tensor], step: int) -> Tensor:
    """first + sum_i (-1)^(i step) powers[i - 1], with ``powers`` = C^step, C^2step, ... Overwrites ``first``."""
    for i, power in enumerate(powers, start=1):
        first.add_(power, alpha=(-1.0) ** (i * step))
    return first


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

        value = torch.zeros(C.shape[:-2], dtype=C.dtype, device=C.device)
        for k in range(1, order + 1):
            whole, part = divmod(k - 1, s)  # k = whole * s + (part + 1)
            trace = _trace(small[part]) if whole == 0 else (giant[whole - 1] * small[part].mT).sum((-2, -1))
            value += trace * ((-1.0) ** (k + 1) / k)

        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_geometric_sum(small, giant, order, s))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (G,) = ctx.saved_tensors
        return grad[..., None, None] * G.mT, None


def _geometric_sum(small: list[Tensor], giant: list[Tensor], order: int, s: int) -> Tensor:
    """sum_{k<order} (-C)^k = (sum_{i<s} (-C)^i) (sum_{j<order//s} (-C)^js) + rest, in at most two products."""
    blocks, rest = divmod(order, s)
    identity = torch.zeros_like(small[0])
    identity.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    G = _signed_sum(identity.clone(), small[: s - 1], 1)
    if blocks > 1:
        across = _signed_sum(identity.clone(), giant[: blocks - 1], s)
        G = across if s == 1 else G @ across
    if rest:
        last = giant[blocks - 1] * (-1.0) ** (blocks * s)
        G += last if rest == 1 else last @ _signed_sum(identity, small[: rest - 1], 1)
    return G


class _LogDet(Function):
    """log |det(I + C)| by LU. The gradient in C is (I + C)^-T."""

    @staticmethod
    def forward(ctx: Any, C: Tensor) -> Tensor:
        factors, pivots, _ = torch.linalg.lu_factor_ex(_plus_identity(C))
        value = factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        if ctx.needs_input_grad[0]:
            identity = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device).expand_as(C)
            # A^T X = I: solving with the transpose spares a copy
            ctx.save_for_backward(torch.linalg.lu_solve(factors, pivots, identity, adjoint=True))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        inverse_transposed: Tensor = ctx.saved_tensors[0]
        return grad[..., None, None] * inverse_transposed


class _LogDetSymmetric(Function):
    """log det(I + C) of a positive semi-definite C by Cholesky, a third of the work of LU. Gradient (I + C)^-1."""

    @staticmethod
    def forward(ctx: Any, C: Tensor) -> Tensor:
        lower, _ = torch.linalg.cholesky_ex(_plus_identity(C))
        value = lower.diagonal(dim1=-2, dim2=-1).log().sum(-1) * 2.0
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cholesky_inverse(lower))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        inverse: Tensor = ctx.saved_tensors[0]
        return grad[..., None, None] * inverse


def log_det(C: Tensor, order: int | None, symmetric: bool) -> Tensor:
    """log |det(I + C)| for each matrix of C (..., s, s), or its Taylor series up to ``order``. Shape (...)."""
    with torch.autocast(C.device.type, enabled=False):
        value: Tensor
        if order is not None:
            value = _TaylorLogDet.apply(C, order)
        elif C.device.type == "mps":  # factorisations are incomplete there; C is the smallest thing to move
            value = log_det(C.cpu(), None, symmetric).to(C.device)
        else:
            value = (_LogDetSymmetric if symmetric else _LogDet).apply(C)
    return value
