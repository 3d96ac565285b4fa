"""Steps whose loss or gradient is not finite are left out, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOST_IN_A_ROW = 3


class StepGuard(nn.Module):
    """Keeps NaN and infinity out of weights, optimizer and running statistics, and counts the steps left out.

    Everything is decided on the device: a fused optimizer takes ``found_inf``, BatchNorm's statistics are put back.
    A teacher's average goes on meanwhile: the student that it nears is the one of the last good step.
    ``skipped`` counts the steps left out in the whole run, ``in_a_row`` those at its end.
    """

    skipped: Tensor
    in_a_row: Tensor
    longest: Tensor
    bad: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("skipped", "in_a_row"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("longest", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("bad", torch.zeros((), dtype=torch.bool), persistent=False)

    def watch(self, network: nn.Module) -> None:
        """From now on ``judge`` puts back the statistics of ``network`` as they were at the last good step."""
        self.statistics = [b for b in network.buffers() if b.is_floating_point()]
        self.good = _flat(self.statistics)

    @torch.no_grad()
    def judge(self, loss: Tensor, gradients: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Before the optimizer's step: leave it out where loss or gradients, equal in all processes, are not finite."""
        self.bad = ~torch.isfinite(loss)
        if gradients:
            self.bad |= ~torch.isfinite(_whole(torch.nn.utils.get_total_norm(gradients)))
        statistics = _flat(self.statistics)
        self.bad |= ~torch.isfinite(statistics).all().to(loss.device)  # a variance may overflow where the loss does not
        self.skipped += self.bad
        self.in_a_row = (self.in_a_row + 1) * self.bad
        self.longest = torch.maximum(self.longest, self.in_a_row)
        if self.statistics:
            self.good = torch.where(self.bad, self.good, statistics)
            torch._foreach_copy_(self.statistics, _like(self.statistics, self.good))
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = self.bad.float()  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
        elif self.bad:
            optimizer.zero_grad(set_to_none=True)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten().float() for t in tensors]) if tensors else torch.empty(0)


def _like(tensors: list[Tensor], flat: Tensor) -> list[Tensor]:
    parts = torch.split(flat, [t.numel() for t in tensors])
    return [part.view_as(t).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]


def _whole(norm: Tensor) -> Tensor:
    """Of weights spread over processes (FSDP) a norm is a DTensor: the whole of it."""
    full_tensor = getattr(norm, "full_tensor", None)
    whole: Tensor = norm if full_tensor is None else full_tensor()
    return whole
