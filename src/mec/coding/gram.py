"""Gram matrices of normalized codes: the matrix C in log det(I + C), over the m rows of all processes of ``group``.

Since det(I + AB) = det(I + BA) and Tr (AB)^k = Tr (BA)^k, the m x m matrix p z^T (batch side) and the d x d
matrix z^T p (feature side) have the same coding rate. On the feature side each process holds the full matrix, an
all-reduced sum; on the batch side its local rows, computed from the all-gathered codes. The backward pass expects the
gradient with respect to the same. Without a group (None) the rows are those of this process.

All processes pass the same number of rows. Where they hold different numbers, ``pad_rows`` adds zero rows: these have
cosine 0 with every row, so that they change neither det(I + C) nor any trace, if ``scale`` counts the others only.
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
Scale: TypeAlias = float | Tensor  # a tensor is a scalar on the device of the codes
MIN_NORM = 1e-12
"""Rows with a smaller norm count as zero."""


def world_group() -> Group:
    """Return the group of all processes, or None without torch.distributed."""
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def get_world_size(group: Group) -> int:
    return 1 if group is None else dist.get_world_size(group)


def min_rows(group: Group) -> int:
    """Return the smallest number of rows that a process may hold: codes of one image have no rate."""
    return 2 if get_world_size(group) == 1 else 1


def gather_counts(count: int, device: torch.device, group: Group) -> Tensor | None:
    """Return the counts (world_size,) of all processes on ``device``, without waiting for it; None for one process."""
    if get_world_size(group) == 1:
        return None
    return all_gather_rows(torch.full((1, 1), count, device=device), group)[:, 0]


def pad_rows(z: Tensor, rows: int) -> Tensor:
    """Append zero rows to z (m, d) up to ``rows``."""
    return z if len(z) == rows else torch.nn.functional.pad(z, (0, 0, 0, rows - len(z)))


def all_gather_rows(z: Tensor, group: Group) -> Tensor:
    """Concatenate the (m, d) rows of all processes, in rank order, without gradient. m must be equal in all."""
    world_size = get_world_size(group)
    if world_size == 1:
        return z
    gathered = z.new_empty((world_size * len(z), z.shape[1]))
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.14
    all_gather(gathered, z.contiguous(), group=group)
    return gathered


def _reduce_scatter_rows(z: Tensor, group: Group) -> Tensor:
    """Sum (m * world_size, d) over processes and return the local m rows: the adjoint of ``all_gather_rows``."""
    world_size = get_world_size(group)
    if world_size == 1:
        return z
    local = z.new_empty((len(z) // world_size, z.shape[1]))
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    reduce_scatter(local, z.contiguous(), group=group)
    return local


def all_reduce_sum(x: Tensor, group: Group) -> Tensor:
    """Sum over processes, in place, without gradient."""
    if get_world_size(group) > 1:
        dist.all_reduce(x, group=group)
    return x


def inverse_norms(z: Tensor) -> Tensor:
    """Return 1 / |z_i| as (m, 1). A zero row gets 0: its cosine with every row is 0 and it has no gradient."""
    norms = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return torch.where(norms > MIN_NORM, norms.clamp_min(MIN_NORM).reciprocal(), 0.0)


def _row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Return <a_i, b_i>: (m, d), (m, d) -> (m, 1), without materializing the (m, d) product."""
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).squeeze(2)


