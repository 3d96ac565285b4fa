"""Every objective but MEC, with options, and its reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mec.objectives import OBJECTIVES
from tests.coding.reference import random_codes

from . import reference

CASES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "simclr": (reference.simclr, [{"temperature": 0.1}, {"temperature": 0.5}]),
    "barlow-twins": (reference.barlow_twins, [{"redundancy": 5e-3}, {"redundancy": 0.3}]),
    "vicreg": (
        reference.vicreg,
        [
            {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
            {"invariance": 1.0, "variance": 2.0, "covariance": 3.0},
        ],
    ),
    "simsiam": (reference.simsiam, [{}]),
    "byol": (reference.byol, [{}]),
    "intl": (reference.intl, [{"iterations": 4, "weight": None}, {"iterations": 7, "weight": 0.5}]),
    "emp-ssl": (
        reference.emp_ssl,
        [{"epsilon_squared": 0.2, "weight": 200.0}, {"epsilon_squared": 1.5, "weight": 0.7}],
    ),
    "simdino": (
        reference.simdino,
        [{"epsilon_squared": 0.05, "weight": None}, {"epsilon_squared": 1.5, "weight": 0.7}],
    ),
    "sigreg": (
        reference.sigreg,
        [{"weight": 0.05, "directions": 256, "points": 17}, {"weight": 0.4, "directions": 3, "points": 9}],
    ),
}
"""Name -> reference, and options: the published defaults first."""
PREDICTS = [name for name in CASES if OBJECTIVES[name].targets is not None]


def seeded(loss: Any, *arguments: Any) -> Tensor:
    """Call a loss that may draw random numbers."""
    torch.manual_seed(0)
    return loss(*arguments)


def arguments_of(name: str, count: int, m: int, d: int, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    """Return random codes of ``count`` views, and targets if the objective has any."""
    tensors = random_codes(2 * count, m, d, dtype)
    return [tensors[:count], tensors[count:]] if name in PREDICTS else [tensors[:count]]
