"""Projector and predictor of the paper's code."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def _hidden(inputs: int, outputs: int) -> Iterator[nn.Module]:
    yield nn.Linear(inputs, outputs, bias=False)
    yield nn.BatchNorm1d(outputs)
    yield nn.ReLU(inplace=True)


class Projector(nn.Sequential):
    """(n, inputs) -> (n, outputs): two hidden layers, then Linear with a frozen bias and BN without affine.

    The bias does nothing before a BN; it is there, and frozen, because the published checkpoints have it.
    """

    def __init__(self, inputs: int, hidden: int = 2048, outputs: int = 2048) -> None:
        last = nn.Linear(hidden, outputs)
        last.bias.requires_grad_(False)
        super().__init__(
            *_hidden(inputs, hidden), *_hidden(hidden, hidden), last, nn.BatchNorm1d(outputs, affine=False)
        )


class Predictor(nn.Sequential):
    """(n, width) -> (n, width) through a bottleneck, so that it cannot learn the identity."""

    def __init__(self, width: int = 2048, hidden: int = 512) -> None:
        super().__init__(*_hidden(width, hidden), nn.Linear(hidden, width))