def _normalize_backward(grad: Tensor, z: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient in z (m, d): ``grad``, that in the unit rows divided by |z|, without its radial component.
    Overwrites ``grad``."""
    radial = _row_dots(grad, z) * inverse.square()
    return grad.addcmul_(z, radial, value=-1.0)


class _CrossGram(Function):
    """sum_i z_i p_i^T / scale (d, d), or the local rows of p z^T / scale, of unit rows. Saves no normalized copy."""

    @staticmethod
    def forward(
        ctx: Any, p: Tensor, z: Tensor, scale: Scale, feature_side: bool, group: Group, z_is_mean: bool
    ) -> Tensor:
        p_inverse = inverse_norms(p)
        z_inverse = torch.ones_like(p_inverse) if z_is_mean else inverse_norms(z)
        gathered: tuple[Tensor, ...] = ()
        if feature_side:
            C = all_reduce_sum(z.T @ (p * (p_inverse * z_inverse / scale)), group)
        else:
            gathered = all_z, all_z_inverse = all_gather_rows(z, group), all_gather_rows(z_inverse, group)
            C = (p @ all_z.T).mul_(p_inverse / scale).mul_(all_z_inverse.T)
        ctx.save_for_backward(p, z, p_inverse, z_inverse, *gathered)
        ctx.scale, ctx.feature_side, ctx.group, ctx.z_is_mean = scale, feature_side, group, z_is_mean
        return C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, z, p_inverse, z_inverse, *gathered = ctx.saved_tensors
        all_z, all_z_inverse = gathered or (z, z_inverse)
        grad_p = grad_z = None
        if ctx.needs_input_grad[0]:
            if ctx.feature_side:
                grad_unit = (z @ grad).mul_(p_inverse * z_inverse / ctx.scale)
            else:
                grad_unit = (grad * (p_inverse / ctx.scale)).mul_(all_z_inverse.T) @ all_z
            grad_p = _normalize_backward(grad_unit, p, p_inverse)
        if ctx.needs_input_grad[1]:
            if ctx.feature_side:
                grad_unit = (p @ grad.T).mul_(p_inverse * z_inverse / ctx.scale)
            else:
                # the local rows of C contribute to the z of every process: sum these over processes, keep the local z
                grad_all_z = (grad.T * (all_z_inverse / ctx.scale)).mul_(p_inverse.T) @ p
                grad_unit = _reduce_scatter_rows(grad_all_z, ctx.group)
            grad_z = grad_unit if ctx.z_is_mean else _normalize_backward(grad_unit, z, z_inverse)
        return grad_p, grad_z, None, None, None, None


class _UnitRows(Function):
    """All views (m, d) below each other, (V m, d), with rows of length 1; zero rows stay zero."""

    @staticmethod
    def forward(ctx: Any, *views: Tensor) -> Tensor:
        rows = torch.cat(views)  # a copy even of a single view, because it is normalized in place
        inverse = inverse_norms(rows)
        unit = rows.mul_(inverse)
        ctx.save_for_backward(unit, inverse)
        ctx.num_views = len(views)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        unit, inverse = ctx.saved_tensors
        grad = torch.addcmul(grad, unit, _row_dots(grad, unit), value=-1.0).mul_(inverse)
        return torch.split(grad, len(unit) // ctx.num_views)


class _Gram(Function):
    """R^T R / scale (d, d), or the local rows of R R^T / scale, of rows R. The incoming gradient must be symmetric."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Scale, feature_side: bool, group: Group) -> Tensor:
        all_rows = rows if feature_side else all_gather_rows(rows, group)
        ctx.save_for_backward(rows, all_rows)
        ctx.scale, ctx.feature_side = scale, feature_side
        if feature_side:
            return all_reduce_sum((rows.T @ rows).div_(scale), group)
        return (rows @ all_rows.T).div_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, all_rows = ctx.saved_tensors
        grad_rows = rows @ grad if ctx.feature_side else grad @ all_rows
        return grad_rows.mul_(2 / ctx.scale), None, None, None


def upcast(views: Sequence[Tensor]) -> list[Tensor]:
    """Convert all views to one dtype: float64 if any of them is float64, else float32."""
    dtype = torch.float64 if any(z.dtype == torch.float64 for z in views) else torch.float32
    return [z.to(dtype) for z in views]


def cross_gram(
    p: Tensor, z: Tensor, scale: Scale, feature_side: bool, group: Group = None, z_is_mean: bool = False
) -> Tensor:
    """Return z^T p / scale (d, d), or the local rows of p z^T / scale, of the unit rows of p and z (m, d). A z whose
    rows are means of unit rows (``z_is_mean``) is not normalized."""
    with torch.autocast(p.device.type, enabled=False):
        C: Tensor = _CrossGram.apply(*upcast((p, z)), scale, feature_side, group, z_is_mean)
    return C


def unit_rows(views: Sequence[Tensor]) -> Tensor:
    """Return the rows of all views (m, d) below each other, scaled to length 1: (V m, d), float32 or float64."""
    with torch.autocast(views[0].device.type, enabled=False):
        unit: Tensor = _UnitRows.apply(*upcast(views))
    return unit


def gram(rows: Tensor, scale: Scale, feature_side: bool, group: Group = None) -> Tensor:
    """Return R^T R / scale (d, d), or the local rows of R R^T / scale, of rows R (n, d), which are not normalized."""
    with torch.autocast(rows.device.type, enabled=False):
        C: Tensor = _Gram.apply(rows, scale, feature_side, group)
    return C
