from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from mec.coding.gram import Group, all_gather_rows, get_world_size, world_group


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.rows = group, len(z)
        return all_gather_rows(z, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        start = dist.get_rank(ctx.group) * ctx.rows
        return grad[start : start + ctx.rows] * get_world_size(ctx.group), None


def gather_codes(z: Tensor, group: Group = None) -> Tensor:
    group = world_group() if group is None else group
    return z if get_world_size(group) == 1 else _Gather.apply(z, group)


class Gathered(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, codes: Sequence[Tensor], targets: Sequence[Tensor] | None = None) -> Tensor:
        gathered = [tuple(map(gather_codes, views)) for views in (codes, targets) if views is not None]
        return self.function(*gathered)
