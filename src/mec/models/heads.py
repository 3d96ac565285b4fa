"""Projector and predictor, as in the paper's code."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def _hidden_layer(inputs: int, outputs: int) -> Iterator[nn.Module]:
    yield nn.Linear(inputs, outputs, bias=False)
    yield nn.BatchNorm1d(outputs)
    yield nn.ReLU(inplace=True)


class Projector(nn.Sequential):
    """MLP (n, inputs) -> (n, outputs): two hidden layers, then Linear with a frozen bias and BatchNorm without affine.

    The bias has no effect before a BatchNorm. It exists, frozen, because the published checkpoints contain it.
    """

    def __init__(self, inputs: int, hidden: int = 2048, outputs: int = 2048) -> None:
        last_linear = nn.Linear(hidden, outputs)
        last_linear.bias.requires_grad_(False)
        super().__init__(
            *_hidden_layer(inputs, hidden),
            *_hidden_layer(hidden, hidden),
            last_linear,
            nn.BatchNorm1d(outputs, affine=False),
        )


class Predictor(nn.Sequential):
    """MLP (n, width) -> (n, width) with a bottleneck, which prevents it from learning the identity."""

    def __init__(self, width: int = 2048, hidden: int = 512) -> None:
        super().__init__(*_hidden_layer(width, hidden), nn.Linear(hidden, width))
