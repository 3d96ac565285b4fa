"""Calls objectives of any kind in pretraining: the recipe's, or a callable of the user."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mec.coding import rank_metrics
from mec.coding.gram import get_world_size, upcast, world_group
from mec.errors import InputError, join_with_or
from mec.models.siamese import PerView
from mec.objectives.gather import Gathered
from mec.pretraining.parts import describe_part

TARGETS = (None, "student", "teacher")
OTHER_COLUMNS = (
    "step", "epoch", "loss", "lr", "skipped_steps", "images_per_second", "data_wait_fraction", "seconds",
)  # fmt: skip
"""Columns of metrics.csv that are no metrics of an objective."""


class Objective(nn.Module):
    """An objective ``function(codes) -> scalar``, or ``function(codes, targets)`` where the network has targets.

    Codes are a tuple with a tensor (m, d) per view, in float32 or float64, outside autocast. With several processes the
    function gets the codes of all, and the average of the gradients of the processes is the gradient of the whole
    batch; if its attribute ``joins_processes`` is true, it gets the codes of this process and joins them itself. The
    function is copied: a run depends on its state before the run only, and the object of the user stays unchanged.
    """

    metrics: tuple[str, ...] | None = None
    """Names of the metrics of the function and of the codes; None before ``check``."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        if not callable(function) or inspect.isclass(function):
            got = f"{function!r:.100}"
            if isinstance(function, str):
                got += "; the setting objective.name of the recipe takes names"
            elif inspect.isclass(function):
                got = f"the class {describe_part(function)}; create an object of it"
            raise InputError(f"objective: expected a callable (codes) -> scalar, got {got}")
        self.name = describe_part(function).partition("(")[0]
        self.targets: Literal["student", "teacher"] | None = getattr(function, "targets", None)
        if self.targets not in TARGETS:
            raise self._error(f"targets: expected {join_with_or(list(map(repr, TARGETS)))}, got {self.targets!r}")
        try:
            function = copy.deepcopy(function)
        except Exception as error:
            raise self._error(f"cannot be copied: {_one_line(error)}") from error
        self.function = function if getattr(function, "joins_processes", False) else Gathered(function)
        self.predictor = bool(getattr(function, "predictor", True))
        self.batch_norm = bool(getattr(function, "batch_norm", True))
        self._health: Callable[..., Mapping[str, float]] | None = getattr(function, "health", None)
        self._schedules: dict[str, Callable[[float], None]] = {
            name: getattr(function, name) for name in ("schedule", "warmup") if hasattr(function, name)
        }

    def forward(self, codes: PerView, targets: PerView | None = None) -> Tensor:
        """Return the loss, a scalar."""
        with torch.autocast(codes[0].device.type, enabled=False):
            loss: Tensor = self.function(*_arguments(codes, targets))
        if not isinstance(loss, Tensor) or loss.ndim > 0:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise self._error(f"expected a scalar tensor, got {got}")
        return loss

    @torch.no_grad()
    def health(self, codes: PerView, targets: PerView | None = None) -> dict[str, float]:
        """Return the metrics of the function, if it has any, and the ranks of the codes of the last view."""
        metrics: dict[str, float] = {}
        if self._health is not None:
            arguments = _arguments(codes, targets)
            if isinstance(self.function, Gathered):
                arguments = tuple(self.function.gather(*arguments))
            metrics = self._check_metrics(self._health(*arguments))
        ranks = {} if "effective_rank" in metrics else rank_metrics((targets or codes)[-1], world_group())
        metrics = ranks | metrics
        if self.metrics is not None and set(self.metrics) != set(metrics):
            raise self._error(f"health: expected {', '.join(self.metrics)} at every step, got {', '.join(metrics)}")
        return metrics

    def _check_metrics(self, metrics: Any) -> dict[str, float]:
        if not isinstance(metrics, Mapping):
            raise self._error(f"health: expected a mapping of names to numbers, got {metrics!r:.100}")
        for name in metrics:
            if not isinstance(name, str) or name in OTHER_COLUMNS:
                raise self._error(f"health: expected names other than {', '.join(OTHER_COLUMNS)}, got {name!r:.100}")
        try:
            return {name: float(v.detach() if isinstance(v, Tensor) else v) for name, v in metrics.items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._error(f"health: expected numbers: {_one_line(error)}") from error

    def schedule(self, progress: float, warmup: float) -> None:
        """Set the fractions of the training and of the warm-up that are done, in [0, 1]."""
        for name, fraction in (("schedule", progress), ("warmup", warmup)):
            if name in self._schedules:
                self._schedules[name](fraction)

    def check(self, views: int, rows: int, dim: int, num_targets: int, device: torch.device) -> tuple[str, ...]:
        """Call a copy of the function with random codes of each view, and return the names of the metrics.

        Args:
            views: number of views.
            rows: number of codes of each view, of all processes.
            dim: dimension of the codes.
            num_targets: number of views with targets; 0: the network has none.
            device: where the codes are.

        Raises:
            InputError: the function fails, or its loss is no finite scalar with a finite gradient in the codes.
        """
        generator = torch.Generator().manual_seed(0)
        # a group exists if another run has been in this process
        z = torch.randn(2, views, rows // get_world_size(world_group()), dim, generator=generator).to(device)
        codes, targets = z[0].requires_grad_(), z[1, :num_targets].unbind() if num_targets else None
        objective = copy.deepcopy(self).to(device)
        try:
            with torch.random.fork_rng(devices=[]):
                objective.schedule(0.0, 0.0)
                loss = objective(tuple(view.clone() for view in codes), targets)
                gradient = torch.autograd.grad(loss, codes, allow_unused=True)[0] if loss.requires_grad else None
                self.metrics = tuple(objective.health(tuple(codes.detach().unbind()), targets))
        except InputError:
            raise
        except Exception as error:  # of the user's function
            arguments = "codes and targets" if num_targets else "codes"
            needs_targets = isinstance(error, TypeError) and not num_targets
            advice = "; for targets, set teacher.enabled or its attribute targets" if needs_targets else ""
            if num_targets and self.targets is None:
                advice = "; teacher.enabled false gives it codes alone"
            raise self._error(f"failed for {arguments} of {views} views: {_one_line(error)}{advice}") from error
        if gradient is None:
            raise self._error(f"expected a loss with a gradient in the codes, got {loss.item():g} without")
        if not math.isfinite(loss.detach()) or not gradient.isfinite().all():
            raise self._error(f"expected a finite loss and gradient for random codes, got the loss {loss.item():g}")
        return self.metrics

    def _error(self, message: str) -> InputError:
        return InputError(f"objective: {self.name}: {message}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _arguments(codes: PerView, targets: PerView | None) -> tuple[PerView, ...]:
    """Return the arguments of the function, of at least 32 bits."""
    return tuple(tuple(upcast(views)) for views in (codes, targets) if views is not None)
