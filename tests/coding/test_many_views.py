"""MECLoss of two to eight views, global and local ones, with a weight of the rate, against loops over pairs."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck
from torch.nn.functional import normalize

from mec.coding import MECLoss, cost, loss_in_chunks
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
    "reduction, normalized": ({"normalize": True}, False),
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
    options = {{"normalize": "scaled"}.get(name, name): value for name, value in FORMS[form][0].items()}
    return reference.mec_loss(predictions, targets, eps, order, global_views=num_global, **options)


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


@pytest.mark.parametrize("form", ["pooled, weighted", "reduction, normalized", "cross", "cross, no targets"])
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
