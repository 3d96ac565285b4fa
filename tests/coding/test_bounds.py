"""Bounds of the stable forms of MECLoss and their gradients, for any codes, and their order."""

import itertools
import math

import pytest
import torch
from torch.autograd import grad
from torch.nn.functional import normalize

from mec.coding import MECLoss, effective_rank
from tests.pairwise import pairwise

from . import reference


def adversarial_codes(num_views, m, d):
    """Return views that are random, opposite, collapsed in different directions, and equal up to the last bits."""
    torch.manual_seed(m * d)
    z = torch.randn(m, d, dtype=torch.float64)
    axes = torch.eye(d, dtype=torch.float64)
    return [
        [torch.randn(m, d, dtype=torch.float64) for _ in range(num_views)],
        [z * (-1) ** v for v in range(num_views)],
        [axes[v % d].expand(m, d) for v in range(num_views)],
        [z * (1 + 1e-15 * v) for v in range(num_views)],
        [torch.ones(m, d, dtype=torch.float64) * (v > 0) for v in range(num_views)],
    ]


STABLE = [("reduction", 1.0), ("pooled", 0.1), ("pooled", 1.0), ("pooled", 50.0)]  # form, weight


def least_value(weight, directions, eps):
    """Return the loss of views that agree, spread evenly over ``directions``."""
    return -weight * eps * directions * math.log1p(1 / (directions * eps))


@pytest.mark.parametrize(
    ("num_views", "num_global", "shape", "eps", "rate"),
    pairwise([2, 3, 8], [None, 1, 2], [(2, 3), (16, 4), (5, 40)], [1e-6, 1 / 32, 10.0], STABLE),
)
def test_loss_and_gradient_are_bounded(num_views, num_global, shape, eps, rate):
    (m, d), (form, weight), g, directions = shape, rate, num_global or num_views, min(num_views * shape[0], shape[1])
    highest = 2.0 if num_global else num_views / (num_views - 1)  # of Tr N
    # N is at most this many times S
    ratio = 2.0 if num_global else num_views / (num_views - 1)
    if form == "reduction":
        highest = min(highest, eps * directions * math.log(ratio))
    # with equal roles, S - N is at most the covariance of the mean codes of the m images
    lowest = least_value(weight, directions if num_global or weight > 1 else min(m, d), eps)
    # A matrix 0 <= A <= I maps x into the ball of which 0 and x are the ends of a diameter. The gradient in a unit code
    # u, times V m, is 2 A (u - w) of N with |w| <= 1, and 2 B u of S: without radial parts at most 3/2 sqrt(3), and 1.
    of_gradient = (num_views + g - 2) / (g * (num_views - 1) * m) * (1 + weight / 2)
    if form == "reduction":
        of_gradient *= 0.75 * math.sqrt(3)
    for codes in adversarial_codes(num_views, m, d):
        unit = [normalize(z).requires_grad_() for z in codes]
        value = MECLoss(eps, form=form, rate_weight=weight, global_views=num_global)(unit)
        assert lowest - 1e-9 <= value <= highest + 1e-9
        if form == "reduction":
            assert value <= MECLoss(eps, form="pooled", global_views=num_global)(unit) + 1e-9
        for gradient in grad(value, unit):
            assert torch.linalg.vector_norm(gradient, dim=1).max() <= of_gradient + 1e-9


SMALL = [(2, 16), (32, 8), (16, 64)], [1e-4, 1 / 32, 1.0]  # m and d, distortion
FREE = [(views, *case, ("reduction", 1.0)) for views, case in zip([2, 4] * 5, itertools.product(*SMALL), strict=False)]


@pytest.mark.parametrize(
    ("num_views", "shape", "eps", "rate"), FREE + pairwise([2, 4], *SMALL, [("pooled", w) for w in (0.5, 3.0, 20.0)])
)
def test_free_codes_stay_bounded_under_descent(num_views, shape, eps, rate):
    (m, d), (form, weight) = shape, rate
    lowest = least_value(weight, min(m if weight <= 1 else num_views * m, d), eps)
    views = reference.random_codes(num_views, *shape, torch.float32, seed=3)
    loss = MECLoss(eps, form=form, rate_weight=weight)
    optimizer, values = torch.optim.Adam(views, lr=0.1), []
    for _ in range(60 if form == "pooled" else 120):
        optimizer.zero_grad()
        value = loss(views)
        value.backward()
        optimizer.step()
        values.append(value.item())
        assert lowest - 1e-5 * max(1.0, weight) <= values[-1] <= num_views / (num_views - 1) + 1e-5
        assert all(z.grad.isfinite().all() for z in views)
    assert values[-1] < values[0]
    if form == "reduction":  # near its minimum
        assert values[-1] - lowest < 0.1 * -lowest
        assert torch.cosine_similarity(*views[:2]).min() > 0.8
        assert effective_rank(views[0].detach()) > 0.98 * min(m, d)


