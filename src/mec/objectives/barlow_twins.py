"""Barlow Twins: a cross-correlation of the features of two views that is close to the identity."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import batch_norm

from mec.objectives.base import Objective, check_number, mean_over_pairs


class BarlowTwins(Objective):
    """Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230, Eq. 1 and 2).

    With C (d, d), the correlations of each feature of one view with each feature of the other over the batch,

        sum_i (1 - C_ii)^2 + redundancy * sum_{i != j} C_ij^2.

    1e-5 is added to variances, as by the BatchNorm of the official code. The paper has two views; with more, the loss
    is the mean over all pairs of views.

    Args:
        redundancy: the paper's lambda, 5e-3 (section 2.2); 0.0051 in the official code (facebookresearch/barlowtwins).
    """

    batch_norm = False  # it normalizes the features itself

    def __init__(self, redundancy: float = 5e-3) -> None:
        super().__init__()
        check_number("redundancy", redundancy)
        self.redundancy = redundancy

    def loss(self, codes: list[Tensor], targets: list[Tensor]) -> Tensor:
        return mean_over_pairs(self._pair_loss, [batch_norm(z, None, None, training=True) for z in codes])

    def _pair_loss(self, a: Tensor, b: Tensor) -> Tensor:
        C = a.T @ b / len(a)
        diagonal = C.diagonal()
        off_diagonal = C.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + self.redundancy * off_diagonal

    def extra_repr(self) -> str:
        return f"redundancy={self.redundancy:g}"
