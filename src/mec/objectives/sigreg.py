"""SIGReg of LeJEPA: codes that agree, and whose distribution is a standard normal in random directions."""

from __future__ import annotations

import torch
from torch import Tensor

from mec.objectives.base import Objective, check_count, check_number


class SIGReg(Objective):
    """LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544): prediction, and regularization toward a Gaussian.

        (1 - weight) * mean (z - average over views)^2 + weight * mean over views and directions of EP(z a)

    EP = m * integral over [-5, 5] of |mean_i exp(i t x_i) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt is the Epps-Pulley
    statistic, by the trapezoidal rule, of the codes x_1, ..., x_m in a random direction a of length 1. The paper
    predicts the average of the global views; here all views are.

    Every call draws new directions from torch's global generator, so several processes must seed it equally.

    Args:
        weight: the paper's lambda in [0, 1]; 0.05 in the scripts of the official code (rbalestr-lab/lejepa), 0.02 in
            its minimal example.
        directions: number of random directions; 256 in the paper's Algorithm 1 and the minimal example, 1024 in the
            readme of the official code.
        points: number of points of the trapezoidal rule, odd; 17 in Algorithm 1. The official code has 17 points on
            [0, 3] by default instead.
    """

    batch_norm = False

    def __init__(self, weight: float = 0.05, directions: int = 256, points: int = 17) -> None:
        super().__init__()
        check_number("weight", weight, at_most=1)
        check_count("directions", directions)
        check_count("points", points, at_least=3)
        if points % 2 == 0:
            raise ValueError(f"points: expected an odd number, got {points}")
        self.weight, self.directions, self.points = weight, directions, points

    def loss(self, codes: list[Tensor], targets: list[Tensor]) -> Tensor:
        views = torch.stack(codes)
        prediction = (views - views.mean(0)).square().mean()
        # drawn in float32, so that codes of any dtype get the same directions
        A = torch.randn(views.shape[2], self.directions, dtype=torch.float32, device=views.device).to(views.dtype)
        A = A / A.norm(dim=0)
        statistics = torch.stack([self._epps_pulley(z @ A) for z in codes])
        return (1 - self.weight) * prediction + self.weight * statistics.mean()

    def _epps_pulley(self, x: Tensor) -> Tensor:
        """Return the statistic (k,) of each column of x (m, k)."""
        # the integrand is even: half of the points, with twice the weight
        t = torch.linspace(0, 5, (self.points + 1) // 2, dtype=x.dtype, device=x.device)
        normal = torch.exp(-t.square() / 2)
        angles = x.unsqueeze(2) * t
        error = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()
        return 2 * len(x) * torch.trapezoid(error * normal, t, dim=1)

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}, directions={self.directions}, points={self.points}"
