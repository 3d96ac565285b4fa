"""Maximum Entropy Coding as an objective of pretraining: with a warm-up of the distortion, and the health of codes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mec.coding import MECLoss, health, spectral_norm
from mec.coding.gram import world_group
from mec.coding.loss import Form, RateViews, Views
from mec.objectives.base import check_number


class MEC(MECLoss):
    """Maximum Entropy Coding of two or more views (Liu et al. 2022, arXiv 2210.11464); see ``MECLoss``.

    It joins the codes of all processes, and returns NaN where ``MECLoss`` raises.

    Args:
        distortion: the paper's eps_d^2 > 0, for codes of length 1; smaller values require finer codes.
        order: number of terms of the Taylor series; None: the exact log det.
        form: "pooled" (always stable) or "cross" (the paper's).
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
        distortion: float = 1 / 32,
        order: int | None = None,
        form: Form = "pooled",
        warmup_factor: float = 1.0,
        rate_weight: float = 1.0,
        global_views: int | None = None,
        rate_views: RateViews = "all",
    ) -> None:
        super().__init__(distortion, order, form, None, False, rate_weight, global_views, rate_views)
        check_number("warmup_factor", warmup_factor, at_least=1)
        self.warmup_factor = warmup_factor
        self.current_distortion = distortion

    def warmup(self, progress: float) -> None:
        """Set the distortion of the next step. ``progress`` is the fraction of the warm-up that is done, in [0, 1]."""
        factor = 1.0 if progress >= 1 else self.warmup_factor + (1 - self.warmup_factor) * progress
        self.current_distortion = self.distortion * factor

    def forward(self, predictions: Views, targets: Views | None = None, distortion: float | None = None) -> Tensor:
        """Return the loss of the codes of the views, and their targets with a teacher: (m, d) each."""
        return super().forward(predictions, targets, self.current_distortion if distortion is None else distortion)

    @torch.no_grad()
    def health(self, codes: Views, targets: Views | None = None) -> dict[str, float]:
        """Return metrics of the codes of all processes: those of ``mec.coding.Health``, of the codes of the last global
        view, both terms of the loss, and the distortion.

        ``disagreement`` is 1 minus the mean cosine of the pairs of views. ``coding_rate`` is that of the loss, which is
        disagreement - rate_weight * distortion * coding_rate, or -distortion * coding_rate in the cross form.
        ``spectral_norm`` is there only for a series: an exact log det has no radius of convergence."""
        distortion, group = self.current_distortion, world_group()
        num_global = self.global_views or len(codes)
        p, z = codes[0], (targets or codes)[num_global - 1]
        metrics = dataclasses.asdict(health(p, z, distortion, group))
        del metrics["spectral_norm"]
        first_order = MECLoss(distortion, 1, "cross", check=False, global_views=self.global_views)
        disagreement = 1 + float(first_order(codes, targets))
        rate = ((disagreement if self.form == "pooled" else 0) - float(self(codes, targets))) / distortion
        metrics |= {"disagreement": disagreement, "coding_rate": rate / self.rate_weight, "distortion": distortion}
        if self.order is not None:
            counted = [p, z] if targets else codes[: num_global if self.rate_views == "global" else None]
            matrix = (p, z) if self.form == "cross" else (torch.cat([*counted]),) * 2
            metrics["spectral_norm"] = spectral_norm(*matrix, distortion, group=group)
        return metrics

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, warmup_factor={self.warmup_factor:g}"
