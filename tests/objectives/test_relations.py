"""Identities between the coding rate and the other objectives that docs/objective.md states."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from mec import MECLoss, coding_length, coding_rate
from mec.objectives import BYOL, EMPSSL, BarlowTwins, SimDINO, SimSiam, VICReg
from mec.objectives.intl import whiten
from tests.coding.reference import random_codes

M, D = 40, 6


@pytest.fixture
def views() -> list[Tensor]:
    return [z.detach() for z in random_codes(4, M, D)]


def balanced_codes() -> Tensor:
    """Return codes (M, D) with features of mean 0 and variance 1 and rows of length sqrt(D)."""
    (z,) = (z.detach() for z in random_codes(1, M, D))
    for _ in range(1000):
        z = normalize((z - z.mean(0)) / z.std(0, correction=0)) * math.sqrt(D)
    return z


@pytest.mark.parametrize("form", ["cross", "pooled", "reduction"])
def test_order_one_of_mec_is_simsiam_and_byol(views, form):
    first_order = MECLoss(0.3, order=1, form=form)(views[:2], views[2:])
    torch.testing.assert_close(SimSiam()(views[:2], views[2:]), first_order)
    torch.testing.assert_close(BYOL()(views[:2], views[2:]), 4 + 4 * first_order)


def test_of_views_that_agree_all_are_multiples_of_one_rate(views):
    z, epsilon_squared = views[0], 0.5
    distortion = epsilon_squared / D
    rate = coding_rate(z, distortion)
    for form in ("pooled", "cross", "reduction"):
        torch.testing.assert_close(MECLoss(distortion, form=form)([z, z]), -distortion * rate)
    torch.testing.assert_close(EMPSSL(epsilon_squared, weight=3)([z, z]), -3 - rate / 2)
    torch.testing.assert_close(SimDINO(epsilon_squared, weight=3)([z, z], [z, z]), -3 * rate / 2)
    length = coding_length(z, distortion)
    torch.testing.assert_close(SimDINO(epsilon_squared)([z, z], [z, z]), -length / (M * D))


def test_agreement_of_emp_ssl_and_simdino_is_a_function_of_the_cosine(views):
    p, t = views[:2], views[2:]
    cosine = cosine_similarity(p[0], p[1])
    agreement = ((1 + cosine) / 2).sqrt().mean()
    torch.testing.assert_close(EMPSSL(1e9, weight=3)(p), -3 * agreement, rtol=0, atol=1e-6)
    cross_cosine = -SimSiam()(p, t)
    torch.testing.assert_close(SimDINO(0.5, weight=0)(p, t), 1 - cross_cosine)


def test_order_two_of_mec_is_the_covariance_term_of_vicreg_and_the_redundancy_of_barlow_twins():
    z, distortion = balanced_codes(), 0.7
    order_two = MECLoss(distortion, order=2)([z, z])
    covariance = VICReg(0, 0, covariance=1)([z, z]) / 2  # of one view; its Cov divides by m - 1
    squares = ((M - 1) / M) ** 2 * D * covariance + D
    torch.testing.assert_close(order_two, -1 + squares / (2 * distortion * D**2))
    redundancy = BarlowTwins(redundancy=1)([z, z])
    torch.testing.assert_close(order_two, -1 + (redundancy + D) / (2 * distortion * D**2), rtol=1e-5, atol=0)


def test_rate_of_a_small_distortion_is_the_log_det_of_the_covariance(views):
    z, distortion = normalize(views[0]), 1e-7
    limit = torch.linalg.slogdet(z.T @ z / M).logabsdet
    torch.testing.assert_close(coding_rate(z, distortion) + D * math.log(distortion), limit, rtol=1e-4, atol=0)


def test_codes_that_intl_has_whitened_have_the_largest_rate():
    (z,) = (z.detach() for z in random_codes(1, D, M))  # fewer codes than channels
    y = whiten(z - z.mean(1, keepdim=True), iterations=40)
    torch.testing.assert_close(y @ y.T / (M - 1), torch.eye(D, dtype=z.dtype))
    torch.testing.assert_close(coding_rate(y, 0.3), torch.tensor(D * math.log1p(1 / (D * 0.3)), dtype=z.dtype))
    assert coding_rate(z, 0.3) < coding_rate(y, 0.3) - 0.01
