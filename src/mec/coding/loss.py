"""The objective as a module: what one adds to a training loop."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mec.coding.checks import check_distortion, check_finite, check_order, check_pair
from mec.coding.cost import cheapest_way
from mec.coding.gram import Group, all_processes, cross_gram, self_gram, size_of
from mec.coding.shares import share_of_log_det, sum_of_shares

Pair = tuple[Tensor, Tensor]
"""Of the two views."""
Form = Literal["cross", "pooled"]


class MECLoss(nn.Module):
    """Maximum Entropy Coding of two views, as a loss whose first-order part is minus their mean cosine.

    ``loss((p1, p2), (z1, z2))`` is the paper's objective (Eq. 3), value and gradient, for predictions p of a
    student and codes z of a teacher: the mean over the pairs (p1, z2) and (p2, z1) of

        cross:   -distortion * log |det(I + p z^T / (m distortion))|

    ``loss((z1, z2))``, without targets, is the stable form for two codes with gradient:

        pooled:  1 - mean cosine(z1, z2) - distortion * log det(I + u u^T / (2 m distortion)),  u = [z1; z2]

    the disagreement of the views less the coding rate of their union. It bounds the cross form from
    above where that is well posed, has the same first order, and equals it when the views agree; its matrix is
    positive semi-definite, so that it is finite for every batch size, width, network and distortion.
    It needs neither teacher nor predictor. docs/objective.md derives and measures it.

    m counts the rows of all processes once torch.distributed is initialized; each holds as many rows and
    gets the same value, with a gradient whose average (DistributedDataParallel) is that of the joined batch.

    Args:
        distortion: the paper's eps_d^2 > 0; lambda^-1 = m * distortion.
        order: None for the exact log det; n >= 1 for n terms of its Taylor series (the paper's code: 4).
        form: "cross" or "pooled"; None takes "cross" with targets and "pooled" without.
        group: the processes to join; None joins all.
        check: raise when the value is not finite, for which the host waits for the device in every call; False
            leaves NaN and infinity in the value to the caller, and never waits.

    Shape:
        each of p1, p2, z1, z2: (m, d), m >= 2, any scale (rows are normalized). Returns a scalar, in float32 at
        least; TF32 products are used only where ``torch.set_float32_matmul_precision`` allows them.

    Raises:
        ValueError: naming the argument, what came and what was expected; NaN and infinity included, unless
            ``check`` is off (a compiled graph cannot raise and passes them on).

    Examples:
        >>> import torch
        >>> z1, z2 = torch.randn(32, 16, requires_grad=True), torch.randn(32, 16)
        >>> MECLoss()((z1, z2)).backward()
        >>> paper = MECLoss(distortion=1 / 32, order=4)
        >>> value = paper((z1, z2), targets=(z1.detach(), z2.detach()))
    """

    def __init__(
        self,
        distortion: float = 1 / 32,
        order: int | None = None,
        form: Form | None = None,
        group: Group = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        check_distortion(distortion)
        check_order(order)
        if form not in ("cross", "pooled", None):
            raise ValueError(f"form: expected 'cross', 'pooled' or None, got {form!r}")
        self.distortion, self.order, self.form = distortion, order, form
        self.group, self.check = group, check

    def forward(self, predictions: Pair, targets: Pair | None = None, distortion: float | None = None) -> Tensor:
        """``distortion`` overrides the module's for this call: that is how a schedule is applied."""
        if distortion is None:
            distortion = self.distortion
        check_distortion(distortion)
        p1, p2 = _two("predictions", predictions)
        z1, z2 = (p1, p2) if targets is None else _two("targets", targets)
        check_pair("predictions[0]", p1, "predictions[1]", p2)
        check_pair("predictions[0]", p1, "targets[0]", z1)
        check_pair("predictions[0]", p1, "targets[1]", z2)

        # codes that are their own targets make the second pair the transpose of the first
        pairs = [(p1, z2)] if targets is None else [(p1, z2), (p2, z1)]
        form = self.form or ("pooled" if targets is None else "cross")
        loss_of = _cross if form == "cross" else _pooled
        group = all_processes() if self.group is None else self.group
        # one pair after another: a stack is a copy, and LU of a stack went wrong in MKL's threads (torch 2.15)
        share = torch.stack([loss_of(p, z, distortion, self.order, group) for p, z in pairs]).mean()
        value = sum_of_shares(share, group)
        if self.check:
            check_finite(value, **{"predictions[0]": p1, "predictions[1]": p2, "targets[0]": z1, "targets[1]": z2})
        return value

    def extra_repr(self) -> str:
        return f"distortion={self.distortion:.4g}, order={self.order}, form={self.form}"


def _cross(p: Tensor, z: Tensor, distortion: float, order: int | None, group: Group) -> Tensor:
    """This process's share of the loss of a pair, as _pooled."""
    processes = size_of(group)
    rows = len(p) * processes
    way = cheapest_way(rows, p.shape[1], processes, order, symmetric=False)
    C = cross_gram(p, z, rows * distortion, way.feature_side, group)
    return -distortion * share_of_log_det(C, order, False, way, group)


def _pooled(p: Tensor, z: Tensor, distortion: float, order: int | None, group: Group) -> Tensor:
    processes = size_of(group)
    rows = 2 * len(p) * processes
    way = cheapest_way(rows, p.shape[1], processes, order, symmetric=True)
    C, cosine = self_gram((p, z), rows * distortion, way.feature_side, group)
    return (1 - cosine) / processes - distortion * share_of_log_det(C, order, True, way, group)


def _two(name: str, views: object) -> Pair:
    if not isinstance(views, (tuple, list)) or len(views) != 2:
        what = f"a tensor of shape {tuple(views.shape)}" if isinstance(views, Tensor) else f"{views!r:.60}"
        raise ValueError(f"{name}: expected a pair of tensors, one for each view, got {what}")
    return views[0], views[1]
