"""What all objectives share: checks of the views, their dtype, pairs of views."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, permutations

import torch
from torch import Tensor, nn

from mec.coding.checks import check_pair, check_view_count, describe
from mec.coding.gram import upcast

Views = Sequence[Tensor]
"""One tensor (m, d) for each view."""


class Objective(nn.Module):
    """Base of objectives: ``forward`` checks the views and computes ``loss`` of them in float32 or float64.

    Attributes:
        targets: what codes are to predict: "student", the codes of the other views, without gradient; "teacher", those
            of a teacher; None: the objective compares codes with each other and refuses targets.
        predictor: whether the published method has a predictor after the projector.
        batch_norm: whether the published projector ends with a BatchNorm.
        joins_processes: whether the objective itself joins the codes of all processes; if not, see ``Gathered``.
    """

    targets: str | None = None
    predictor: bool = False
    batch_norm: bool = True
    joins_processes: bool = False

    def forward(self, codes: Views, targets: Views | None = None) -> Tensor:
        """Return the loss, a scalar.

        Args:
            codes: codes or predictions of at least two views, (m, d) each, m >= 2. Row i of each is of the same image.
            targets: what they are to predict, a tensor (m, d) for each view, where ``targets`` of the class is not
                None. They get no gradient.

        Raises:
            ValueError: one line that names the argument.
        """
        name = type(self).__name__
        codes = check_views("codes", codes)
        if self.targets is None and targets is not None:
            raise ValueError(f"targets: expected None, {name} compares the codes of the views, got {describe(targets)}")
        if self.targets is not None:
            if targets is None:
                raise ValueError(f"targets: expected what {name} predicts, a tensor for each view, got None")
            targets = [t.detach() for t in check_views("targets", targets)]
            if len(targets) != len(codes):
                raise ValueError(f"targets: expected {len(codes)} views, as many as codes, got {len(targets)}")
            check_pair("codes[0]", codes[0], "targets[0]", targets[0])
        views = upcast([*codes, *(targets or ())])
        with torch.autocast(views[0].device.type, enabled=False):
            return self.loss(views[: len(codes)], views[len(codes) :])

    def loss(self, codes: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Return the loss of valid views. ``targets`` is empty where the objective has none."""
        raise NotImplementedError


def check_views(name: str, views: Views) -> list[Tensor]:
    """Return the views as a list. Raise unless they are at least two matrices of one shape, on one device."""
    views = check_view_count(name, views)
    for i, z in enumerate(views):
        check_pair(f"{name}[0]", views[0], f"{name}[{i}]", z)
    return views


def mean_over_pairs(pair_loss: Callable[[Tensor, Tensor], Tensor], views: Iterable[Tensor]) -> Tensor:
    """Return the mean of a symmetric loss over the pairs of different views."""
    return torch.stack([pair_loss(a, b) for a, b in combinations(views, 2)]).mean()


def mean_cosine(codes: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the mean cosine of the codes of each view with the targets of every other view."""
    unit_codes, unit_targets = ([nn.functional.normalize(z) for z in views] for views in (codes, targets))
    pairs = permutations(range(len(codes)), 2)
    return torch.stack([(unit_codes[i] * unit_targets[j]).sum(1).mean() for i, j in pairs]).mean()


def check_number(
    name: str, value: float, at_least: float = 0, above: float = -math.inf, at_most: float = math.inf
) -> None:
    """Raise unless ``value`` is a finite number within the bounds."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not at_least <= value <= at_most or value <= above:
        bounds = f"above {above:g}" if above > -math.inf else f"of at least {at_least:g}"
        bounds += f" and at most {at_most:g}" if at_most < math.inf else ""
        raise ValueError(f"{name}: expected a finite number {bounds}, got {describe(value)}")


def check_count(name: str, value: int, at_least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}: expected a whole number of at least {at_least}, got {describe(value)}")
