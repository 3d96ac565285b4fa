"""Skip steps whose loss or gradient is not finite, without synchronizing with the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

MAX_CONSECUTIVE_SKIPS = 3


class StepGuard(nn.Module):
    """Keeps NaN and infinity out of weights, optimizer state and running statistics, and counts the skipped steps.

    Decisions are made on the device: a fused optimizer takes ``found_inf``, and BatchNorm's running statistics are
    restored. The teacher's moving average continues: the student that it follows is the one of the last finite step.

    Other optimizers get no gradients, and then change neither weights nor averages; this synchronizes with the device.
    The number of steps by which LAMB and Adan correct their averages counts a skipped step.
    """

    skipped_steps: Tensor  # in the whole run
    consecutive_skips: Tensor  # up to the current step
    max_consecutive_skips: Tensor  # since this process started

    def __init__(self) -> None:
        super().__init__()
        for name in ("skipped_steps", "consecutive_skips", "max_consecutive_skips"):
            count = torch.zeros((), dtype=torch.int64)
            self.register_buffer(name, count, persistent=name != "max_consecutive_skips")

    def track_statistics(self, network: nn.Module) -> None:
        """Restore the running statistics of ``network`` at every skipped step from now on."""
        self.statistics = [b for b in network.buffers() if b.is_floating_point()]
        self.finite_statistics = _flatten(self.statistics)

    @torch.no_grad()
    def skip_if_non_finite(self, loss: Tensor, gradients: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Make the next step of the optimizer a no-op if the loss or a gradient is not finite. The loss is the same in
        all processes; the gradients are too, or are sharded over them."""
        non_finite = ~torch.isfinite(loss)
        if gradients:
            norm: Any = torch.nn.utils.get_total_norm(gradients)
            if isinstance(norm, DTensor):  # sharded weights (FSDP): the norm over all processes
                norm = norm.full_tensor()
            non_finite |= ~torch.isfinite(norm)
        statistics = _flatten(self.statistics)
        # a variance may overflow where the loss does not
        non_finite |= ~torch.isfinite(statistics).all().to(loss.device)
        self.skipped_steps += non_finite
        self.consecutive_skips = (self.consecutive_skips + 1) * non_finite
        self.max_consecutive_skips = torch.maximum(self.max_consecutive_skips, self.consecutive_skips)
        if self.statistics:
            self.finite_statistics = torch.where(non_finite, self.finite_statistics, statistics)
            pieces = torch.split(self.finite_statistics, [t.numel() for t in self.statistics])
            restored = [piece.view_as(t).to(t.dtype) for piece, t in zip(pieces, self.statistics, strict=True)]
            torch._foreach_copy_(self.statistics, restored)
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = non_finite.float()  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
        elif non_finite:
            optimizer.zero_grad(set_to_none=True)


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten().float() for t in tensors]) if tensors else torch.empty(0)
