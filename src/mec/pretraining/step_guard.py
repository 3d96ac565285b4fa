"""Skip steps whose loss or gradient is not finite, without synchronizing with the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MAX_CONSECUTIVE_SKIPS = 3


class StepGuard(nn.Module):
    """Keeps NaN and infinity out of weights, optimizer state and running statistics, and counts the skipped steps.

    All decisions are made on the device: a fused optimizer takes ``found_inf``, and BatchNorm's running statistics are
    restored. The teacher's moving average continues: the student that it follows is the one of the last finite step.

    Attributes:
        skipped_steps: steps skipped in the whole run.
        consecutive_skips: steps skipped in a row, up to the current step.
        max_consecutive_skips: the largest ``consecutive_skips`` since this process started.
        non_finite: whether the current step is skipped.
    """

    skipped_steps: Tensor
    consecutive_skips: Tensor
    max_consecutive_skips: Tensor
    non_finite: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("skipped_steps", "consecutive_skips"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("max_consecutive_skips", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("non_finite", torch.zeros((), dtype=torch.bool), persistent=False)

    def track_statistics(self, network: nn.Module) -> None:
        """Restore the running statistics of ``network`` at every skipped step from now on."""
        self.statistics = [b for b in network.buffers() if b.is_floating_point()]
        self.finite_statistics = _flatten(self.statistics)

    @torch.no_grad()
    def skip_if_non_finite(self, loss: Tensor, gradients: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Make the next optimizer step a no-op if the loss or a gradient is not finite.

        Args:
            loss: the same in all processes.
            gradients: the same in all processes, or sharded over them.
            optimizer: called before its ``step``.
        """
        self.non_finite = ~torch.isfinite(loss)
        if gradients:
            self.non_finite |= ~torch.isfinite(_full_tensor(torch.nn.utils.get_total_norm(gradients)))
        statistics = _flatten(self.statistics)
        # a variance may overflow where the loss does not
        self.non_finite |= ~torch.isfinite(statistics).all().to(loss.device)
        self.skipped_steps += self.non_finite
        self.consecutive_skips = (self.consecutive_skips + 1) * self.non_finite
        self.max_consecutive_skips = torch.maximum(self.max_consecutive_skips, self.consecutive_skips)
        if self.statistics:
            self.finite_statistics = torch.where(self.non_finite, self.finite_statistics, statistics)
            torch._foreach_copy_(self.statistics, _unflatten_like(self.statistics, self.finite_statistics))
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = self.non_finite.float()  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
        elif self.non_finite:
            optimizer.zero_grad(set_to_none=True)


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten().float() for t in tensors]) if tensors else torch.empty(0)


def _unflatten_like(tensors: list[Tensor], flat: Tensor) -> list[Tensor]:
    pieces = torch.split(flat, [t.numel() for t in tensors])
    return [piece.view_as(t).to(t.dtype) for piece, t in zip(pieces, tensors, strict=True)]


def _full_tensor(norm: Tensor) -> Tensor:
    """Return the norm over all processes: with sharded weights (FSDP) ``norm`` is a DTensor."""
    full_tensor = getattr(norm, "full_tensor", None)
    full: Tensor = norm if full_tensor is None else full_tensor()
    return full
