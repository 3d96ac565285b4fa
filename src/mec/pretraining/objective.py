"""Calls objectives of any kind in pretraining: the recipe's, or a callable of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mec.coding import rank_metrics
from mec.coding.gram import world_group
from mec.errors import InputError
from mec.models.siamese import PerView
from mec.objectives.gather import Gathered
from mec.pretraining.parts import describe_part


class Objective(nn.Module):
    """An objective ``function(codes) -> scalar``, or ``function(codes, targets)`` where the network has targets.

    Codes are a tuple with a tensor (m, d) per view, in float32, outside autocast. With several processes the function
    gets the codes of all, and the average of the gradients of the processes is the gradient of the whole batch; if its
    attribute ``joins_processes`` is true, it gets the codes of this process and joins them itself.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        if not callable(function):
            raise InputError(f"objective: expected a callable (codes) -> scalar, got {type(function).__name__}")
        self.name = describe_part(function)
        self.function = function if getattr(function, "joins_processes", False) else Gathered(function)
        self.targets: Literal["student", "teacher"] | None = getattr(function, "targets", None)
        self.predictor = bool(getattr(function, "predictor", True))
        self.batch_norm = bool(getattr(function, "batch_norm", True))
        self._health: Callable[..., Mapping[str, float]] | None = getattr(function, "health", None)
        self._warmup: Callable[[float], None] | None = getattr(function, "warmup", None)

    def forward(self, codes: PerView, targets: PerView | None = None) -> Tensor:
        """Return the loss, a scalar."""
        with torch.autocast(codes[0].device.type, enabled=False):
            loss: Tensor = self.function(*_arguments(codes, targets))
        if not isinstance(loss, Tensor) or loss.ndim > 0:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"objective: {self.name}: expected a scalar tensor, got {got}")
        return loss

    @torch.no_grad()
    def health(self, codes: PerView, targets: PerView | None = None) -> dict[str, float]:
        """Return the metrics of the function, if it has any, and the ranks of the codes of the last view."""
        metrics: Mapping[str, float] = {}
        if self._health is not None:
            arguments = _arguments(codes, targets)
            if isinstance(self.function, Gathered):
                arguments = tuple(self.function.gather(*arguments))
            metrics = self._health(*arguments)
        ranks = {} if "effective_rank" in metrics else rank_metrics((targets or codes)[-1], world_group())
        return {name: float(value) for name, value in (ranks | dict(metrics)).items()}

    def warmup(self, progress: float) -> None:
        """Set the fraction of the warm-up that is done, in [0, 1]."""
        if self._warmup is not None:
            self._warmup(progress)

    def check(self, views: int, rows: int, dim: int, has_targets: bool) -> tuple[str, ...]:
        """Call the function with random codes (rows, dim) of each view, and return the names of its metrics.

        Raises:
            InputError: the function fails, or does not return a finite scalar with a gradient.
        """
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(2, views, rows, dim, generator=generator)
        codes, targets = tuple(z[0].requires_grad_().unbind()), tuple(z[1].unbind()) if has_targets else None
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        try:
            with torch.random.fork_rng(devices=[]):
                self.warmup(0.0)
                loss = self(codes, targets)
                names = tuple(self.health(codes, targets))
        except InputError:
            raise
        except Exception as error:  # of the user's function
            arguments = "codes and targets" if has_targets else "codes"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"objective: {self.name}: failed for {arguments} of {views} views: {reason}") from error
        self.load_state_dict(state, strict=False)  # running averages of codes must not contain the random ones
        if not loss.requires_grad:
            raise InputError(f"objective: {self.name}: expected a loss with a gradient in the codes, got {loss}")
        return names


def _arguments(codes: PerView, targets: PerView | None) -> tuple[PerView, ...]:
    """Return the arguments of the function, converted to float32."""
    converted = tuple(z.float() for z in codes)
    return (converted,) if targets is None else (converted, tuple(z.float() for z in targets))
