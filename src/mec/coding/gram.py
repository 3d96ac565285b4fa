"""The matrix under the log det: inner products of codes, on the smaller side, joined over processes.

Since det(I + AB) = det(I + BA) and Tr (AB)^k = Tr (BA)^k, the m x m matrix p z^T and the d x d
matrix z^T p have the same coding rate; m counts the rows of all processes.

``group`` names the processes to join; None is this one alone. On the feature side each gets the whole d x d matrix,
a sum over processes; else its own rows of the m x m one, from everybody's codes. The gradient asked for is
accordingly that in the whole matrix, or in the own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Group: TypeAlias = "dist.ProcessGroup | None"
SMALLEST_NORM = 1e-12


def all_processes() -> Group:
    """The group of all processes, or None when there is but this one."""
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def size_of(group: Group) -> int:
    return 1 if group is None else dist.get_world_size(group)


def gather_rows(z: Tensor, group: Group) -> Tensor:
    """(m, d) of each process -> (m * processes, d) in order of rank, without gradient; m is the same in all."""
    size = size_of(group)
    if size == 1:
        return z
    joined = z.new_empty((size * z.shape[0], z.shape[1]))
    dist.all_gather_into_tensor(joined, z.contiguous(), group=group)
    return joined


def _sum_own_rows(z: Tensor, group: Group) -> Tensor:
    """(m * processes, d) of each process -> the own m rows of the sum over processes: gather_rows turned round."""
    size = size_of(group)
    if size == 1:
        return z
    own = z.new_empty((len(z) // size, z.shape[1]))
    dist.reduce_scatter_tensor(own, z.contiguous(), group=group)
    return own


def own_rows(m: int, group: Group) -> slice:
    """Where the m rows of this process are in ``gather_rows``."""
    first = m * dist.get_rank(group) if size_of(group) > 1 else 0
    return slice(first, first + m)


def sum_over(x: Tensor, group: Group) -> Tensor:
    """The sum over processes, in place, without gradient."""
    if size_of(group) > 1:
        dist.all_reduce(x, group=group)
    return x


def inverse_norms(z: Tensor) -> Tensor:
    """(m, d) -> (m, 1), and 0 for a zero row, which so has cosine 0 to everything and no gradient."""
    norms = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return torch.where(norms > SMALLEST_NORM, norms.clamp_min(SMALLEST_NORM).reciprocal(), 0.0)


def _row_dots(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i>: (m, d), (m, d) -> (m, 1), without the (m, d) product that a sum would go through."""
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).squeeze(2)


def _tangent(grad: Tensor, z: Tensor, inverse: Tensor) -> Tensor:
    """Gradient in z (m, d), from that in its unit rows already divided by |z|: the part across z. Overwrites it."""
    along = _row_dots(grad, z) * inverse.square()
    return grad.addcmul_(z, along, value=-1.0)


class _CrossGram(Function):
    """sum_i z_i p_i^T / scale (d, d), or own rows of p z^T / scale, of unit rows. No unit copy is kept."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, z: Tensor, scale: float, feature_side: bool, group: Group) -> Tensor:
        p_inverse, z_inverse = inverse_norms(p), inverse_norms(z)
        joined: tuple[Tensor, ...] = ()
        if feature_side:
            C = sum_over(z.T @ (p * (p_inverse * z_inverse / scale)), group)
        else:
            joined = all_z, all_z_inverse = gather_rows(z, group), gather_rows(z_inverse, group)
            C = (p @ all_z.T).mul_(p_inverse / scale).mul_(all_z_inverse.T)
        ctx.save_for_backward(p, z, p_inverse, z_inverse, *joined)
        ctx.scale, ctx.group = scale, group
        return C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, z, p_inverse, z_inverse, *joined = ctx.saved_tensors
        grad_p = grad_z = None
        if ctx.needs_input_grad[0]:
            if joined:
                all_z, all_z_inverse = joined
                across = (grad * (p_inverse / ctx.scale)).mul_(all_z_inverse.T) @ all_z
            else:
                across = (z @ grad).mul_(p_inverse * z_inverse / ctx.scale)
            grad_p = _tangent(across, p, p_inverse)
        if ctx.needs_input_grad[1]:
            if joined:
                all_z, all_z_inverse = joined
                # what the own rows of C give to everybody's z, and then what everybody gives to the own
                across = _sum_own_rows((grad.T * (all_z_inverse / ctx.scale)).mul_(p_inverse.T) @ p, ctx.group)
            else:
                across = (p @ grad.T).mul_(p_inverse * z_inverse / ctx.scale)
            grad_z = _tangent(across, z, z_inverse)
        return grad_p, grad_z, None, None, None


class _SelfGram(Function):
    """u^T u / scale (d, d), or own rows of u u^T / scale, of the unit rows u of all views; and the mean cosine
    between the own rows of the first view and those of the last.

    The matrix is positive semi-definite. What follows is a function of a symmetric matrix, so that its
    gradient is taken to be symmetric.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, feature_side: bool, group: Group, *views: Tensor) -> tuple[Tensor, Tensor]:
        m = len(views[0])
        rows = torch.cat(views)  # a copy even of one view: it becomes the unit rows
        inverse = inverse_norms(rows)
        unit = all_unit = rows.mul_(inverse)
        cosine = _row_dots(unit[:m], unit[-m:]).mean()
        if feature_side:
            C = sum_over((unit.T @ unit).div_(scale), group)
        else:
            all_unit = gather_rows(unit, group)
            C = (unit @ all_unit.T).div_(scale)
        ctx.save_for_backward(unit, all_unit, inverse)
        ctx.scale, ctx.feature_side, ctx.views = scale, feature_side, len(views)
        return C, cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_cosine: Tensor) -> tuple[Tensor | None, ...]:
        unit, all_unit, inverse = ctx.saved_tensors
        across = unit @ grad if ctx.feature_side else grad @ all_unit
        across.mul_(inverse * (2 / ctx.scale))
        m = len(unit) // ctx.views
        if ctx.views > 1:
            across[:m].addcmul_(unit[-m:], inverse[:m] * (grad_cosine / m))
            across[-m:].addcmul_(unit[:m], inverse[-m:] * (grad_cosine / m))
        across.addcmul_(unit, _row_dots(across, unit), value=-1.0)
        grads: tuple[Tensor, ...] = across.split(m)
        return None, None, None, *grads


def in_full_precision(views: Sequence[Tensor]) -> list[Tensor]:
    """All in one dtype: float64 if any of them is, else float32."""
    dtype = torch.float64 if any(z.dtype == torch.float64 for z in views) else torch.float32
    return [z.to(dtype) for z in views]


def cross_gram(p: Tensor, z: Tensor, scale: float, feature_side: bool, group: Group = None) -> Tensor:
    """Unit rows of p (m, d) against unit rows of z (m, d): z^T p / scale (d, d), or own rows of p z^T / scale."""
    with torch.autocast(p.device.type, enabled=False):
        C: Tensor = _CrossGram.apply(*in_full_precision((p, z)), scale, feature_side, group)
    return C


def self_gram(views: Sequence[Tensor], scale: float, feature_side: bool, group: Group = None) -> tuple[Tensor, Tensor]:
    """Unit rows u of one or two views (m, d) against themselves: u^T u / scale (d, d), or own rows of u u^T / scale.

    Also the mean cosine between row i of the first view and row i of the last, of this process; a zero row counts as 0.
    """
    with torch.autocast(views[0].device.type, enabled=False):
        C, cosine = _SelfGram.apply(scale, feature_side, group, *in_full_precision(views))
    return C, cosine
