"""The matrix under the log det: inner products of codes, on the smaller side, joined over processes.

Since det(I + AB) = det(I + BA) and Tr (AB)^k = Tr (BA)^k, the m x m matrix p z^T and the d x d
matrix z^T p have the same coding rate; the smaller one is built, m counting the rows of all processes.

``group`` names the processes to join; None is this one alone. Gradients are multiplied by their number, so
that the average which DistributedDataParallel takes over them leaves the gradient of the joined batch.
"""

from __future__ import annotations

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


def _through_normalisation(grad_unit: Tensor, z: Tensor, inverse: Tensor) -> Tensor:
    """Gradient in the unit rows z / |z| -> gradient in z. Overwrites ``grad_unit``."""
    along = (grad_unit * z).sum(dim=1, keepdim=True) * inverse**3
    return grad_unit.mul_(inverse).addcmul_(z, along, value=-1.0)


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
                unit = (grad[own] * (all_z_inverse.T * factor)) @ all_z
            else:
                unit = (z @ grad).mul_(z_inverse * factor)
            grad_p = _through_normalisation(unit, p, p_inverse)
        if ctx.needs_input_grad[1]:
            if joined:
                all_p, _, all_p_inverse, _ = joined
                unit = (grad[:, own].T * (all_p_inverse.T * factor)) @ all_p
            else:
                unit = (p @ grad.T).mul_(p_inverse * factor)
            grad_z = _through_normalisation(unit, z, z_inverse)
        return grad_p, grad_z, None, None


class _SelfGram(Function):
    """z^T z / scale (d, d), or z z^T / scale (m, m), of unit rows: positive semi-definite."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: float, group: Group) -> Tensor:
        inverse = inverse_norms(z)
        unit = z * inverse
        if _on_feature_side(z, group):
            C = (unit.T @ unit).div_(scale)
            if size_of(group) > 1:
                dist.all_reduce(C, group=group)
            ctx.save_for_backward(z, inverse, unit)
        else:
            all_unit = gather_rows(unit, group)
            C = gather_rows((unit @ all_unit.T).div_(scale), group)
            ctx.save_for_backward(z, inverse, all_unit)
        ctx.scale, ctx.group = scale, group
        return C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        z, inverse, unit = ctx.saved_tensors
        both = grad + grad.T
        if _on_feature_side(z, ctx.group):
            grad_unit = unit @ both
        else:
            grad_unit = both[_own_rows(z.shape[0], ctx.group)] @ unit
        grad_unit.mul_(size_of(ctx.group) / ctx.scale)
        return _through_normalisation(grad_unit, z, inverse), None, None


class _MeanCosine(Function):
    """Mean over the rows of all processes of the cosine between p_i and z_i, with the gradient of the own mean:
    DistributedDataParallel's average makes it that of the joined one."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, z: Tensor, group: Group) -> Tensor:
        p_inverse, z_inverse = inverse_norms(p), inverse_norms(z)
        mean = ((p * z).sum(dim=1, keepdim=True) * p_inverse * z_inverse).mean()
        if size_of(group) > 1:
            dist.all_reduce(mean, group=group)
            mean /= size_of(group)
        ctx.save_for_backward(p, z, p_inverse, z_inverse)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, z, p_inverse, z_inverse = ctx.saved_tensors
        share = grad / p.shape[0]
        grad_p = _through_normalisation(z * (z_inverse * share), p, p_inverse) if ctx.needs_input_grad[0] else None
        grad_z = _through_normalisation(p * (p_inverse * share), z, z_inverse) if ctx.needs_input_grad[1] else None
        return grad_p, grad_z, None


def in_full_precision(z: Tensor) -> Tensor:
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def cross_gram(p: Tensor, z: Tensor, scale: float, group: Group) -> Tensor:
    """Unit rows of p (m, d) against unit rows of z (m, d): p z^T / scale (m, m), or z^T p / scale (d, d) if d < m."""
    with torch.autocast(p.device.type, enabled=False):
        C: Tensor = _CrossGram.apply(in_full_precision(p), in_full_precision(z), scale, group)
    return C


def self_gram(z: Tensor, scale: float, group: Group) -> Tensor:
    """Unit rows of z (m, d) against themselves: z z^T / scale (m, m), or z^T z / scale (d, d) if d < m."""
    with torch.autocast(z.device.type, enabled=False):
        C: Tensor = _SelfGram.apply(in_full_precision(z), scale, group)
    return C


def mean_cosine(p: Tensor, z: Tensor, group: Group) -> Tensor:
    """Mean cosine between row i of p (m, d) and row i of z (m, d); a zero row counts as 0."""
    with torch.autocast(p.device.type, enabled=False):
        mean: Tensor = _MeanCosine.apply(in_full_precision(p), in_full_precision(z), group)
    return mean
