"""The objectives as their papers write them, with loops and autograd in float64, for any number of views."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Views = Sequence[Tensor]


def unit(v: Tensor) -> Tensor:
    return v / v.square().sum(-1, keepdim=True).sqrt()


def mean(values: Sequence[Tensor]) -> Tensor:
    return sum(values) / len(values)


def over_pairs(loss: Callable[[Tensor, Tensor], Tensor], views: Views) -> Tensor:
    return mean([loss(views[i], views[j]) for i in range(len(views)) for j in range(i)])


def simclr(views: Views, *, temperature: float) -> Tensor:
    def pair(a: Tensor, b: Tensor) -> Tensor:
        rows = [*unit(a), *unit(b)]
        m, losses = len(a), []
        for i in range(2 * m):
            positive = torch.exp(rows[i] @ rows[(i + m) % (2 * m)] / temperature)
            losses.append(
                -torch.log(positive / sum(torch.exp(rows[i] @ r / temperature) for k, r in enumerate(rows) if k != i))
            )
        return mean(losses)

    return over_pairs(pair, views)


def barlow_twins(views: Views, *, redundancy: float) -> Tensor:
    def standard(z: Tensor) -> Tensor:
        z = z - z.mean(0)
        return z / (z.square().mean(0) + 1e-5).sqrt()

    def pair(a: Tensor, b: Tensor) -> Tensor:
        d, total = a.shape[1], torch.zeros((), dtype=a.dtype)
        for i in range(d):
            for j in range(d):
                c = (standard(a)[:, i] * standard(b)[:, j]).mean()
                total = total + ((1 - c) ** 2 if i == j else redundancy * c**2)
        return total

    return over_pairs(pair, views)


def vicreg(views: Views, *, invariance: float, variance: float, covariance: float) -> Tensor:
    def v(z: Tensor) -> Tensor:
        return mean([torch.relu(1 - (z[:, k].var() + 1e-4).sqrt()) for k in range(z.shape[1])])

    def c(z: Tensor) -> Tensor:
        C = torch.cov(z.T)
        return sum(C[i, j] ** 2 for i, j in itertools.permutations(range(len(C)), 2)) / len(C)

    def pair(a: Tensor, b: Tensor) -> Tensor:
        spread = variance * (v(a) + v(b)) / 2 + covariance * (c(a) + c(b))
        return invariance * ((a - b) ** 2).mean() + spread

    return over_pairs(pair, views)


def squared_distance(codes: Views, targets: Views) -> Tensor:
    """Return the mean of |p - t|^2 of unit rows over the ordered pairs of different views."""
    pairs = [(i, j) for i in range(len(codes)) for j in range(len(codes)) if i != j]
    return mean([(unit(codes[i]) - unit(targets[j])).square().sum(1).mean() for i, j in pairs])


def simsiam(codes: Views, targets: Views) -> Tensor:
    return squared_distance(codes, targets) / 2 - 1


def byol(codes: Views, targets: Views) -> Tensor:
    return 2 * squared_distance(codes, targets)


def intl(views: Views, *, iterations: int, weight: float | None) -> Tensor:
    def whiten(z: Tensor) -> Tensor:
        z = z - z.mean(1, keepdim=True)
        S = torch.cov(z)
        P = torch.eye(len(S), dtype=z.dtype)
        for _ in range(iterations):
            P = (3 * P - torch.linalg.matrix_power(P, 3) @ S / S.trace()) / 2
        return P @ z / S.trace().sqrt()

    def pair(a: Tensor, b: Tensor) -> Tensor:
        traces = [(1 - torch.cov(y).diagonal()).square().sum() for y in (a, b)]
        return (unit(a) - unit(b)).square().sum(1).mean() + beta * sum(traces)

    beta = 0.01 * (math.log2(len(views[0])) - 3) if weight is None else weight
    return over_pairs(pair, [whiten(z) for z in views])


def rate(z: Tensor, epsilon_squared: float) -> Tensor:
    m, d = z.shape
    matrix = torch.eye(d, dtype=z.dtype) + d / (m * epsilon_squared) * unit(z).T @ unit(z)
    return torch.linalg.slogdet(matrix).logabsdet / 2


def emp_ssl(views: Views, *, epsilon_squared: float, weight: float) -> Tensor:
    average = mean([unit(z) for z in views])
    return -mean([rate(z, epsilon_squared) + weight * (unit(z) * unit(average)).sum(1).mean() for z in views])


def simdino(codes: Views, targets: Views, *, epsilon_squared: float, weight: float | None) -> Tensor:
    m, d = codes[0].shape
    gamma = 1 / m + 1 / d if weight is None else weight
    return squared_distance(codes, targets) / 2 - gamma * mean([rate(z, epsilon_squared) for z in codes])


def sigreg(views: Views, *, weight: float, directions: int, points: int) -> Tensor:
    """Draw the directions from the global generator; the caller seeds it."""
    A = unit(torch.randn(views[0].shape[1], directions).to(views[0].dtype).T)
    t = torch.linspace(-5, 5, points, dtype=views[0].dtype)
    normal = torch.exp(-(t**2) / 2)
    statistics = []
    for z in views:
        for a in A:
            characteristic = torch.exp(1j * torch.outer(z @ a, t)).mean(0)
            integrand = (characteristic - normal).abs() ** 2 * normal
            statistics.append(len(z) * torch.trapezoid(integrand, t))
    average = mean(views)
    prediction = mean([((z - average) ** 2).mean() for z in views])
    return (1 - weight) * prediction + weight * mean(statistics)
