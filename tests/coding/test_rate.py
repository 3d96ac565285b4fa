import math

import pytest
import torch
from torch.autograd import grad, gradcheck
from torch.nn.functional import cosine_similarity, normalize

from mec.coding import coding_length, coding_rate, cross_coding_rate
from tests.pairwise import pairwise

from . import reference

ORDERS = [None, 1, 2, 3, 4, 5, 7, 12]
SHAPES = [(5, 9), (7, 7), (12, 5)]  # m < d, m = d, m > d


@pytest.mark.parametrize(("shape", "order", "dtype"), pairwise(SHAPES, ORDERS, [torch.float32, torch.float64]))
def test_values_and_gradients_match_the_reference(shape, order, dtype):
    m, d = shape
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    p, z = reference.random_codes(2, m, d, dtype)
    p64, z64 = reference.in_float64([p, z])
    for actual, expected, inputs, inputs64 in [
        (cross_coding_rate(p, z, 0.6, order), reference.coding_rate(p64, z64, 0.6, order), (p, z), (p64, z64)),
        (coding_rate(z, 0.6, order), reference.coding_rate(z64, z64, 0.6, order), (z,), (z64,)),
    ]:
        assert actual.dtype == dtype
        assert actual.shape == ()
        reference.assert_close_in_scale(actual, expected, tolerance)
        for a, b in zip(grad(actual, inputs), grad(expected, inputs64), strict=True):
            assert a.dtype == dtype
            reference.assert_close_in_scale(a, b, tolerance)


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_coding_length_is_equation_1(m, d):
    (z,) = reference.random_codes(1, m, d)
    (z64,) = reference.in_float64([z])
    actual, expected = coding_length(z, 0.3), (m + d) / 2 * reference.coding_rate(z64, z64, 0.3, None)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(grad(actual, z), grad(expected, z64))


@pytest.mark.parametrize(("m", "d", "order"), [(3, 5, None), (6, 3, None), (4, 4, 1), (6, 3, 2), (3, 5, 4), (4, 4, 7)])
def test_gradcheck(m, d, order):
    p, z = reference.random_codes(2, m, d)
    assert gradcheck(lambda p, z: cross_coding_rate(p, z, 0.7, order), (p, z))
    assert gradcheck(lambda p: cross_coding_rate(p, z.detach(), 0.7, order), (p,))
    assert gradcheck(lambda z: cross_coding_rate(p.detach(), z, 0.7, order), (z,))
    assert gradcheck(lambda z: coding_rate(z, 0.7, order), (z,))


def test_a_view_paired_with_itself_accumulates_both_gradients():
    (z,) = reference.random_codes(1, 6, 4)
    torch.testing.assert_close(grad(cross_coding_rate(z, z, 0.5), z), grad(coding_rate(z, 0.5), z))


@pytest.mark.parametrize(("dtype", "shape", "order"), pairwise([torch.bfloat16, torch.float16], SHAPES, [None, 4]))
def test_half_precision_is_computed_in_float32(dtype, shape, order):
    p, z = reference.random_codes(2, *shape, dtype)
    p64, z64 = reference.in_float64([p, z])
    actual, expected = cross_coding_rate(p, z, 0.6, order), reference.coding_rate(p64, z64, 0.6, order)
    assert actual.dtype == torch.float32
    reference.assert_close_in_scale(actual, expected, 1e-5)
    (gradient,) = grad(actual, p)
    assert gradient.dtype == dtype
    reference.assert_close_in_scale(gradient, grad(expected, p64)[0], 1e-2)


def test_two_dtypes_are_promoted_to_the_wider():
    p, z = reference.random_codes(2, 5, 3)
    for low, high in [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)]:
        a, b = p.detach().to(low), z.detach().to(high)
        assert cross_coding_rate(a, b, 0.5).dtype == cross_coding_rate(b, a, 0.5).dtype == high
        expected = reference.coding_rate(a.double(), b.double(), 0.5, None)
        reference.assert_close_in_scale(cross_coding_rate(a, b, 0.5), expected, 1e-5)


