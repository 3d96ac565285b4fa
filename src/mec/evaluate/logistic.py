"""Multinomial logistic regression on any number of features: full-batch L-BFGS, computed in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mec.embedding.extract import best_device

BLOCK_ROWS = 8192
MAX_DEVICE_FRACTION = 0.4
"""Fraction of the device's free memory that features may occupy; larger ones are copied to it in every pass."""


@dataclass(frozen=True)
class Logistic:
    """A linear classifier of unstandardized features (n, d): weight (d, classes), bias (classes,)."""

    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Return the scores of features (n, d): (n, classes), on the CPU."""
        device = self.weight.device
        blocks = [(x.to(device) @ self.weight + self.bias).cpu() for x in torch.split(features, BLOCK_ROWS)]
        return torch.cat(blocks) if blocks else torch.empty(0, len(self.bias))


class LogisticFit:
    """Fit the same features and labels with one L2 penalty after another, each fit starting at the previous solution.

    The objective is scikit-learn's, mean cross-entropy + ||w||^2 / (2 C n) with w the weights of standardized
    features; biases are not penalized. Standardization is folded into the weights, so that features are not copied.

    Args:
        features: (n, d) float32 on the CPU; may be memory-mapped.
        labels: (n,) int64.
        classes: number of classes.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        self.device = best_device()
        self.features, self.labels, self.n = features, labels, len(features)
        self.mean, self.scale = (m.to(self.device, torch.float32) for m in _moments(features))
        self.weight = torch.zeros(features.shape[1], classes, device=self.device, requires_grad=True)
        self.bias = torch.zeros(classes, device=self.device, requires_grad=True)
        self._blocks: list[tuple[Tensor, Tensor]] | None = None
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if features.numel() * 4 < MAX_DEVICE_FRACTION * free:
                self._blocks = list(self._blocks_on_device())

    def __call__(self, C: float, max_iter: int) -> Logistic:
        """Return the classifier for the inverse penalty ``C``, after at most ``max_iter`` iterations of L-BFGS."""
        solver = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=max_iter, max_eval=2 * max_iter, tolerance_grad=1e-6,
            tolerance_change=1e-7, history_size=10, line_search_fn="strong_wolfe",
        )  # fmt: skip
        penalty = 1 / (2 * C * self.n)

        def closure() -> Tensor:
            solver.zero_grad()
            weight, bias = self._without_standardization()
            # accumulate the gradient over blocks, then propagate it through the standardization once
            leaves = [t.detach().requires_grad_() for t in (weight, bias)]
            total = torch.zeros((), device=self.device, dtype=torch.float64)
            for x, y in self._blocks or self._blocks_on_device():
                loss = F.cross_entropy(torch.addmm(leaves[1], x, leaves[0]), y, reduction="sum") / self.n
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            torch.autograd.backward([weight, bias], [leaf.grad for leaf in leaves])
            penalized = penalty * self.weight.square().sum()
            penalized.backward()  # type: ignore[no-untyped-call]
            return (total + penalized.detach()).float()

        solver.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return Logistic(*self._without_standardization())

    def _without_standardization(self) -> tuple[Tensor, Tensor]:
        weight = self.weight / self.scale[:, None]
        return weight, self.bias - self.mean @ weight

    def _blocks_on_device(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(torch.split(self.features, BLOCK_ROWS), torch.split(self.labels, BLOCK_ROWS), strict=True):
            yield x.to(self.device), y.to(self.device)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column (d,), float64; the deviation of a constant column is 1."""
    blocks = torch.split(features, BLOCK_ROWS)
    mean = sum((block.double().sum(dim=0) for block in blocks), torch.zeros(())) / len(features)
    variance = sum(((block.double() - mean).square().sum(dim=0) for block in blocks), torch.zeros(())) / len(features)
    deviation = variance.sqrt()
    # rounding gives a constant float32 column a small deviation
    return mean, torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0)
