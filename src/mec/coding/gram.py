"""The matrix under the log det: inner products of codes, on the smaller side, joined over processes.

Since det(I + AB) = det(I + BA) and Tr (AB)^k = Tr (BA)^k, the m x m matrix p z^T and the d x d
matrix z^T p have the same coding rate; the smaller one is built, m counting the rows of all processes.

``group`` names the processes to join; None is this one alone. Gradients are multiplied by their number, so
that the average which DistributedDataParallel takes over them leaves the gradient of the joined batch.
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


def _own_rows(m: int, group: Group) -> slice:
    first = m * (dist.get_rank(group) if size_of(group) > 1 else 0)
    return slice(first, first + m)


def _on_feature_side(z: Tensor, group: Group) -> bool:
    return z.shape[1] < z.shape[0] * size_of(group)


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
    """sum_i z_i p_i^T / scale (d, d), or p z^T / scale (m, m), of unit rows. No unit copy is kept."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, z: Tensor, scale: float, group: Group) -> Tensor:
        p_inverse, z_inverse = inverse_norms(p), inverse_norms(z)
        if _on_feature_side(p, group):
            C = z.T @ (p * (p_inverse * z_inverse / scale))
            if size_of(group) > 1:
                dist.all_reduce(C, group=group)
            ctx.save_for_backward(p, z, p_inverse, z_inverse)
        else:
            # own rows of C from everybody's z, then the rows are gathered: C is the smaller matrix here
            all_z, all_z_inverse = gather_rows(z, group), gather_rows(z_inverse, group)
            C = gather_rows((p @ all_z.T).mul_(p_inverse / scale).mul_(all_z_inverse.T), group)
            all_p, all_p_inverse = p, p_inverse
            if ctx.needs_input_grad[1]:
                all_p, all_p_inverse = gather_rows(p, group), gather_rows(p_inverse, group)
            ctx.save_for_backward(p, z, p_inverse, z_inverse, all_p, all_z, all_p_inverse, all_z_inverse)
        ctx.scale, ctx.group = scale, group
        return C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, z, p_inverse, z_inverse, *joined = ctx.saved_tensors
        factor = size_of(ctx.group) / ctx.scale
        own = _own_rows(p.shape[0], ctx.group)
        grad_p = grad_z = None
        if ctx.needs_input_grad[0]:
            if joined:
                _, all_z, _, all_z_inverse = joined
                across = (grad[own] * (p_inverse * factor)).mul_(all_z_inverse.T) @ all_z
            else:
                across = (z @ grad).mul_(p_inverse * z_inverse * factor)
            grad_p = _tangent(across, p, p_inverse)
        if ctx.needs_input_grad[1]:
            if joined:
                all_p, _, all_p_inverse, _ = joined
                across = (grad[:, own].T * (z_inverse * factor)).mul_(all_p_inverse.T) @ all_p
            else:
                across = (p @ grad.T).mul_(p_inverse * z_inverse * factor)
            grad_z = _tangent(across, z, z_inverse)
        return grad_p, grad_z, None, None


class _SelfGram(Function):
    """u^T u / scale (d, d), or u u^T / scale (rows, rows), of the unit rows u of all views; and the mean cosine
    between the rows of the first view and those of the last.

    The matrix is positive semi-definite. What follows is a function of a symmetric matrix, so that its
    gradient is taken to be symmetric.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, group: Group, *views: Tensor) -> tuple[Tensor, Tensor]:
        m = len(views[0])
        rows = torch.cat(views)  # a copy even of one view: it becomes the unit rows
        inverse = inverse_norms(rows)
        unit = all_unit = rows.mul_(inverse)
        cosine = _row_dots(unit[:m], unit[-m:]).mean()
        if size_of(group) > 1:
            dist.all_reduce(cosine, group=group)
            cosine /= size_of(group)
        if _on_feature_side(unit, group):
            C = (unit.T @ unit).div_(scale)
            if size_of(group) > 1:
                dist.all_reduce(C, group=group)
        else:
            all_unit = gather_rows(unit, group)
            C = gather_rows((unit @ all_unit.T).div_(scale), group)
        ctx.save_for_backward(unit, all_unit, inverse)
        ctx.scale, ctx.group, ctx.views = scale, group, len(views)
        return C, cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_cosine: Tensor) -> tuple[Tensor | None, ...]:
        unit, all_unit, inverse = ctx.saved_tensors
        if _on_feature_side(unit, ctx.group):
            across = unit @ grad
        else:
            across = grad[_own_rows(len(unit), ctx.group)] @ all_unit
        across.mul_(inverse * (2 * size_of(ctx.group) / ctx.scale))
        m = len(unit) // ctx.views
        if ctx.views > 1:
            # that of the own mean: the average over processes makes it the joined one's
            across[:m].addcmul_(unit[-m:], inverse[:m] * (grad_cosine / m))
            across[-m:].addcmul_(unit[:m], inverse[-m:] * (grad_cosine / m))
        across.addcmul_(unit, _row_dots(across, unit), value=-1.0)
        grads: tuple[Tensor, ...] = across.split(m)
        return None, None, *grads


def in_full_precision(views: Sequence[Tensor]) -> list[Tensor]:
    """All in one dtype: float64 if any of them is, else float32."""
    dtype = torch.float64 if any(z.dtype == torch.float64 for z in views) else torch.float32
    return [z.to(dtype) for z in views]


def cross_gram(p: Tensor, z: Tensor, scale: float, group: Group) -> Tensor:
    """Unit rows of p (m, d) against unit rows of z (m, d): p z^T / scale (m, m), or z^T p / scale (d, d) if d < m."""
    with torch.autocast(p.device.type, enabled=False):
        C: Tensor = _CrossGram.apply(*in_full_precision((p, z)), scale, group)
    return C


def self_gram(views: Sequence[Tensor], scale: float, group: Group) -> tuple[Tensor, Tensor]:
    """Unit rows u of one or two views (m, d) against themselves: u u^T / scale, or u^T u / scale where that is smaller.

    Also the mean cosine between row i of the first view and row i of the last; a zero row counts as 0.
    """
    with torch.autocast(views[0].device.type, enabled=False):
        C, cosine = _SelfGram.apply(scale, group, *in_full_precision(views))
    return C, cosine
