"""Codes of all processes, for an objective that is written for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mec.coding.gram import Group, all_gather_rows, gather_counts, get_world_size, pad_rows, world_group


def gather_codes(z: Tensor, group: Group = None) -> Tensor:
    """Concatenate the rows of z (m, d) of all processes, in rank order; their numbers may differ.

    The gradient is right if every process computes the same loss L of the gathered codes, and processes average their
    gradients, as DistributedDataParallel does. With W processes, weights w and the rows z_r of process r, the gradient
    of the joined batch is sum_r (dz_r/dw)^T dL/dz_r, and the average is 1/W sum_r (dz_r/dw)^T g_r for the gradient g_r
    that process r propagates. So g_r = W dL/dz_r: its own rows of the gradient that it has already computed, times W.
    The backward pass needs no communication.

    Args:
        z: (m, d), m >= 1. All processes must call this.
        group: process group; None uses all processes.
    """
    group = world_group() if group is None else group
    if get_world_size(group) == 1:
        return z
    gathered: Tensor = _Gather.apply(z, group)
    return gathered


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Group) -> Tensor:
        counts = gather_counts(len(z), z.device, group)
        assert counts is not None  # there are several processes
        rows: list[int] = counts.tolist()
        rank, most = dist.get_rank(group), max(rows)
        ctx.first, ctx.rows, ctx.world_size = sum(rows[:rank]), len(z), len(rows)
        gathered = all_gather_rows(pad_rows(z, most), group)
        if min(rows) == most:
            return gathered
        return torch.cat([block[:n] for block, n in zip(torch.split(gathered, most), rows, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad[ctx.first : ctx.first + ctx.rows] * ctx.world_size, None


class Gathered(nn.Module):
    """An objective of the codes of all processes: gathers codes and targets and calls ``objective`` in each process.

    Value and averaged gradient are those of the joined batch in one process; see ``gather_codes``. All processes must
    compute the same: an objective that draws random numbers (SIGReg) takes them from torch's global generator, which
    the caller seeds equally in all processes before the call.

    Args:
        objective: callable ``objective(codes)`` or ``objective(codes, targets)`` on tuples with a tensor (m, d) for
            each view.
        group: process group; None uses all processes.
    """

    joins_processes = True

    def __init__(self, objective: Callable[..., Tensor], group: Group = None) -> None:
        super().__init__()
        self.objective, self.group = objective, group

    def forward(self, codes: Sequence[Tensor], targets: Sequence[Tensor] | None = None) -> Tensor:
        """Return the loss of the codes of all processes, equal in all of them."""
        return self.objective(*self.gather(codes, targets))

    def gather(self, codes: Sequence[Tensor], targets: Sequence[Tensor] | None = None) -> list[tuple[Tensor, ...]]:
        """Return the arguments of ``objective``: the codes of all processes, and the targets if there are any."""
        arguments = [codes] if targets is None else [codes, targets]
        return [tuple(gather_codes(z, self.group) for z in views) for views in arguments]
