"""SimCLR: the normalized, temperature-scaled cross-entropy (NT-Xent)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mec.objectives.base import Objective, check_number, mean_over_pairs


class SimCLR(Objective):
    """NT-Xent (Chen et al. 2020, arXiv 2002.05709, Eq. 1): cross-entropy of finding the other view of an image.

    The 2 m codes u of two views, scaled to length 1, give the mean over i of

        -log( exp(u_i . u_j / temperature) / sum_{k != i} exp(u_i . u_k / temperature) ),

    where j is the other view of the image of i. The paper has two views; with more, the loss is the mean over all pairs
    of views. It refuses targets; a contrast with those of a teacher is MoCo v3.

    Args:
        temperature: 0.1, the best of the paper's Table 5 and the default of the official code
            (google-research/simclr), whose command for CIFAR-10 has 0.5. Its loss is twice this one.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        self.temperature = temperature

    def loss(self, codes: list[Tensor], targets: list[Tensor]) -> Tensor:
        return mean_over_pairs(self._pair_loss, [normalize(z) for z in codes])

    def _pair_loss(self, a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat([a, b])
        logits = (both @ both.T / self.temperature).fill_diagonal_(-math.inf)
        other_view = torch.arange(len(both), device=both.device).roll(len(a))
        return cross_entropy(logits, other_view)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"