@pytest.mark.parametrize(("m", "d", "order"), [(16, 40, None), (40, 16, 4)])
def test_autocast_changes_nothing(m, d, order):
    p, z = reference.random_codes(2, m, d, torch.float32)
    outside = [cross_coding_rate(p, z, 0.3, order), coding_rate(z, 0.3, order)]
    gradients = [grad(value, z)[0] for value in outside]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (p @ z.T).dtype == torch.bfloat16  # autocast is on
        inside = [cross_coding_rate(p, z, 0.3, order), coding_rate(z, 0.3, order)]
    for a, b, g in zip(inside, outside, gradients, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
        assert torch.equal(grad(a, z)[0], g)


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_a_long_series_converges_to_the_exact_value(m, d):
    p, z = reference.random_codes(2, m, d)
    distortion = 2.0 * torch.linalg.matrix_norm(normalize(p) @ normalize(z).T, 2).item() / m  # ||C|| = 1/2
    torch.testing.assert_close(cross_coding_rate(p, z, distortion, 60), cross_coding_rate(p, z, distortion))
    distortion = 2.0 * torch.linalg.matrix_norm(normalize(z), 2).item() ** 2 / m
    torch.testing.assert_close(coding_rate(z, distortion, 60), coding_rate(z, distortion))


@pytest.mark.parametrize(("m", "d", "order"), [(5, 9, None), (7, 7, 3), (12, 5, None), (12, 5, 4)])
def test_batch_side_and_feature_side_agree(m, d, order):
    p, z = (normalize(view.detach()) for view in reference.random_codes(2, m, d))
    eps = 0.5
    for C in (p @ z.T / (m * eps), z.T @ p / (m * eps)):
        eigenvalues = torch.linalg.eigvals(C)
        if order is None:
            expected = torch.log(torch.abs(1 + eigenvalues)).sum()
        else:
            expected = sum((-1) ** (k + 1) / k * eigenvalues**k for k in range(1, order + 1)).sum().real
        torch.testing.assert_close(cross_coding_rate(p, z, eps, order), expected)


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_order_1_is_the_mean_cosine(m, d):
    p, z = reference.random_codes(2, m, d)
    expected = cosine_similarity(p, z).mean()
    torch.testing.assert_close(0.3 * cross_coding_rate(p, z, 0.3, order=1), expected)


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_order_2_is_alignment_minus_squared_off_diagonals(m, d):
    p, z = (normalize(view.detach()) for view in reference.random_codes(2, m, d))
    eps = 0.3
    similarity, correlation = p @ z.T, z.T @ p / m  # (m, m) batch-wise, (d, d) feature-wise
    off_diagonal = ~torch.eye(m, dtype=torch.bool)
    repulsion = (similarity.diagonal() ** 2).sum() + (similarity * similarity.T)[off_diagonal].sum()
    batch_wise = similarity.diagonal().mean() - repulsion / (2 * m * m * eps)
    off_diagonal = ~torch.eye(d, dtype=torch.bool)
    redundancy = (correlation.diagonal() ** 2).sum() + (correlation * correlation.T)[off_diagonal].sum()
    feature_wise = correlation.diagonal().sum() - redundancy / (2 * eps)
    actual = eps * cross_coding_rate(p, z, eps, order=2)
    torch.testing.assert_close(actual, batch_wise)
    torch.testing.assert_close(actual, feature_wise)
    # a single view: squares of the similarities, or of the correlations
    torch.testing.assert_close(eps * coding_rate(z, eps, order=2), 1 - (z @ z.T).square().sum() / (2 * m * m * eps))
    torch.testing.assert_close(eps * coding_rate(z, eps, order=2), 1 - (z.T @ z / m).square().sum() / (2 * eps))


def test_values_match_closed_forms():
    eye = torch.eye(6, dtype=torch.float64)
    spread, collapsed = torch.cat([eye, -eye]), torch.ones(9, 4, dtype=torch.float64)
    assert coding_rate(spread, 0.2).item() == pytest.approx(6 * math.log1p(1 / (6 * 0.2)))
    assert coding_rate(collapsed, 0.2).item() == pytest.approx(math.log1p(1 / 0.2))
    assert coding_rate(torch.zeros(5, 3), 0.2).item() == 0
    assert cross_coding_rate(eye, eye[[1, 2, 3, 4, 5, 0]], 0.5).item() == pytest.approx(math.log(1 - (1 / 3) ** 6))


@pytest.mark.parametrize("d", [3, 20])  # feature side, batch side
@pytest.mark.parametrize("order", [None, 4])
def test_a_zero_row_has_cosine_0_and_gets_no_gradient(d, order):
    p, z = reference.random_codes(2, 8, d)
    with torch.no_grad():
        p[2], z[2], z[5] = 0, 0, 0
    actual, expected = cross_coding_rate(p, z, 0.5, order), reference.coding_rate(p, z, 0.5, order)
    torch.testing.assert_close(actual, expected)
    gradients, expected_gradients = grad(actual, (p, z)), grad(expected, (p, z))
    for gradient, expected_gradient, zero in zip(gradients, expected_gradients, ([2], [2, 5]), strict=True):
        nonzero = [i for i in range(8) if i not in zero]
        assert gradient[zero].abs().max() == 0
        torch.testing.assert_close(gradient[nonzero], expected_gradient[nonzero])
    (gradient,) = grad(coding_rate(z, 0.5, order), z)
    assert gradient[2].abs().max() == 0
    assert gradient[3].abs().max() > 0
    assert torch.isfinite(gradient).all()


def test_rates_are_invariant_to_the_scale_of_the_rows():
    p, z = reference.random_codes(2, 6, 4, torch.float32)
    with torch.no_grad():
        expected = cross_coding_rate(p, z, 0.5)
        for factor in (1e-9, 1e9):
            torch.testing.assert_close(cross_coding_rate(p * factor, z * factor, 0.5), expected)
            torch.testing.assert_close(coding_rate(z * factor, 0.5), coding_rate(z, 0.5))


def test_second_derivatives_raise():
    (z,) = reference.random_codes(1, 4, 3)
    (first,) = grad(coding_rate(z, 0.5), z, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad(first.sum(), z)
