import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import grad, gradcheck
from torch.nn.functional import cosine_similarity, normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mec.coding import MECLoss, coding_rate, effective_rank
from tests.pairwise import pairwise

from . import reference

ORDERS = [None, 1, 2, 3, 4, 5, 7, 12]
FORMS = ["cross", "pooled"]
SHAPES = [(5, 9), (7, 7), (12, 5)]  # m < d, m = d, m > d; the pooled form also sees 2 m > d > m
EPS = 0.6


@pytest.mark.parametrize(("shape", "order", "dtype"), pairwise(SHAPES, ORDERS, [torch.float32, torch.float64]))
def test_values_and_gradients_match_the_reference(shape, order, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    views = reference.random_codes(4, *shape, dtype)
    views64 = reference.in_float64(views)
    p1, p2, z1, z2 = views
    a1, a2, b1, b2 = views64
    pooled_with_targets = (reference.pooled_loss(a1, b2, EPS, order) + reference.pooled_loss(a2, b1, EPS, order)) / 2
    cross_without_targets = -EPS * reference.coding_rate(a1, a2, EPS, order)
    for actual, expected in [
        (MECLoss(EPS, order)((p1, p2), (z1, z2)), reference.cross_loss((a1, a2), (b1, b2), EPS, order)),
        (MECLoss(EPS, order, form="cross")((p1, p2)), cross_without_targets),
        (MECLoss(EPS, order)((p1, p2)), reference.pooled_loss(a1, a2, EPS, order)),
        (MECLoss(EPS, order, form="pooled")((p1, p2), (z1, z2)), pooled_with_targets),
    ]:
        assert actual.dtype == dtype
        assert actual.shape == ()
        reference.assert_close_in_scale(actual, expected, tolerance)
        gradients = grad(actual, views, allow_unused=True)
        expected_gradients = grad(expected, views64, allow_unused=True)
        for a, b in zip(gradients, expected_gradients, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                reference.assert_close_in_scale(a, b, tolerance)


@pytest.mark.parametrize(("shape", "order", "form"), pairwise([(3, 4), (5, 3)], [None, 1, 2, 4, 7], FORMS))
def test_gradcheck(shape, order, form):
    p1, p2, z1, z2 = reference.random_codes(4, *shape)
    loss = MECLoss(EPS, order, form)
    assert gradcheck(lambda *v: loss(v[:2], v[2:]), (p1, p2, z1, z2))
    assert gradcheck(lambda *v: loss(v, (z1.detach(), z2.detach())), (p1, p2))
    assert gradcheck(lambda *v: loss((p1.detach(), p2.detach()), v), (z1, z2))
    assert gradcheck(lambda *v: loss(v), (z1, z2))
    assert gradcheck(lambda v: loss((v, z2.detach())), (z1,))


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self.entries = max(self.entries, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return result


@pytest.mark.parametrize(("form", "order", "shape"), pairwise(FORMS, [None, 4], [(60, 5), (5, 60)]))
def test_matrix_is_formed_on_the_smaller_side(form, order, shape):
    m, d = shape
    p1, p2, z1, z2 = reference.random_codes(4, m, d)
    with LargestTensor() as largest:
        MECLoss(EPS, order, form)((p1, p2), (z1, z2)).backward()
    rows = m if form == "cross" else 2 * m
    assert largest.entries == rows * d


def test_detached_targets_get_no_gradient():
    p1, p2, z1, z2 = reference.random_codes(4, 6, 4)
    value = MECLoss(order=4)((p1, p2), (z1.detach(), z2.detach()))
    value.backward()
    assert p1.grad is not None
    assert z1.grad is None
    assert not MECLoss()((z1.detach(), z2.detach())).requires_grad


@pytest.mark.parametrize(("form", "order", "shape"), pairwise(FORMS, [None, 4], [(16, 40), (40, 16)]))
def test_low_precision_and_autocast_are_computed_in_float32(form, order, shape):
    views = [view.detach() for view in reference.random_codes(4, *shape, torch.bfloat16)]
    p1, p2, z1, z2 = (view.double() for view in views)
    expected = (reference.coding_rate(p1, z2, EPS, order) + reference.coding_rate(p2, z1, EPS, order)) * -EPS / 2
    if form == "pooled":
        expected = (reference.pooled_loss(p1, z2, EPS, order) + reference.pooled_loss(p2, z1, EPS, order)) / 2
    loss = MECLoss(EPS, order, form)
    value = loss(views[:2], views[2:])
    assert value.dtype == torch.float32
    reference.assert_close_in_scale(value, expected, 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(views[:2], views[2:]), value)


def test_exact_value_of_two_pairs_in_two_threads():
    # torch 2.15 with MKL: batched LU of sizes from 256 silently returned wrong values in several threads
    torch.set_num_threads(2)
    p1, p2, z1, z2 = reference.random_codes(4, 300, 310, torch.float32)
    a1, a2, b1, b2 = reference.in_float64([p1, p2, z1, z2])
    expected = reference.cross_loss((a1, a2), (b1, b2), 0.01, None)
    reference.assert_close_in_scale(MECLoss(0.01)((p1, p2), (z1, z2)), expected, 1e-5)


def test_distortion_of_a_call_overrides_that_of_the_module():
    p1, p2, z1, z2 = reference.random_codes(4, 6, 4)
    value = MECLoss(0.1, order=4)((p1, p2), (z1, z2), distortion=0.7)
    torch.testing.assert_close(value, reference.cross_loss((p1, p2), (z1, z2), 0.7, 4))


@pytest.mark.parametrize(("m", "d", "eps"), [(5, 9, 2.0), (7, 7, 0.02), (12, 5, 0.3)])
def test_pooled_equals_cross_when_the_views_agree(m, d, eps):
    (z,) = reference.random_codes(1, m, d)
    cross = -eps * reference.coding_rate(z, z, eps, None)
    torch.testing.assert_close(MECLoss(eps)((z, z)), cross)
    torch.testing.assert_close(coding_rate(torch.cat([z, z]), eps), reference.coding_rate(z, z, eps, None))


@pytest.mark.parametrize(("noise", "eps"), [(0.01, 1e-3), (0.1, 1.0), (0.3, 1 / 32), (0.6, 1e-3), (0.6, 1.0)])
def test_pooled_bounds_cross_where_the_cross_matrix_is_positive(noise, eps):
    torch.manual_seed(0)
    z1 = torch.randn(64, 6, dtype=torch.float64)
    z2 = z1 + noise * torch.randn(64, 6, dtype=torch.float64)
    C = normalize(z1).T @ normalize(z2)
    assert torch.linalg.eigvalsh(C + C.T).min() > 0
    cross = -eps * reference.coding_rate(z1, z2, eps, None)
    pooled = MECLoss(eps)((z1, z2))
    assert pooled > cross
    assert pooled - cross <= 2 * (1 - cosine_similarity(z1, z2).mean())  # the gap is at most the distance of the views


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_first_order_of_both_forms_is_the_mean_cosine(m, d):
    z1, z2 = reference.random_codes(2, m, d)
    minus_cosine = -cosine_similarity(z1, z2).mean()
    for form in ("cross", "pooled"):
        torch.testing.assert_close(MECLoss(EPS, 1, form)((z1, z2)), minus_cosine)
        torch.testing.assert_close(MECLoss(1e5, None, form)((z1, z2)), minus_cosine, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("m", "d"), [(2, 1), (2, 300), (3, 2), (32, 64), (257, 1), (257, 64), (257, 300)])
def test_pooled_is_finite_everywhere(m, d):
    torch.manual_seed(m * d)
    for eps in (1e-4, 1e-2, 1 / 32, 1.0, 10.0):
        z1, z2 = torch.randn(m, d, requires_grad=True), torch.randn(m, d, requires_grad=True)
        value = MECLoss(eps)((z1, z2))
        value.backward()
        with torch.no_grad():
            expected = reference.pooled_loss(z1.double(), z2.double(), eps)
        torch.testing.assert_close(value.detach().double(), expected, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(z1.grad).all()
        assert torch.isfinite(z2.grad).all()


@pytest.mark.parametrize("arguments", [{"order": 4}, {"form": "cross"}, {"form": "pooled"}])
def test_spread_codes_are_better_than_collapsed_ones(arguments):
    eye = torch.eye(64)
    spread, collapsed = torch.cat([eye, -eye]), torch.ones(128, 64)
    loss = MECLoss(1 / 32, **arguments)
    assert loss((spread, spread), (spread, spread)) < loss((collapsed, collapsed), (collapsed, collapsed)) - 0.3


@pytest.mark.parametrize(("m", "d", "eps"), [(24, 6, 1 / 32), (5, 9, 0.25)])
def test_descent_on_the_pooled_form_ends_at_its_known_minimum(m, d, eps):
    # views that agree, spread evenly over as many directions as there are
    directions = min(m, d)
    minimum = -eps * directions * math.log1p(1 / (directions * eps))
    z1, z2 = reference.random_codes(2, m, d, seed=3)
    optimizer = torch.optim.Adam([z1, z2], lr=0.05)
    loss = MECLoss(eps)
    start = loss((z1, z2)).item()
    for _ in range(400):
        optimizer.zero_grad()
        value = loss((z1, z2))
        value.backward()
        optimizer.step()
        assert value.item() >= minimum - 1e-9
    assert start > minimum + 0.1
    assert value.item() == pytest.approx(minimum, abs=1e-3)
    assert cosine_similarity(z1, z2).min() > 0.99
    assert effective_rank(z1.detach()) > directions - 0.05


@pytest.mark.parametrize(("targets", "m", "d"), [(True, 6, 10), (False, 10, 6)], ids=["cross", "pooled"])
def test_full_graph_compilation_equals_eager(targets, m, d):
    torch.compiler.reset()
    views = reference.random_codes(4, m, d)
    copies = [view.detach().clone().requires_grad_() for view in views]
    loss = MECLoss(EPS, order=4 if targets else None)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    if targets:
        value, expected = compiled(views[:2], views[2:]), reference.cross_loss(copies[:2], copies[2:], EPS, 4)
    else:
        views, copies = views[:2], copies[:2]
        value, expected = compiled(views), reference.pooled_loss(*copies, EPS)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad(value, views), grad(expected, copies))


@given(
    m=st.integers(2, 14),
    d=st.integers(1, 14),
    order=st.sampled_from([None, 1, 2, 3, 4, 5, 8]),
    eps=st.sampled_from([0.3, 1.0, 4.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_shape_matches_the_reference(m, d, order, eps, seed):
    p1, p2, z1, z2 = views = reference.random_codes(4, m, d, seed=seed)
    if order is None:  # a singular I + C has no log det
        for p, z in ((p1, z2), (p2, z1)):
            C = normalize(p) @ normalize(z).T / (m * eps)
            assume(torch.linalg.cond(torch.eye(m, dtype=C.dtype) + C) < 1e5)
    cross = MECLoss(eps, order)((p1, p2), (z1, z2))
    expected_cross = reference.cross_loss((p1, p2), (z1, z2), eps, order)
    pooled, expected_pooled = MECLoss(eps, order)((p1, p2)), reference.pooled_loss(p1, p2, eps, order)
    reference.assert_close_in_scale(cross, expected_cross, 1e-9)
    reference.assert_close_in_scale(pooled, expected_pooled, 1e-9)
    for a, b in zip(grad(cross, views), grad(expected_cross, views), strict=True):
        reference.assert_close_in_scale(a, b, 1e-8)
    for a, b in zip(grad(pooled, views[:2]), grad(expected_pooled, views[:2]), strict=True):
        reference.assert_close_in_scale(a, b, 1e-8)
