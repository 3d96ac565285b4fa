"""Maximum Entropy Coding as an objective of pretraining: with a warm-up of the distortion, and the health of codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from mec.coding import MECLoss, health
from mec.coding.checks import describe
from mec.coding.gram import world_group
from mec.coding.loss import Form
from mec.objectives.base import check_number


class MEC(MECLoss):
    """Maximum Entropy Coding of two views (Liu et al. 2022, arXiv 2210.11464); see ``MECLoss``.

    It joins the codes of all processes, and returns NaN where ``MECLoss`` raises.

    Args:
        distortion: the paper's eps_d^2 > 0, for codes of length 1; smaller values require finer codes.
        order: number of terms of the Taylor series; None: the exact log det.
        form: "pooled" (always stable) or "cross" (the paper's).
        warmup_factor: factor of the distortion at the first step, >= 1; falls linearly to 1 over the warm-up.
    """

    targets: str | None = None  # accepts those of a teacher, and needs none
    predictor = True  # where there are targets
    batch_norm = True

    def __init__(
        self, distortion: float = 1 / 32, order: int | None = None, form: Form = "pooled", warmup_factor: float = 1.0
    ) -> None:
        super().__init__(distortion, order, form, check=False)
        check_number("warmup_factor", warmup_factor, at_least=1)
        self.warmup_factor = warmup_factor
        self.current_distortion = distortion

    def warmup(self, progress: float) -> None:
        """Set the distortion of the next step. ``progress`` is the fraction of the warm-up that is done, in [0, 1]."""
        factor = 1.0 if progress >= 1 else self.warmup_factor + (1 - self.warmup_factor) * progress
        self.current_distortion = self.distortion * factor

    def forward(
        self, predictions: Sequence[Tensor], targets: Sequence[Tensor] | None = None, distortion: float | None = None
    ) -> Tensor:
        """Return the loss of the codes of two views, and their targets with a teacher: (m, d) each."""
        p1, p2 = _two_views("codes", predictions)
        pair = None if targets is None else _two_views("targets", targets)
        return super().forward((p1, p2), pair, self.current_distortion if distortion is None else distortion)

    def health(self, codes: Sequence[Tensor], targets: Sequence[Tensor] | None = None) -> dict[str, float]:
        """Return the health metrics of the codes of all processes, and the distortion; see ``mec.coding.Health``.

        ``spectral_norm`` is there only for a series: an exact log det has no radius of convergence."""
        p, z = codes[0], codes[1] if targets is None else targets[1]
        series = None if self.order is None else self.form
        metrics = dataclasses.asdict(health(p, z, self.current_distortion, world_group(), series))
        norm = metrics.pop("spectral_norm")
        metrics["distortion"] = self.current_distortion
        return metrics if norm is None else metrics | {"spectral_norm": norm}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, warmup_factor={self.warmup_factor:g}"


def _two_views(name: str, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(views, Sequence) or len(views) != 2:
        raise ValueError(f"{name}: expected two tensors, one for each of MEC's two views, got {describe(views)}")
    return views[0], views[1]
