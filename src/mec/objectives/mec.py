"""MECLoss as an objective of pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from torch import Tensor

from mec.coding import MECLoss, health
from mec.coding.gram import world_group
from mec.coding.loss import Form


class MEC(MECLoss):
    """MECLoss whose distortion falls linearly over the warm-up, from ``warmup_factor`` times its value."""

    joins_processes = True
    targets = None
    batch_norm = True

    def __init__(
        self, distortion: float = 1 / 32, order: int | None = None, form: Form | None = None, warmup_factor: float = 1.0
    ) -> None:
        super().__init__(distortion, order, form, check=False)
        self.warmup_factor, self.current_distortion = warmup_factor, distortion

    def warmup(self, progress: float) -> None:
        """Set the distortion from the fraction of the warm-up that is done, in [0, 1]."""
        factor = self.warmup_factor + (1 - self.warmup_factor) * progress if progress < 1 else 1.0
        self.current_distortion = self.distortion * factor

    def forward(self, codes: Sequence[Tensor], targets: Sequence[Tensor] | None = None) -> Tensor:
        return super().forward(codes, targets, self.current_distortion)

    def health(self, codes: Sequence[Tensor], targets: Sequence[Tensor] | None = None) -> dict[str, float]:
        p, z = codes[0], codes[1] if targets is None else targets[1]
        form = self.form or ("pooled" if targets is None else "cross")
        metrics = asdict(health(p, z, self.current_distortion, world_group(), None if self.order is None else form))
        measured = {name: value for name, value in metrics.items() if value is not None}
        return measured | {"distortion": self.current_distortion}
