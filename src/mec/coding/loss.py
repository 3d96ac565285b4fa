"""The objective of Maximum Entropy Coding (Liu et al., NeurIPS 2022): coding rates as functions, and MECLoss.

m is the number of codes, d their dimension, ``distortion`` the paper's eps_d^2 = eps^2 / d: lambda^-1 = m * distortion.
All values are in nats, computed in float32 or float64 even under autocast, and differentiable once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mec.coding.checks import (
    check_distortion,
    check_embeddings,
    check_finite,
    check_form,
    check_order,
    check_pair,
    describe,
)
from mec.coding.cost import cheapest_plan
from mec.coding.gram import (
    Group,
    Scale,
    cross_gram,
    gather_counts,
    get_world_size,
    min_rows,
    pad_rows,
    self_gram,
    world_group,
)
from mec.coding.log_det import log_det, sum_contributions

Pair = tuple[Tensor, Tensor]
"""One tensor for each of the two views."""
Form = Literal["cross", "pooled"]


def coding_rate(z: Tensor, distortion: float, order: int | None = None) -> Tensor:
    """Return the coding rate of z in nats: log det(I + z z^T / (m distortion)).

    Args:
        z: codes, (m, d), m >= 2, any scale: rows are normalized; a zero row stays zero.
        distortion: the paper's eps_d^2 > 0. A smaller value means a finer code.
        order: None for the exact log det, by Cholesky on the smaller of m x m and d x d; n >= 1 for the
            first n terms of its Taylor series, which converges when the norm of the matrix is below 1.

    Returns:
        A scalar: 0 for zero codes, log(1 + 1/distortion) when all rows are equal,
        d log(1 + 1/(d distortion)) when they are spread evenly over d <= m directions.

    Raises:
        ValueError: an invalid argument; the message names it, the expected value and the actual one.

    Examples:
        >>> import torch
        >>> collapsed, spread = torch.ones(8, 8), torch.eye(8)
        >>> round(coding_rate(collapsed, distortion=0.125).item(), 4)  # log(1 + 8)
        2.1972
        >>> round(coding_rate(spread, distortion=0.125).item(), 4)  # 8 log(1 + 1)
        5.5452
    """
    check_embeddings("z", z)
    check_distortion(distortion)
    check_order(order)
    value, _ = _self_rate([z], distortion, order, _Rows(len(z), len(z), len(z)), None)
    check_finite(value, z=z)
    return value


def cross_coding_rate(p: Tensor, z: Tensor, distortion: float, order: int | None = None) -> Tensor:
    """Return the coding rate shared by two views: log |det(I + p z^T / (m distortion))| (Eq. 3 without mu).

    Args:
        p: codes of one view, (m, d), m >= 2; rows are normalized.
        z: codes of the other view, (m, d); row i belongs to the same image as row i of p.
        distortion: the paper's eps_d^2 > 0.
        order: None for the exact log |det| by LU; n >= 1 for Tr sum_{k<=n} (-1)^(k+1)/k C^k with
            C = p z^T / (m distortion). C is not symmetric: the series is unbounded where its eigenvalues exceed 1
            in absolute value (see docs/objective.md).

    Returns:
        A scalar; equal to ``coding_rate(z)`` when p = z.

    Raises:
        ValueError: an invalid argument; the message names it, the expected value and the actual one.

    Examples:
        >>> import torch
        >>> p, z = torch.randn(16, 4), torch.randn(16, 4)
        >>> cosine = torch.nn.functional.cosine_similarity(p, z).mean()
        >>> torch.allclose(cross_coding_rate(p, z, distortion=1.0, order=1), cosine, atol=1e-6)
        True
    """
    check_pair("p", p, "z", z)
    check_distortion(distortion)
    check_order(order)
    value = _cross_rate(p, z, distortion, order, _Rows(len(p), len(p), len(p)), None)
    check_finite(value, p=p, z=z)
    return value


def coding_length(z: Tensor, distortion: float) -> Tensor:
    """Return the coding length of the rows of z (m, d) in nats, (m + d) / 2 * coding_rate (Eq. 1).

    Examples:
        >>> import torch
        >>> round(coding_length(torch.eye(8), distortion=0.125).item(), 3)  # (8 + 8) / 2 * 8 log 2
        44.361
    """
    m, d = z.shape if getattr(z, "ndim", 0) == 2 else (0, 0)
    return coding_rate(z, distortion) * ((m + d) / 2)


class _Rows(NamedTuple):
    """Numbers of rows of one view in a batch over all processes."""

    local: int  # in this process
    padded: int  # in each process after padding with zero rows, equal in all
    total: Scale  # in all processes together, without the padding


_PairLoss = Callable[[Tensor, Tensor, float, "int | None", _Rows, Group], Tensor]


def _cross_rate(p: Tensor, z: Tensor, distortion: float, order: int | None, rows: _Rows, group: Group) -> Tensor:
    """Return the contribution of this process to the cross coding rate of the rows (padded, d) of all processes."""
    world_size = get_world_size(group)
    plan = cheapest_plan(rows.padded * world_size, p.shape[1], world_size, order, symmetric=False)
    C = cross_gram(p, z, rows.total * distortion, plan.feature_side, group)
    return log_det(C, order, False, plan, group)


def _self_rate(
    views: Sequence[Tensor], distortion: float, order: int | None, rows: _Rows, group: Group
) -> tuple[Tensor, Tensor]:
    """Return the contribution of this process to the coding rate of the rows (padded, d) of all views and processes,
    and the mean cosine of the first and the last view in this process, with 0 for a zero row."""
    world_size = get_world_size(group)
    plan = cheapest_plan(len(views) * rows.padded * world_size, views[0].shape[1], world_size, order, symmetric=True)
    C, cosine = self_gram(views, len(views) * rows.total * distortion, plan.feature_side, group)
    return log_det(C, order, True, plan, group), cosine


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

    When torch.distributed is initialized, m counts the rows of all processes, whose numbers may differ, and all must
    call the loss. All get the same value, and the average of their gradients (DistributedDataParallel) is the gradient
    of the global batch.

    Args:
        distortion: the paper's eps_d^2 > 0; lambda^-1 = m * distortion.
        order: None for the exact log det; n >= 1 for n terms of its Taylor series (4 in the paper's code).
        form: "cross" or "pooled"; None selects "cross" with targets and "pooled" without.
        group: process group whose rows form the batch; None uses all processes.
        check: raise when the value is not finite. This synchronizes host and device in every call; False returns NaN
            or infinity to the caller and never synchronizes. With several processes, the first call does, and every
            call in which each process has more rows than any had before; if only some have, False returns NaN.

    Shape:
        p1, p2, z1, z2: (m, d) each, m >= 2, or >= 1 in each of several processes, any scale (rows are normalized).
        Returns a scalar, in float32 or float64; TF32 products are used only where
        ``torch.set_float32_matmul_precision`` allows them.

    Raises:
        ValueError: an invalid argument, or non-finite values unless ``check`` is False. The message names the
            argument, the expected value and the actual one. A compiled graph cannot raise and returns NaN; compiled
            before its first call, the loss needs the same number of rows in all processes.

    Examples:
        >>> import torch
        >>> z1, z2 = torch.randn(32, 16, requires_grad=True), torch.randn(32, 16)
        >>> MECLoss()((z1, z2)).backward()
        >>> paper = MECLoss(distortion=1 / 32, order=4)
        >>> value = paper((z1, z2), targets=(z1.detach(), z2.detach()))
    """

    joins_processes = True
    """For ``mec.pretrain``: it takes the codes of this process, not those of all."""

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
        check_form("form", form)
        self.distortion, self.order, self.form = distortion, order, form
        self.group, self.check = group, check
        self._max_rows = 0  # to which each of several processes pads its rows: the most that any has had

    def forward(self, predictions: Pair, targets: Pair | None = None, distortion: float | None = None) -> Tensor:
        """Return the loss. ``distortion`` overrides the module's for this call, so that it can follow a schedule."""
        if distortion is None:
            distortion = self.distortion
        group = world_group() if self.group is None else self.group
        rows = min_rows(group)
        p1, p2 = _check_views("predictions", predictions)
        z1, z2 = (p1, p2) if targets is None else _check_views("targets", targets)
        check_pair("predictions[0]", p1, "predictions[1]", p2, rows)
        check_pair("predictions[0]", p1, "targets[0]", z1, rows)
        check_pair("predictions[0]", p1, "targets[1]", z2, rows)
        check_distortion(distortion)

        # without targets both pairs give the same value
        pairs = [(p1, z2)] if targets is None else [(p1, z2), (p2, z1)]
        form = self.form or ("pooled" if targets is None else "cross")
        pair_loss = _cross if form == "cross" else _pooled
        counts = gather_counts(len(p1), p1.device, group)
        value = self._sum_over_processes(pair_loss, pairs, distortion, counts, group)
        if self.check:
            can_read = not torch.compiler.is_compiling()
            if counts is not None and can_read and not bool(value.isfinite()) and int(counts.max()) > self._max_rows:
                self._max_rows = int(counts.max())  # all processes get here together
                value = self._sum_over_processes(pair_loss, pairs, distortion, counts, group)
            check_finite(value, **{"predictions[0]": p1, "predictions[1]": p2, "targets[0]": z1, "targets[1]": z2})
        return value

    def _sum_over_processes(
        self, pair_loss: _PairLoss, pairs: Sequence[Pair], distortion: float, counts: Tensor | None, group: Group
    ) -> Tensor:
        """Return the mean loss of the pairs. ``counts`` are the numbers of rows of all processes, None for one process.

        The shapes of all collectives follow from ``_max_rows``, which is equal in all processes: none waits for another
        that has a different shape. It grows where each process can see that all others see the same. A process that
        alone has more rows does what the others expect of it, with codes that are NaN, and so is the value in all.
        """
        m = len(pairs[0][0])
        rows = _Rows(m, m, m)
        if counts is not None:
            total = counts.sum().double()
            # reading waits for the device; a compiled graph cannot read
            if not torch.compiler.is_compiling() and m > self._max_rows and int(counts.min()) > self._max_rows:
                self._max_rows = int(counts.max())
            if self._max_rows == 0:  # compiled without a call before
                total = torch.where((counts == m).all(), total, torch.nan)
            rows = _Rows(m, self._max_rows or m, total)
            pairs = [(_fit(p, rows.padded), _fit(z, rows.padded)) for p, z in pairs]
        # pairs are not batched: stacking copies, and batched LU returned wrong values in MKL's threads (torch 2.15)
        losses = [pair_loss(p, z, distortion, self.order, rows, group) for p, z in pairs]
        return sum_contributions(torch.stack(losses).mean(), group)

    def extra_repr(self) -> str:
        return f"distortion={self.distortion:.4g}, order={self.order}, form={self.form}"


def _fit(z: Tensor, rows: int) -> Tensor:
    """Append zero rows up to ``rows``; where z has more, return NaN in place of its first ``rows``."""
    return pad_rows(z, rows) if len(z) <= rows else z[:rows] * torch.nan


def _cross(p: Tensor, z: Tensor, distortion: float, order: int | None, rows: _Rows, group: Group) -> Tensor:
    """Return the contribution of this process to the cross loss of a pair."""
    return -distortion * _cross_rate(p, z, distortion, order, rows, group)


def _pooled(p: Tensor, z: Tensor, distortion: float, order: int | None, rows: _Rows, group: Group) -> Tensor:
    """Return the contribution of this process to the pooled loss of a pair."""
    rate, cosine = _self_rate((p, z), distortion, order, rows, group)
    # cosine is the mean of the local rows with the padding, which counts in neither term
    disagreement = (rows.local - rows.padded * cosine) / rows.total
    return disagreement.to(rate.dtype) - distortion * rate


def _check_views(name: str, views: object) -> Pair:
    if not isinstance(views, (tuple, list)) or len(views) != 2:
        raise ValueError(f"{name}: expected a pair of tensors, one for each view, got {describe(views)}")
    return views[0], views[1]
