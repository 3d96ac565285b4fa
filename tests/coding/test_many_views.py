"""MECLoss of two to eight views, global and local ones, with a weight of the rate, against loops over pairs."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck
from torch.nn.functional import normalize

from mec.coding import MECLoss, cost, effective_rank, loss_in_chunks
from tests.pairwise import pairwise
from tests.processes import needs_gloo

from . import reference
from .processes import run_in_processes

EPS = 0.6
FORMS = {  # arguments of the loss, whether it has targets
    "pooled": ({"form": "pooled"}, False),
    "pooled, weighted": ({"form": "pooled", "rate_weight": 2.5}, False),
    "pooled, targets": ({"form": "pooled", "rate_weight": 2.5}, True),
    "reduction": ({}, False),
    "reduction, rate of global views": ({"rate_views": "global"}, False),
    "reduction, targets": ({"form": "reduction"}, True),
    "cross": ({}, True),
    "cross, no targets": ({"form": "cross"}, False),
}
CASES = pairwise(
    list(FORMS), [2, 3, 4, 8], [None, 1, 2], [None, 1, 2, 4], [(5, 9), (12, 5)], [torch.float64, torch.float32]
)


def make_views(form, num_views, num_global, m, d, dtype=torch.float64, seed=0):
    """Return predictions, and targets of the global views, or None."""
    count = (num_global or num_views) if FORMS[form][1] else 0
    codes = reference.random_codes(num_views + count, m, d, dtype, seed)
    return codes[:num_views], codes[num_views:] or None


def expected_loss(form, predictions, targets, eps, order, num_global):
    return reference.mec_loss(predictions, targets, eps, order, global_views=num_global, **FORMS[form][0])


def assert_matches(form, order, num_global, codes, codes64, tolerance):
    value = MECLoss(EPS, order, global_views=num_global, **FORMS[form][0])(*codes)
    expected = expected_loss(form, *codes64, EPS, order, num_global)
    assert value.dtype == codes[0][0].dtype
    reference.assert_close_in_scale(value, expected, tolerance)
    inputs, inputs64 = ([z for views in both if views for z in views] for both in (codes, codes64))
    gradients = grad(value, inputs, allow_unused=True, materialize_grads=True)
    expected_gradients = grad(expected, inputs64, allow_unused=True, materialize_grads=True)
    for z, a, b in zip(inputs, gradients, expected_gradients, strict=True):
        nonzero = z.detach().abs().sum(1) > 0  # the textbook form divides by 1e-12 in a zero row
        assert not a[~nonzero].any()
        reference.assert_close_in_scale(a[nonzero], b[nonzero], tolerance)


@pytest.mark.parametrize(("form", "num_views", "num_global", "order", "shape", "dtype"), CASES)
def test_values_and_gradients_match_loops_over_pairs(form, num_views, num_global, order, shape, dtype):
    codes = make_views(form, num_views, num_global, *shape, dtype)
    codes64 = [views and reference.in_float64(views) for views in codes]
    assert_matches(form, order, num_global, codes, codes64, 1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_zero_rows_differ_from_unit_rows_by_half_and_get_no_gradient(form):
    codes = make_views(form, 4, 2, 6, 5)
    with torch.no_grad():
        codes[0][0][1] = 0  # in a global view, in a local one, in both
        codes[0][3][2] = 0
        codes[0][1][4] = codes[0][2][4] = 0
        for targets in codes[1] or ():
            targets[3] = 0
    for order in (None, 2):
        assert_matches(form, order, 2, codes, codes, 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form):
    predictions, targets = make_views(form, 3, 2, 3, 4)
    loss = MECLoss(EPS, None, global_views=2, **FORMS[form][0])
    assert gradcheck(lambda *views: loss(views[:3], views[3:] or None), (*predictions, *(targets or ())))


@pytest.mark.parametrize("num_views", [2, 3, 8])
@pytest.mark.parametrize("num_global", [None, 1, 2])
def test_first_order_is_the_mean_cosine_of_the_pairs(num_views, num_global):
    views = reference.random_codes(num_views, 7, 5)
    pairs = reference.ordered_pairs(num_global or num_views, num_views)
    minus_cosine = -sum((normalize(views[a]) * normalize(views[b])).sum(1).mean() for a, b in pairs) / len(pairs)
    for form, targets in (("pooled", None), ("reduction", None), ("cross", None), ("cross", views[:num_global])):
        loss = MECLoss(EPS, 1, form, global_views=num_global)
        torch.testing.assert_close(loss(views, targets), minus_cosine)
    weighted = MECLoss(EPS, 1, "pooled", rate_weight=3.0, global_views=num_global)(views)
    torch.testing.assert_close(weighted, minus_cosine - 2)


@pytest.mark.parametrize("form", ["pooled, weighted", "reduction", "cross", "cross, no targets"])
def test_autocast_and_low_precision_are_computed_in_float32(form):
    codes = [views and [z.detach().bfloat16() for z in views] for views in make_views(form, 4, 2, 16, 5)]
    loss = MECLoss(EPS, None, global_views=2, **FORMS[form][0])
    value = loss(*codes)
    expected = expected_loss(form, *[views and [z.double() for z in views] for views in codes], EPS, None, 2)
    assert value.dtype == torch.float32
    reference.assert_close_in_scale(value, expected, 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(*codes), value)


@pytest.mark.parametrize("form", ["reduction, rate of global views", "cross"])
def test_full_graph_compilation_equals_the_loops(form):
    torch.compiler.reset()
    codes = make_views(form, 4, 2, 6, 5)
    compiled = torch.compile(
        MECLoss(EPS, global_views=2, **FORMS[form][0]), fullgraph=True, backend="aot_eager", dynamic=False
    )
    value, expected = compiled(*codes), expected_loss(form, *codes, EPS, None, 2)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad(value, codes[0]), grad(expected, codes[0]))


@pytest.mark.parametrize("form", ["reduction", "cross, no targets"])
@pytest.mark.parametrize("num_global", [None, 2])
def test_chunks_have_value_and_gradient_of_the_whole_batch(form, num_global):
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    chunked, views = copy.deepcopy(whole), [torch.randn(12, 6, dtype=torch.float64) for _ in range(4)]
    expected = expected_loss(form, [whole(view) for view in views], None, EPS, None, num_global)
    expected.backward()
    chunks = list(zip(*(view.split(5) for view in views), strict=True))
    value = loss_in_chunks(chunked, chunks, MECLoss(EPS, global_views=num_global, **FORMS[form][0]))
    value.backward()
    torch.testing.assert_close(value.detach(), expected.detach())
    for actual, p in zip(chunked.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, p.grad)


ROWS = [(5, 3), (3, 5), (6, 1)]  # rows of the two processes, call by call
PROCESS_CASES = pairwise(list(FORMS), [5, 40], [None, 2], [0, 300])  # width, global views, price of a byte


def value_and_gradients(loss, codes):
    value = loss(*codes)
    return value.detach(), list(
        grad(value, [z for views in codes if views for z in views], materialize_grads=True, allow_unused=True)
    )


def worker(rank):
    result = {}
    for case in PROCESS_CASES:
        form, d, num_global, cost.FLOPS_PER_BYTE = case
        loss = MECLoss(EPS, None, global_views=num_global, **FORMS[form][0])
        result[case] = []
        for rows in ROWS:
            codes = make_views(form, 4, num_global, sum(rows), d)
            local = [
                views and [z.detach().split(rows)[rank].clone().requires_grad_() for z in views] for views in codes
            ]
            result[case].append(value_and_gradients(loss, local))
    return result


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_in_processes(worker, 2, tmp_path_factory.mktemp("results"))


@needs_gloo
@pytest.mark.parametrize(("form", "d", "num_global", "flops_per_byte"), PROCESS_CASES)
def test_two_processes_with_unequal_rows_equal_one_with_all(results, form, d, num_global, flops_per_byte):
    for call, rows in enumerate(ROWS):
        codes = make_views(form, 4, num_global, sum(rows), d)
        expected, expected_gradients = value_and_gradients(
            lambda *codes: expected_loss(form, *codes, EPS, None, num_global), codes
        )
        (value, gradients), (other, other_gradients) = (
            results[rank][form, d, num_global, flops_per_byte][call] for rank in (0, 1)
        )
        assert torch.equal(value, other)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        for a, b, e in zip(gradients, other_gradients, expected_gradients, strict=True):
            torch.testing.assert_close(torch.cat([a, b]) / 2, e, rtol=1e-12, atol=1e-12)


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
    ratio = num_views / (num_views - 1) * ((num_views + g - 2) / g if num_global else 1)
    if form == "reduction":
        highest = min(highest, eps * directions * math.log(ratio))
    # with equal roles, S - N is at most the covariance of the mean codes of the m images
    lowest = least_value(weight, directions if num_global or weight > 1 else min(m, d), eps)
    # A matrix 0 <= A <= I maps x into the ball of which 0 and x are the ends of a diameter. The gradient in a unit code
    # u, times V m, is 2 A (u - w) of N with |w| <= 1, and 2 B u of S: without radial parts at most 3/2 sqrt(3), and 1.
    of_gradient = (num_views + g - 2) / (g * (num_views - 1) * m) + weight / (num_views * m)
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
