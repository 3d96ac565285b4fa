"""VICReg: invariance of the views, variance of each feature, and covariances of 0."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, relu

from mec.objectives.base import Objective, check_number, mean_over_pairs


class VICReg(Objective):
    """VICReg (Bardes et al. 2022, arXiv 2105.04906, Eq. 1 to 6).

        invariance * s(z, z') + variance * (v(z) + v(z')) / 2 + covariance * (c(z) + c(z'))

    s is the mean squared difference; v = mean_j max(0, 1 - sqrt(Var(z_j) + 1e-4)); c = 1/d sum_{i != j} Cov(z)_ij^2.
    The official code, for which the weights were chosen, divides s by d and the sum of the two v by 2; Eq. 5 and 6
    do not. The paper has two views; with more, the loss is the mean over all pairs of views.

    Args:
        invariance: the paper's lambda, 25 (section 4.2).
        variance: the paper's mu, 25.
        covariance: the paper's nu, 1.
    """

    batch_norm = False

    def __init__(self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> None:
        super().__init__()
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        for name, weight in self.weights.items():
            check_number(name, weight)

    def loss(self, codes: list[Tensor], targets: list[Tensor]) -> Tensor:
        # the mean over pairs of a sum over both views is twice the mean over views
        variance, covariance = torch.stack([_variance_and_covariance(z) for z in codes]).mean(0).unbind()
        spread = self.weights["variance"] * variance + self.weights["covariance"] * 2 * covariance
        return self.weights["invariance"] * mean_over_pairs(mse_loss, codes) + spread

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={weight:g}" for name, weight in self.weights.items())


def _variance_and_covariance(z: Tensor) -> Tensor:
    """Return v and c of z (m, d), as (2,)."""
    centered = z - z.mean(0)
    C = centered.T @ centered / (len(z) - 1)
    variances = C.diagonal()
    off_diagonal = C.square().sum() - variances.square().sum()
    return torch.stack([relu(1 - (variances + 1e-4).sqrt()).mean(), off_diagonal / z.shape[1]])
