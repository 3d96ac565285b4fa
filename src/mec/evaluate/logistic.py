"""Multinomial logistic regression on any number of features: exact L-BFGS, a part of the features at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mec.embedding.neighbors import best_device

ROWS = 8192
RESIDENT = 0.4
"""Share of a device's free memory that features may take to stay there between two passes."""


@dataclass(frozen=True)
class Logistic:
    """A classifier of features (n, d): weights (d, classes) and biases (classes,), for features as they come."""

    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, classes), on the CPU."""
        device = self.weight.device
        parts = [(x.to(device) @ self.weight + self.bias).cpu() for x in torch.split(features, ROWS)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.bias))


class LogisticFit:
    """Fits of the same features and labels with one L2 penalty after another, each beginning where the last ended.

    The objective is scikit-learn's, mean cross-entropy + ||w||^2 / (2 C n) with w the weights of standardized
    features and the biases free. Standardizing is folded into the weights: the features are not copied.

    Args:
        features: (n, d) float32 on the CPU; may be mapped from a file.
        labels: (n,) int64.
        classes: how many.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        self.device = best_device()
        self.features, self.labels, self.n = features, labels, len(features)
        self.mean, self.scale = (m.to(self.device, torch.float32) for m in _moments(features))
        self.weight = torch.zeros(features.shape[1], classes, device=self.device, requires_grad=True)
        self.bias = torch.zeros(classes, device=self.device, requires_grad=True)
        self._parts: list[tuple[Tensor, Tensor]] | None = None
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if features.numel() * 4 < RESIDENT * free:
                self._parts = list(self._moved())

    def __call__(self, strength: float, iterations: int) -> Logistic:
        """The classifier for the inverse penalty C = ``strength``, after at most so many iterations of L-BFGS."""
        solver = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=iterations, max_eval=2 * iterations, tolerance_grad=1e-6,
            tolerance_change=1e-7, history_size=10, line_search_fn="strong_wolfe",
        )  # fmt: skip
        penalty = 1 / (2 * strength * self.n)

        def closure() -> Tensor:
            solver.zero_grad()
            weight, bias = self._unscaled()
            # the gradient is gathered part by part, then goes back through the standardization once
            leaves = [t.detach().requires_grad_() for t in (weight, bias)]
            total = torch.zeros((), device=self.device, dtype=torch.float64)
            for x, y in self._parts or self._moved():
                loss = F.cross_entropy(torch.addmm(leaves[1], x, leaves[0]), y, reduction="sum") / self.n
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            torch.autograd.backward([weight, bias], [leaf.grad for leaf in leaves])
            penalized = penalty * self.weight.square().sum()
            penalized.backward()  # type: ignore[no-untyped-call]
            return (total + penalized.detach()).float()

        solver.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return Logistic(*self._unscaled())

    def _unscaled(self) -> tuple[Tensor, Tensor]:
        weight = self.weight / self.scale[:, None]
        return weight, self.bias - self.mean @ weight

    def _moved(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(torch.split(self.features, ROWS), torch.split(self.labels, ROWS), strict=True):
            yield x.to(self.device), y.to(self.device)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column (d,), float64; 1 where a column does not vary."""
    parts = torch.split(features, ROWS)
    mean = sum((p.double().sum(dim=0) for p in parts), torch.zeros(())) / len(features)
    variance = sum(((p.double() - mean).square().sum(dim=0) for p in parts), torch.zeros(())) / len(features)
    deviation = variance.sqrt()
    # a constant column in float32 varies by its rounding
    return mean, torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0)
