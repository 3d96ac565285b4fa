"""INTL: views that agree after an approximate whitening, with a trace loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mec.objectives.base import Objective, check_count, check_number, mean_over_pairs


class INTL(Objective):
    """Iterative normalization with trace loss (Weng et al. 2024, arXiv 2305.16789, section 4).

    Each row of a view z (m, d) is centered over its d channels. With S = z z^T / (d - 1) (m, m), T Newton iterations
    P_t = (3 P_{t-1} - P_{t-1}^3 S / Tr S) / 2 from P_0 = I approximate S^(-1/2), so that the rows of
    y = P_T z / sqrt(Tr S) are nearly uncorrelated. The loss of two views is

        2 - 2 mean cosine(y, y') + weight * (t(y) + t(y')),   t(y) = sum_i (1 - Var(y_i))^2.

    The paper whitens by iterations and not exactly, as W-MSE does by a Cholesky factor: S need not be regular, so m and
    d may be any. This is the channel whitening of its experiments. The paper has two views (and compares more with the
    first); here the loss is the mean over all pairs of views.

    Args:
        iterations: the paper's T, 4.
        weight: the paper's beta; None: 0.01 (log2(m) - 3), as in the official code (winci-ai/INTL), and 0 below m = 8.
    """

    batch_norm = False

    def __init__(self, iterations: int = 4, weight: float | None = None) -> None:
        super().__init__()
        check_count("iterations", iterations)
        if weight is not None:
            check_number("weight", weight)
        self.iterations, self.weight = iterations, weight

    def loss(self, codes: list[Tensor], targets: list[Tensor]) -> Tensor:
        whitened = [whiten(z - z.mean(1, keepdim=True), self.iterations) for z in codes]
        trace_loss = torch.stack([(1 - y.square().sum(1) / (y.shape[1] - 1)).square().sum() for y in whitened]).mean()
        distance = 2 - 2 * mean_over_pairs(lambda a, b: (normalize(a) * normalize(b)).sum(1).mean(), whitened)
        weight = 0.01 * max(0.0, math.log2(len(codes[0])) - 3) if self.weight is None else self.weight
        return distance + 2 * weight * trace_loss

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}, weight={self.weight}"


def whiten(z: Tensor, iterations: int) -> Tensor:
    """Return P z / sqrt(Tr S) of centered rows z (m, d), S = z z^T / (d - 1). Newton iterations on S, or if d < m on
    S' = z^T z / (d - 1): z P(S') = P(S) z for a polynomial P."""
    m, d = z.shape
    S = (z @ z.T if m <= d else z.T @ z) / (d - 1)
    trace = S.diagonal().sum().clamp_min(torch.finfo(z.dtype).tiny)
    P = identity = torch.eye(len(S), dtype=z.dtype, device=z.device)
    # Q = P S / Tr S: the coupled form of the iteration, in which rounding errors do not grow (Higham 1997)
    Q = S / trace
    for _ in range(iterations):
        step = 1.5 * identity - 0.5 * P @ Q
        P, Q = step @ P, Q @ step
    return (P @ z if m <= d else z @ P) / trace.sqrt()
