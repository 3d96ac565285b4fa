"""MECLoss, the objective of Maximum Entropy Coding (Liu et al., NeurIPS 2022), of two or more views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mec.coding.checks import (
    FORMS,
    check_choice,
    check_distortion,
    check_finite,
    check_optional_count,
    check_order,
    check_pair,
    check_positive,
    check_view_count,
)
from mec.coding.gram import (
    Group,
    gather_counts,
    inverse_norms,
    min_rows,
    pad_rows,
    unit_rows,
    upcast,
    world_group,
)
from mec.coding.log_det import sum_contributions
from mec.coding.pairs import differences, weighted_by_pairs
from mec.coding.rate import Rows, cross_rate, self_rate
from mec.coding.sweep import ideal_rate

Views = Sequence[Tensor]
"""One tensor (m, d) for each view."""
Form = Literal["cross", "pooled", "reduction"]
RateViews = Literal["all", "global"]


class _Term(NamedTuple):
    """Views that have one log det, and the weight of their loss."""

    weight: float
    views: Views
    last_is_mean: bool = False  # the last view is a mean of unit codes, which keeps its length


class MECLoss(nn.Module):
    """Maximum Entropy Coding of two or more views.

    The first term of the Taylor series of the loss is minus the mean cosine similarity of the views.

    ``loss((p1, p2), (z1, z2))`` is the paper's objective (Eq. 3), value and gradient, for predictions p of a
    student and codes z of a teacher (codes are the projector's outputs): the mean over the pairs (p1, z2), (p2, z1) of

        cross:   -distortion * log |det(I + p z^T / (m distortion))|

    With V views, each p is compared with the mean of the unit targets z of the other views: there are V log dets.

    ``loss((z1, z2))``, without targets, is a stable form for V >= 2 views that all receive gradients:

        reduction:  -distortion * ( log det(I + S / distortion) - log det(I + N / distortion) )

    S is the covariance of the codes of all views, and N that of the differences between views of an image, the mean of
    (u_a - u_b) (u_a - u_b)^T / 2 over the pairs of views: the rate of all codes minus that of what the views do not
    share. S is a mean over the same pairs: global views count more than local ones. Tr N is the disagreement, 1 - mean
    cosine. Its first order,

        pooled:     Tr N - rate_weight * distortion * log det(I + S / distortion),

    is a looser bound for views that disagree, and with a ``rate_weight`` above 1 no bound. Both have the first-order
    term of the cross form and equal it when the views agree. Of two views, they are never below it if the symmetric
    part of the cross-covariance of the codes is positive semi-definite, as for views that agree well. Their matrices
    are positive semi-definite, so they are finite for every batch size, width, network and distortion. They need
    neither a teacher nor a predictor. docs/objective.md derives and measures them.

    The pairs are all those of different views, or with ``global_views`` those of a global view and any other (and two
    global views count twice). The cost is that of V m codes, not of the pairs.

    When torch.distributed is initialized, m counts the rows of all processes, whose numbers may differ, and all must
    call the loss. All get the same value, and the average of their gradients (DistributedDataParallel) is the gradient
    of the global batch.

    Args:
        distortion: the paper's eps_d^2 > 0; lambda^-1 = m * distortion.
        order: None for the exact log det; n >= 1 for n terms of its Taylor series (4 in the paper's code).
        form: "cross", "reduction" or "pooled"; None selects "cross" with targets and "reduction" without. The latter
            two with targets are the mean of the loss of each p and the mean of its targets.
        group: process group whose rows form the batch; None uses all processes.
        check: raise when the value is not finite. This synchronizes host and device in every call; False returns NaN
            or infinity to the caller and never synchronizes. With several processes, the first call does, and every
            call in which each process has more rows than any had before; if only some have, False returns NaN.
        rate_weight: factor of the rate in the pooled form, > 0. The other forms need none and require 1.
        global_views: number of global views, as in DINO and SwAV: the first ones. The others, local ones, are compared
            with the global views only, and targets are those of the global views. None: all views are global.
        rate_views: "all", or "global": without targets, S is the covariance of the codes of the global views only.
        normalize: divide the loss by the rate of ideal codes, which fill all r = min(m, d) directions evenly and whose
            views agree: r distortion log(1 + 1 / (r distortion)). Their loss is then -1 at every distortion, and a
            sweep of the distortion changes the scale of the gradients little.

    Shape:
        p1, p2, z1, z2: (m, d) each, m >= 2, or >= 1 in each of several processes, any scale: rows are normalized. A
            zero row stays zero and gets no gradient: it has cosine 0 with every row, and counts 1/2 in Tr N with a
            unit row, 0 with another zero row.
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
        >>> four_views = MECLoss()(torch.randn(4, 32, 16).unbind())
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
        rate_weight: float = 1.0,
        global_views: int | None = None,
        rate_views: RateViews = "all",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        check_distortion(distortion)
        check_order(order)
        check_choice("form", form, FORMS)
        check_positive("rate_weight", rate_weight)
        check_optional_count("global_views", global_views, "all views")
        check_choice("rate_views", rate_views, ("all", "global"))
        self.distortion, self.order, self.form = distortion, order, form
        self.group, self.check, self.normalize = group, check, normalize
        self.rate_weight, self.global_views, self.rate_views = rate_weight, global_views, rate_views
        self._check_rate_settings(form, has_targets=False)
        self._max_rows = 0  # to which each of several processes pads its rows: the most that any has had

    def forward(self, predictions: Views, targets: Views | None = None, distortion: float | None = None) -> Tensor:
        """Return the loss. ``distortion`` overrides the module's for this call, so that it can follow a schedule."""
        if distortion is None:
            distortion = self.distortion
        group = world_group() if self.group is None else self.group
        predictions = check_view_count("predictions", predictions)
        num_global = self.global_views or len(predictions)
        if num_global > len(predictions):
            raise ValueError(f"global_views: expected at most the {len(predictions)} views, got {num_global}")
        named = {f"predictions[{i}]": p for i, p in enumerate(predictions)}
        if targets is not None:
            targets = check_view_count("targets", targets, num_global)
            named |= {f"targets[{i}]": z for i, z in enumerate(targets)}
        for name, z in named.items():
            check_pair("predictions[0]", predictions[0], name, z, min_rows(group))
        check_distortion(distortion)

        form: Form = self.form or ("reduction" if targets is None else "cross")
        self._check_rate_settings(form, targets is not None)
        terms = [_Term(1.0, predictions)]  # the cross form of two views, too: both pairs have the same value
        if targets is not None or (form == "cross" and len(predictions) > 2):
            terms = _compare_with_means(predictions, predictions[:num_global] if targets is None else targets)
        term_loss = self._cross if form == "cross" else self._stable
        counts = gather_counts(len(predictions[0]), predictions[0].device, group)
        value = self._sum_over_processes(term_loss, terms, distortion, counts, group)
        if self.check:
            can_read = not torch.compiler.is_compiling()
            if counts is not None and can_read and not bool(value.isfinite()) and int(counts.max()) > self._max_rows:
                self._max_rows = int(counts.max())  # all processes get here together
                value = self._sum_over_processes(term_loss, terms, distortion, counts, group)
            check_finite(value, **named)
        return value

    def _check_rate_settings(self, form: Form | None, has_targets: bool) -> None:
        """Raise for settings of the rate that have no meaning in this form, or with targets."""
        if form != "pooled" and self.rate_weight != 1:
            raise ValueError(f"rate_weight: expected 1 with the {form or 'default'} form, got {self.rate_weight:g}")
        if (form == "cross" or has_targets) and self.rate_views != "all":
            raise ValueError(f"rate_views: expected 'all' with targets or the cross form, got {self.rate_views!r}")

    def _sum_over_processes(
        self,
        term_loss: Callable[[_Term, float, Rows, Group], Tensor],
        terms: Sequence[_Term],
        distortion: float,
        counts: Tensor | None,
        group: Group,
    ) -> Tensor:
        """Return the sum of the terms. ``counts`` are the numbers of rows of all processes, None for one process.

        The shapes of all collectives follow from ``_max_rows``, which is equal in all processes: none waits for another
        that has a different shape. It grows where each process can see that all others see the same. A process that
        alone has more rows does what the others expect of it, with codes that are NaN, and so is the value in all.
        """
        m = len(terms[0].views[0])
        rows = Rows(m, m, m)
        if counts is not None:
            total = counts.sum().double()
            # reading waits for the device; a compiled graph cannot read
            if not torch.compiler.is_compiling() and m > self._max_rows and int(counts.min()) > self._max_rows:
                self._max_rows = int(counts.max())
            if self._max_rows == 0:  # compiled without a call before
                total = torch.where((counts == m).all(), total, torch.nan)
            rows = Rows(m, self._max_rows or m, total)
            terms = [term._replace(views=[_fit(z, rows.padded) for z in term.views]) for term in terms]
        # terms are not batched: stacking copies, and batched LU returned wrong values in MKL's threads (torch 2.15)
        losses = [term.weight * term_loss(term, distortion, rows, group) for term in terms]
        value = sum_contributions(torch.stack(losses).sum(), group)
        if not self.normalize:
            return value
        return (value / ideal_rate(distortion, rows.total, terms[0].views[0].shape[1])).to(value.dtype)

    def _cross(self, term: _Term, distortion: float, rows: Rows, group: Group) -> Tensor:
        """Return the contribution of this process to the cross loss of predictions and targets."""
        p, z = term.views
        return -distortion * cross_rate(p, z, distortion, self.order, rows, group, term.last_is_mean)

    def _stable(self, term: _Term, distortion: float, rows: Rows, group: Group) -> Tensor:
        """Return the contribution of this process to the reduction or pooled loss of two or more views."""
        p, num_views = term.views, len(term.views)
        num_global = min(self.global_views or num_views, num_views)
        unit = torch.cat([unit_rows(p[:-1]), *upcast(p[-1:])]) if term.last_is_mean else unit_rows(p)
        unshared = differences(unit, num_views, num_global)
        if self.rate_views == "global":
            counted, scale = unit[: num_global * len(p[0])], num_global * rows.total
        elif num_global == num_views:
            counted, scale = unit, num_views * rows.total
        else:
            counted, scale = weighted_by_pairs(unit, num_views, num_global), rows.total
        between = self_rate(counted, distortion, self.order, scale, group)
        if self.form == "pooled":
            return (unshared.square().sum() / rows.total).to(unit.dtype) - self.rate_weight * distortion * between
        return distortion * (self_rate(unshared, distortion, self.order, rows.total, group) - between)

    def extra_repr(self) -> str:
        defaults = {"rate_weight": 1, "global_views": None, "rate_views": "all", "normalize": False}
        changed = {name: value for name, default in defaults.items() if (value := getattr(self, name)) != default}
        text = f"distortion={self.distortion}, order={self.order}, form={self.form}"
        return text + "".join(f", {name}={value}" for name, value in changed.items())


def _fit(z: Tensor, rows: int) -> Tensor:
    """Append zero rows up to ``rows``; where z has more, return NaN in place of its first ``rows``."""
    return pad_rows(z, rows) if len(z) <= rows else z[:rows] * torch.nan


def _compare_with_means(predictions: Views, targets: Views) -> list[_Term]:
    """Return a term for each view: its predictions, and the mean of the unit targets of the other views among the first
    ones, which have targets. Each pair of a view and a target of another view has the same weight."""
    num_views, num_global = len(predictions), len(targets)
    others = [num_global - (v < num_global) for v in range(num_views)]
    if num_views == 2:  # the other view is the mean
        means = [targets[-1], targets[0]]
    else:
        units = [z * inverse_norms(z) for z in upcast(targets)]
        total = torch.stack(units).sum(0)
        means = [(total - units[v] if v < num_global else total) / max(n, 1) for v, n in enumerate(others)]
    terms = zip(others, zip(predictions, means, strict=True), strict=True)
    return [_Term(n / sum(others), views, last_is_mean=num_views > 2) for n, views in terms if n > 0]