@pytest.mark.parametrize("eps", [1e-3, 0.05, 1.0])
def test_bounds_of_many_views_hold_in_their_proven_order(eps):
    torch.manual_seed(0)
    shared = torch.randn(64, 4, dtype=torch.float64)
    for noise in (0.02, 0.2, 0.4):
        views = [normalize(shared + noise * torch.randn(64, 4, dtype=torch.float64)) for _ in range(4)]
        pairs = list(itertools.combinations(views, 2))
        products = [a.T @ b / 64 for a, b in pairs]
        assert all(torch.linalg.eigvalsh(S + S.T).min() > 0 for S in products)
        cross = sum(-eps * reference.coding_rate(a, b, eps, None) for a, b in pairs) / len(pairs)
        pooled = sum(reference.mec_loss(pair, None, eps, form="pooled") for pair in pairs) / len(pairs)
        disagreement = 1 - sum((a * b).sum(1).mean() for a, b in pairs) / len(pairs)
        per_view = disagreement - eps * sum(reference.coding_rate(z, z, eps, None) for z in views) / 4
        mean_product = sum(S + S.T for S in products) / (2 * len(pairs))
        lower = -eps * reference.log_det(mean_product / eps, None)
        reduction, joined = (MECLoss(eps, form=form)(views) for form in ("reduction", "pooled"))
        assert cross <= pooled <= per_view
        assert lower <= reduction <= joined <= pooled
        assert cross <= reduction  # measured, not proven


@pytest.mark.parametrize(("num_views", "d", "eps"), [(3, 2, 0.03), (3, 4, 0.3), (4, 3, 0.003), (4, 4, 3.0)])
def test_descent_finds_no_codes_whose_joined_loss_is_below_the_mean_cross_loss(num_views, d, eps):
    torch.manual_seed(0)
    starts, m, identity = 16, 8, torch.eye(d, dtype=torch.float64)
    spread = torch.rand(starts, 1, 1, 1, dtype=torch.float64)
    codes = torch.randn(starts, 1, m, d, dtype=torch.float64) + spread * torch.randn(starts, num_views, m, d)
    optimizer, lowest = torch.optim.Adam([codes.requires_grad_()], lr=0.03), math.inf
    pairs = list(itertools.combinations(range(num_views), 2))
    for _ in range(150):
        u = normalize(codes, dim=-1)
        products = torch.stack([u[:, a].mT @ u[:, b] / m for a, b in pairs], dim=1)
        S, M = (u.mT @ u).mean(1) / m, (products + products.mT).mean(1) / 2
        disagreement = 1 - M.diagonal(dim1=-2, dim2=-1).sum(-1)
        reduction = -eps * (torch.logdet(identity + S / eps) - torch.logdet(identity + (S - M) / eps))
        cross = -eps * torch.linalg.slogdet(identity + products / eps).logabsdet.mean(1)
        eigenvalue = torch.linalg.eigvalsh(products + products.mT).amin((1, 2))  # the cross form is well posed above 0
        gap = (reduction - cross) / disagreement
        is_valid = (eigenvalue >= 0) & (disagreement > 0.01)
        lowest = min([lowest, *gap[is_valid].tolist()])
        penalty = 30 * torch.relu(1e-4 - eigenvalue) + 100 * torch.relu(0.02 - disagreement)
        optimizer.zero_grad()
        (gap + penalty).sum().backward()
        optimizer.step()
    assert 0 < lowest < math.inf


@pytest.mark.parametrize(("m", "d", "eps"), [(4, 4, 1e-4), (12, 4, 1 / 32), (3, 9, 1.0), (64, 16, 5.0)])
def test_the_normalized_loss_of_ideal_codes_is_minus_one(m, d, eps):
    z = torch.eye(d, dtype=torch.float64)[:m].repeat(-(-m // d), 1)  # all directions equally often
    for form, num_views in itertools.product(("reduction", "pooled", "cross"), (2, 4)):
        value = MECLoss(eps, form=form, normalize=True)([3 * z] * num_views)
        torch.testing.assert_close(value, torch.tensor(-1.0, dtype=torch.float64))


def test_a_sweep_hardly_changes_the_scale_of_normalized_gradients():
    def ratio(normalize, num_views):
        norms = []
        for eps in (1 / 2048, 1 / 128, 1 / 8):
            views = reference.random_codes(num_views, 64, 32, seed=1)
            gradients = grad(MECLoss(eps, normalize=normalize)(views), views)
            norms.append(torch.cat(gradients).norm())
        return max(norms) / min(norms)

    for num_views in (2, 4):
        assert ratio(False, num_views) > 8
        assert ratio(True, num_views) < 2.5
