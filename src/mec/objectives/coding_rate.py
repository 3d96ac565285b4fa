"""EMP-SSL and SimDINO: agreement of the views, and the coding rate of each view.

Both measure the rate R(z) = 1/2 log det(I + d / (m eps^2) z^T z) of codes of length 1. It is half of
``mec.coding_rate`` with the distortion eps^2 / d, whose implementation they share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from mec.coding.gram import gram, unit_rows
from mec.coding.log_det import log_det
from mec.objectives.base import Objective, check_number, mean_cosine


def mean_rate(codes: Sequence[Tensor], epsilon_squared: float) -> Tensor:
    """Return the mean over views of R(z) in nats; NaN where z is not finite."""
    m, d = codes[0].shape
    grams = [gram(unit_rows([z]), m * epsilon_squared / d, feature_side=d < m) for z in codes]
    return torch.stack([log_det(C, order=None, symmetric=True) for C in grams]).mean() / 2


class EMPSSL(Objective):
    """EMP-SSL (Tong et al. 2023, arXiv 2304.03977, section 3), with codes of length 1:

        -mean over views of ( R(z) + weight * mean cosine(z, average over views) )

    It is written for any number of views; the official code takes 100 patches of an image by default.

    Args:
        epsilon_squared: the paper's eps^2, 0.2 (``--eps`` of the official code, tsb0601/EMP-SSL).
        weight: the paper's lambda, 200 (``--patch_sim``).
    """

    batch_norm = False

    def __init__(self, epsilon_squared: float = 0.2, weight: float = 200.0) -> None:
        super().__init__()
        check_number("epsilon_squared", epsilon_squared, above=0)
        check_number("weight", weight)
        self.epsilon_squared, self.weight = epsilon_squared, weight

    def loss(self, codes: list[Tensor], targets: list[Tensor]) -> Tensor:
        units = torch.stack([normalize(z) for z in codes])
        agreement = cosine_similarity(units, units.mean(0, keepdim=True), dim=2).mean()
        return -mean_rate(codes, self.epsilon_squared) - self.weight * agreement

    def extra_repr(self) -> str:
        return f"epsilon_squared={self.epsilon_squared:g}, weight={self.weight:g}"


class SimDINO(Objective):
    """SimDINO (Wu et al. 2025, arXiv 2502.10385): squared distance to a teacher's codes, minus the student's rate.

        mean over pairs of 1/2 |z - t|^2 - weight * mean over views of R(z),   codes z and targets t of length 1

    z of a view is compared with t of every other view. There is no predictor.

    Args:
        epsilon_squared: the paper's eps^2; 0.05 in the command of the official code (RobinWu218/SimDINO), whose
            parser has 0.5.
        weight: the paper's gamma. None: (m + d) / (m d), that of the official code, which calls it a heuristic. It
            makes the second term the coding length (``mec.coding_length``) of a view, divided by m d.

    The official command has 10 more small views without targets, and takes the rate of the average of z and t
    (``--expa_type 1``) of the two large ones; here it is that of z.
    """

    targets = "teacher"
    batch_norm = False

    def __init__(self, epsilon_squared: float = 0.05, weight: float | None = None) -> None:
        super().__init__()
        check_number("epsilon_squared", epsilon_squared, above=0)
        if weight is not None:
            check_number("weight", weight)
        self.epsilon_squared, self.weight = epsilon_squared, weight

    def loss(self, codes: list[Tensor], targets: list[Tensor]) -> Tensor:
        m, d = codes[0].shape
        weight = (m + d) / (m * d) if self.weight is None else self.weight
        return 1 - mean_cosine(codes, targets) - weight * mean_rate(codes, self.epsilon_squared)

    def extra_repr(self) -> str:
        return f"epsilon_squared={self.epsilon_squared:g}, weight={self.weight}"
