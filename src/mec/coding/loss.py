"""MECLoss: the objective of Maximum Entropy Coding (Liu et al., NeurIPS 2022) as an ``nn.Module``."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mec.coding.checks import check_distortion, check_finite, check_order, check_pair
from mec.coding.cost import cheapest_plan
from mec.coding.gram import Group, cross_gram, get_world_size, self_gram, world_group
from mec.coding.sharded import log_det_contribution, sum_contributions

Pair = tuple[Tensor, Tensor]
"""One tensor for each of the two views."""
Form = Literal["cross", "pooled"]


class MECLoss(nn.Module):
    """Maximum Entropy Coding of two views.

    The first term of the Taylor series of the loss is minus the mean cosine similarity of the views.

    ``loss((p1, p2), (z1, z2))`` is the paper's objective (Eq. 3), value and gradient, for predictions p of a
    student and codes z of a teacher (codes are the projector's outputs): the mean over the pairs (p1, z2), (p2, z1) of

        cross:   -distortion * log |det(I + p z^T / (m distortion))|

    ``loss((z1, z2))``, without targets, is a stable variant for two views that both receive gradients:

        pooled:  1 - mean cosine(z1, z2) - distortion * log det(I + u u^T / (2 m distortion)),  u = [z1; z2]

    the disagreement of the views minus the coding rate of all their codes. It has the first-order term of the cross
    form, is never below it where the cross form is well posed, and equals it when the views agree. Its matrix is
    positive semi-definite, so it is finite for every batch size, width, network and distortion. It needs neither a
    teacher nor a predictor. docs/objective.md derives and measures it.

    When torch.distributed is initialized, m counts the rows of all processes. Each process must hold the same number
    of rows. All get the same value, and the average of their gradients (DistributedDataParallel) is the gradient of
    the global batch.

    Args:
        distortion: the paper's eps_d^2 > 0; lambda^-1 = m * distortion.
        order: None for the exact log det; n >= 1 for n terms of its Taylor series (4 in the paper's code).
        form: "cross" or "pooled"; None selects "cross" with targets and "pooled" without.
        group: process group whose rows form the batch; None uses all processes.
        check: raise when the value is not finite. This synchronizes host and device in every call; False returns NaN
            or infinity to the caller and never synchronizes.

    Shape:
        p1, p2, z1, z2: (m, d) each, m >= 2, any scale (rows are normalized). Returns a scalar, in float32 or float64;
        TF32 products are used only where ``torch.set_float32_matmul_precision`` allows them.

    Raises:
        ValueError: an invalid argument, or non-finite values unless ``check`` is False. The message names the
            argument, the expected value and the actual one. A compiled graph cannot raise and returns NaN.

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
        """Return the loss. ``distortion`` overrides the module's for this call, so that it can follow a schedule."""
        if distortion is None:
            distortion = self.distortion
        check_distortion(distortion)
        p1, p2 = _check_views("predictions", predictions)
        z1, z2 = (p1, p2) if targets is None else _check_views("targets", targets)
        check_pair("predictions[0]", p1, "predictions[1]", p2)
        check_pair("predictions[0]", p1, "targets[0]", z1)
        check_pair("predictions[0]", p1, "targets[1]", z2)

        # without targets both pairs give the same value
        pairs = [(p1, z2)] if targets is None else [(p1, z2), (p2, z1)]
        form = self.form or ("pooled" if targets is None else "cross")
        pair_loss = _cross if form == "cross" else _pooled
        group = world_group() if self.group is None else self.group
        # pairs are not batched: stacking copies, and batched LU returned wrong values in MKL's threads (torch 2.15)
        contribution = torch.stack([pair_loss(p, z, distortion, self.order, group) for p, z in pairs]).mean()
        value = sum_contributions(contribution, group)
        if self.check:
            check_finite(value, **{"predictions[0]": p1, "predictions[1]": p2, "targets[0]": z1, "targets[1]": z2})
        return value

    def extra_repr(self) -> str:
        return f"distortion={self.distortion:.4g}, order={self.order}, form={self.form}"


def _cross(p: Tensor, z: Tensor, distortion: float, order: int | None, group: Group) -> Tensor:
    """Return the contribution of this process to the cross loss of a pair."""
    world_size = get_world_size(group)
    rows = len(p) * world_size
    plan = cheapest_plan(rows, p.shape[1], world_size, order, symmetric=False)
    C = cross_gram(p, z, rows * distortion, plan.feature_side, group)
    return -distortion * log_det_contribution(C, order, False, plan, group)


def _pooled(p: Tensor, z: Tensor, distortion: float, order: int | None, group: Group) -> Tensor:
    """Return the contribution of this process to the pooled loss of a pair."""
    world_size = get_world_size(group)
    rows = 2 * len(p) * world_size
    plan = cheapest_plan(rows, p.shape[1], world_size, order, symmetric=True)
    C, cosine = self_gram((p, z), rows * distortion, plan.feature_side, group)
    # cosine is the mean of the local rows: the sum over processes divides by world_size
    return (1 - cosine) / world_size - distortion * log_det_contribution(C, order, True, plan, group)


def _check_views(name: str, views: object) -> Pair:
    if not isinstance(views, (tuple, list)) or len(views) != 2:
        actual = f"a tensor of shape {tuple(views.shape)}" if isinstance(views, Tensor) else f"{views!r:.60}"
        raise ValueError(f"{name}: expected a pair of tensors, one for each view, got {actual}")
    return views[0], views[1]
