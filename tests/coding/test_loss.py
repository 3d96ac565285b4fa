import itertools
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
FORMS = ["cross", "pooled", "reduction"]
STABLE = ["pooled", "reduction"]
SHAPES = [(5, 9), (7, 7), (12, 5)]  # m < d, m = d, m > d; the stable forms also see 2 m > d > m
EPS = 0.6


@pytest.mark.parametrize(("shape", "order", "dtype"), pairwise(SHAPES, ORDERS, [torch.float32, torch.float64]))
def test_values_and_gradients_match_the_reference(shape, order, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    views = reference.random_codes(4, *shape, dtype)
    views64 = reference.in_float64(views)
    for form, with_targets in itertools.product(FORMS, [True, False]):
        actual = MECLoss(EPS, order, form)(views[:2], views[2:] if with_targets else None)
        expected = reference.mec_loss(views64[:2], views64[2:] if with_targets else None, EPS, order, form)
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
    views64 = [view.double() for view in views]
    expected = reference.mec_loss(views64[:2], views64[2:], EPS, order, form)
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
    expected = reference.mec_loss([a1, a2], [b1, b2], 0.01)
    reference.assert_close_in_scale(MECLoss(0.01)((p1, p2), (z1, z2)), expected, 1e-5)


def test_distortion_of_a_call_overrides_that_of_the_module():
    p1, p2, z1, z2 = reference.random_codes(4, 6, 4)
    value = MECLoss(0.1, order=4)((p1, p2), (z1, z2), distortion=0.7)
    torch.testing.assert_close(value, reference.mec_loss([p1, p2], [z1, z2], 0.7, 4))


@pytest.mark.parametrize(("m", "d", "eps"), [(5, 9, 2.0), (7, 7, 0.02), (12, 5, 0.3)])
def test_all_forms_are_equal_when_the_views_agree(m, d, eps):
    (z,) = reference.random_codes(1, m, d)
    rate = reference.coding_rate(z, z, eps, None)
    for form in FORMS:
        torch.testing.assert_close(MECLoss(eps, form=form)((z, z)), -eps * rate)
    torch.testing.assert_close(coding_rate(torch.cat([z, z]), eps), rate)


@pytest.mark.parametrize(("noise", "eps"), [(0.01, 1e-3), (0.1, 1.0), (0.3, 1 / 32), (0.6, 1e-3), (0.6, 1.0)])
def test_stable_forms_bound_cross_where_the_cross_matrix_is_positive(noise, eps):
    torch.manual_seed(0)
    z1 = torch.randn(64, 6, dtype=torch.float64)
    z2 = z1 + noise * torch.randn(64, 6, dtype=torch.float64)
    C = normalize(z1).T @ normalize(z2)
    assert torch.linalg.eigvalsh(C + C.T).min() > 0
    cross = -eps * reference.coding_rate(z1, z2, eps, None)
    reduction, pooled = (MECLoss(eps, form=form)((z1, z2)) for form in ("reduction", "pooled"))
    assert cross < reduction < pooled
    assert pooled - cross <= 2 * (1 - cosine_similarity(z1, z2).mean())  # the gap is at most the distance of the views


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_first_order_of_all_forms_is_the_mean_cosine(m, d):
    z1, z2 = reference.random_codes(2, m, d)
    minus_cosine = -cosine_similarity(z1, z2).mean()
    for form in FORMS:
        torch.testing.assert_close(MECLoss(EPS, 1, form)((z1, z2)), minus_cosine)
        torch.testing.assert_close(MECLoss(1e5, None, form)((z1, z2)), minus_cosine, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("m", "d"), [(2, 1), (2, 300), (3, 2), (32, 64), (257, 1), (257, 64), (257, 300)])
def test_stable_forms_are_finite_everywhere(m, d):
    torch.manual_seed(m * d)
    for eps, form in itertools.product((1e-4, 1e-2, 1 / 32, 1.0, 10.0), STABLE):
        z1, z2 = torch.randn(m, d, requires_grad=True), torch.randn(m, d, requires_grad=True)
        value = MECLoss(eps, form=form)((z1, z2))
        value.backward()
        with torch.no_grad():
            expected = reference.mec_loss([z1.double(), z2.double()], None, eps, form=form)
        torch.testing.assert_close(value.detach().double(), expected, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(z1.grad).all()
        assert torch.isfinite(z2.grad).all()


@pytest.mark.parametrize("arguments", [{"order": 4}, *({"form": form} for form in FORMS)])
def test_spread_codes_are_better_than_collapsed_ones(arguments):
    eye = torch.eye(64)
    spread, collapsed = torch.cat([eye, -eye]), torch.ones(128, 64)
    loss = MECLoss(1 / 32, **arguments)
    assert loss((spread, spread), (spread, spread)) < loss((collapsed, collapsed), (collapsed, collapsed)) - 0.3


@pytest.mark.parametrize(("form", "m", "d", "eps"), [("pooled", 24, 6, 1 / 32), ("reduction", 5, 9, 0.25)])
def test_descent_ends_at_the_known_minimum(form, m, d, eps):
    # views that agree, spread evenly over as many directions as there are
    directions = min(m, d)
    minimum = -eps * directions * math.log1p(1 / (directions * eps))
    z1, z2 = reference.random_codes(2, m, d, seed=3)
    optimizer = torch.optim.Adam([z1, z2], lr=0.05)
    loss = MECLoss(eps, form=form)
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


@pytest.mark.parametrize(("form", "m", "d"), [("cross", 6, 10), ("reduction", 10, 6)])
def test_full_graph_compilation_equals_eager(form, m, d):
    torch.compiler.reset()
    views = reference.random_codes(4 if form == "cross" else 2, m, d)
    order, codes = 4 if form == "cross" else None, (views[:2], views[2:] or None)
    compiled = torch.compile(MECLoss(EPS, order, form), fullgraph=True, backend="aot_eager")
    value, expected = compiled(*codes), reference.mec_loss(*codes, EPS, order, form)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad(value, views), grad(expected, views))


@given(
    m=st.integers(2, 14),
    d=st.integers(1, 14),
    order=st.sampled_from([None, 1, 2, 3, 4, 5, 8]),
    eps=st.sampled_from([0.3, 1.0, 4.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_shape_matches_the_reference(m, d, order, eps, seed):
    views = reference.random_codes(4, m, d, seed=seed)
    if order is None:  # a singular I + C has no log det
        for p, z in zip(views[:2], views[:1:-1], strict=True):
            C = normalize(p) @ normalize(z).T / (m * eps)
            assume(torch.linalg.cond(torch.eye(m, dtype=C.dtype) + C) < 1e5)
    for form, targets in (("cross", views[2:]), ("pooled", None), ("reduction", None)):
        value, expected = (
            MECLoss(eps, order, form)(views[:2], targets),
            reference.mec_loss(views[:2], targets, eps, order, form),
        )
        reference.assert_close_in_scale(value, expected, 1e-9)
        inputs = views if targets else views[:2]
        for a, b in zip(grad(value, inputs), grad(expected, inputs), strict=True):
            reference.assert_close_in_scale(a, b, 1e-8)
