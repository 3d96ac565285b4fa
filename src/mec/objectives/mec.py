"""Maximum Entropy Coding as an objective of pretraining: with a schedule of the distortion, and the health of codes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mec.coding import MECLoss, health, spectral_norm, sweep_distortion
from mec.coding.checks import check_distortion, describe
from mec.coding.gram import world_group
from mec.coding.loss import Form, RateViews, Views
from mec.coding.sweep import FIRST_DISTORTION, LAST_DISTORTION
from mec.objectives.base import check_number

HEALTH_DISTORTION = 1 / 32
"""Distortion of the coding length and rate reduction that training logs."""


def default_distortion(form: Form) -> float | tuple[float, float]:
    """Return the default sweep for the reduction (docs/objective-distortion.md), and the constant of the paper's code,
    1/32, for the other forms: a small distortion makes the series diverge, and the pooled form collapse."""
    return (FIRST_DISTORTION, LAST_DISTORTION) if form == "reduction" else 1 / 32


class MEC(MECLoss):
    """Maximum Entropy Coding of two or more views (Liu et al. 2022, arXiv 2210.11464); see ``MECLoss``.

    It joins the codes of all processes, and returns NaN where ``MECLoss`` raises. The reduction is normalized: ideal
    codes have the loss -1. A sweep starts at its first distortion; call ``schedule`` before each step to move it.

    Args:
        distortion: the paper's eps_d^2 > 0, for codes of length 1: a constant, or the first and last value of a sweep
            (see ``sweep_distortion``) over the training; None: as in ``default_distortion``.
        order: number of terms of the Taylor series; None: the exact log det.
        form: "reduction" or "pooled" (always stable), or "cross" (the paper's).
        warmup_factor: factor of the distortion at the first step, >= 1; falls linearly to 1 over the warm-up.
        rate_weight: factor of the coding rate in the pooled form.
        global_views: number of global views, the first ones, with which all others are compared; None: all.
        rate_views: "all", or "global": the rate counts the codes of the global views only.
    """

    targets: str | None = None  # accepts those of a teacher, and needs none
    predictor = True  # where there are targets
    batch_norm = True

    def __init__(
        self,
        distortion: float | tuple[float, float] | None = None,
        order: int | None = None,
        form: Form = "reduction",
        warmup_factor: float = 1.0,
        rate_weight: float = 1.0,
        global_views: int | None = None,
        rate_views: RateViews = "all",
    ) -> None:
        distortion = default_distortion(form) if distortion is None else distortion
        ends = distortion if isinstance(distortion, (tuple, list)) else (distortion, distortion)
        if len(ends) != 2:
            raise ValueError(f"distortion: expected a number, or the two ends of a sweep, got {describe(distortion)}")
        check_distortion(ends[0])
        normalize = form == "reduction"
        super().__init__(ends[1], order, form, None, False, rate_weight, global_views, rate_views, normalize)
        check_number("warmup_factor", warmup_factor, at_least=1)
        self.distortion = distortion  # type: ignore[assignment]  # as given, for the recipe of a run
        self.warmup_factor, self._ends = warmup_factor, ends
        self._progress, self._warmup_progress = 0.0, 1.0

    @property
    def current_distortion(self) -> float:
        """Distortion of the next step."""
        factor = self.warmup_factor + (1 - self.warmup_factor) * self._warmup_progress
        return factor * sweep_distortion(self._progress, *self._ends)

    def schedule(self, progress: float) -> None:
        """Set the fraction of the training that is done, in [0, 1]."""
        self._progress = progress

    def warmup(self, progress: float) -> None:
        """Set the fraction of the warm-up that is done, in [0, 1]."""
        self._warmup_progress = progress

    def forward(self, predictions: Views, targets: Views | None = None, distortion: float | None = None) -> Tensor:
        """Return the loss of the codes of the views, and their targets with a teacher: (m, d) each."""
        return super().forward(predictions, targets, self.current_distortion if distortion is None else distortion)

    @torch.no_grad()
    def health(self, codes: Views, targets: Views | None = None) -> dict[str, float]:
        """Return metrics of the codes of all processes, of the last global view or its targets.

        They are those of ``mec.coding.Health``, and the distortion of this step. ``disagreement`` is 1 minus the mean
        cosine of the pairs of views. ``rate_reduction`` is the coding rate of all views minus that of the differences
        between them, in nats. Coding length and rate reduction are those at HEALTH_DISTORTION, so that they do not
        depend on the schedule. ``spectral_norm`` is there only for a series, at the distortion of this step."""
        group, num_global = world_group(), self.global_views or len(codes)
        p, z = codes[0], (targets or codes)[num_global - 1]
        metrics = dataclasses.asdict(health(p, z, HEALTH_DISTORTION, group))
        del metrics["spectral_norm"]
        first_order = MECLoss(1.0, 1, "cross", check=False, global_views=self.global_views)
        disagreement = 1 + float(first_order(codes, targets))
        reduction = MECLoss(HEALTH_DISTORTION, None, "reduction", check=False, global_views=self.global_views)
        rate_reduction = -float(reduction(codes, targets))
        metrics |= {"disagreement": disagreement, "rate_reduction": rate_reduction / HEALTH_DISTORTION}
        if self.order is not None:
            counted = [p, z] if targets else codes[: num_global if self.rate_views == "global" else None]
            matrix = (p, z) if self.form == "cross" else (torch.cat([*counted]),) * 2
            metrics["spectral_norm"] = spectral_norm(*matrix, self.current_distortion, group=group)
        return metrics | {"distortion": self.current_distortion}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, warmup_factor={self.warmup_factor:g}"
