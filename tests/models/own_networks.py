"""Networks of users, which are not from timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class OwnNetwork(nn.Module):
    """A convolution of stride 4, BatchNorm and ReLU; features are means, or maps with ``maps=True``."""

    def __init__(self, channels: int = 1, features: int = 8, maps: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, features, 4, 4), nn.BatchNorm2d(features)
        self.maps = maps

    def feature_maps(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))

    def forward(self, x: Tensor) -> Any:
        return self.feature_maps(x) if self.maps else self.feature_maps(x).mean((2, 3))


class DenseNetwork(OwnNetwork):
    """With the method that dense features require."""

    def forward_intermediates(self, x: Tensor, indices: Sequence[int] | None = None, **options: Any) -> list[Tensor]:
        maps = [self.conv(x), self.feature_maps(x)]
        return maps if indices is None else [maps[i] for i in indices]


class ViewNetwork(OwnNetwork):
    """With ``view``, which fails on maps in channels-last order."""

    def forward(self, x: Tensor) -> Tensor:
        return self.feature_maps(x).view(len(x), -1)
