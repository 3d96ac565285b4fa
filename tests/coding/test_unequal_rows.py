"""Two processes with different numbers of rows, which change from call to call: the loss is that of all rows."""

import itertools
import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.parallel import DistributedDataParallel

from mec.coding import MECLoss, health
from tests.processes import needs_gloo

from . import reference
from .processes import run_in_processes
from .test_checks import CountSyncs

EPS = 0.4
LOSSES = {  # arguments of the loss, whether it has targets
    "cross, order 4": ({"order": 4}, True),
    "cross, exact": ({}, True),
    "reduction, exact": ({}, False),
    "reduction, order 3, targets": ({"form": "reduction", "order": 3}, True),
}
WIDTHS = 5, 24  # feature side, batch side
# rows of the two processes, call by call: more rows than before in both, in one, fewer, a single one
ROWS = [(6, 4), (6, 4), (4, 6), (6, 6), (1, 5), (8, 7), (7, 9), (9, 1)]
GROWS_IN_ONE = ROWS.index((7, 9))
CASES = list(itertools.product(LOSSES, WIDTHS, [True, False]))

pytestmark = needs_gloo


def make_views(rows: tuple[int, int], d: int) -> list[Tensor]:
    return reference.random_codes(4, sum(rows), d, seed=sum(rows))


def local_rows(view: Tensor, rank: int, rows: tuple[int, int]) -> Tensor:
    return view.detach().split(rows)[rank].clone().requires_grad_()


def value_and_gradients(loss, views: list[Tensor], with_targets: bool) -> tuple[Tensor, list[Tensor]]:
    value = loss(views[:2], views[2:]) if with_targets else loss(views[:2])
    return value.detach(), list(grad(value, views if with_targets else views[:2]))


def worker(rank: int) -> dict:
    result: dict = {}
    for name, d, check in CASES:
        arguments, with_targets = LOSSES[name]
        loss = MECLoss(EPS, **arguments, check=check)
        for call, rows in enumerate(ROWS):
            views = [local_rows(view, rank, rows) for view in make_views(rows, d)]
            with CountSyncs() as syncs:
                outcome = value_and_gradients(loss, views, with_targets)
            result[name, d, check, call] = *outcome, syncs.count
    for d in WIDTHS:
        p, z = (local_rows(view, rank, (9, 4)).detach() for view in make_views((9, 4), d)[:2])
        result["health", d] = health(p, z, EPS, dist.group.WORLD, "pooled").__dict__
    result["ddp"] = ddp_step(rank)
    result["singular"] = [singular_loss(rank, m, order, check=False) for m, order in SINGULAR]
    try:
        singular_loss(rank, 2, None, check=True)
    except ValueError as error:
        result["error"] = str(error)
    return result


def ddp_step(rank: int) -> tuple[Tensor, Tensor]:
    """Return the loss of 16 and 12 rows, and the gradient that DistributedDataParallel computes of a linear network."""
    x1, x2 = (view.detach() for view in make_views((16, 12), 7)[:2])
    network = DistributedDataParallel(linear())
    value = MECLoss()([network(x.split((16, 12))[rank]) for x in (x1, x2)])
    value.backward()
    return value.detach(), network.module.weight.grad


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(7, 5, dtype=torch.float64)


SINGULAR = [(2, None), (3, None)]  # rows of each process


def singular_loss(rank: int, m: int, order: int | None, check: bool) -> Tensor:
    """Return the cross loss of opposite codes: C is -1 / (2 m) in each entry at a distortion of 1, and I + C singular.
    The codes are one number: the log det is that of 1 - 1."""
    codes = torch.ones(m, 1)
    return MECLoss(1.0, order, "cross", check=check)((codes, codes), (-codes, -codes))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_in_processes(worker, 2, tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize(("name", "d", "check"), CASES)
def test_loss_and_gradients_are_those_of_all_rows(results, name, d, check):
    arguments, with_targets = LOSSES[name]

    def expected_loss(p, z=None):
        return reference.mec_loss(p, z, EPS, **arguments)

    for call, rows in enumerate(ROWS):
        expected, expected_gradients = value_and_gradients(expected_loss, make_views(rows, d), with_targets)
        (value, gradients, syncs), (other, other_gradients, other_syncs) = (
            results[rank][name, d, check, call] for rank in (0, 1)
        )
        torch.testing.assert_close(value, other, rtol=0, atol=0, equal_nan=True)
        if not check and max(rows) > max(map(max, ROWS[:GROWS_IN_ONE])):
            assert value.isnan()
            assert all(g.isnan().any() for g in (*gradients, *other_gradients))
            continue
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        for a, b, e in zip(gradients, other_gradients, expected_gradients, strict=True):
            torch.testing.assert_close(torch.cat([a, b]) / 2, e, rtol=1e-12, atol=1e-12)
        if not check and call not in (0, ROWS.index((8, 7))):
            assert syncs == other_syncs == 0


def test_health_is_that_of_all_rows(results):
    for d in WIDTHS:
        p, z = (view.detach() for view in make_views((9, 4), d)[:2])
        expected = health(p, z, EPS, series="pooled").__dict__
        both = nn.functional.normalize(torch.cat([p, z]))
        largest = float(torch.linalg.matrix_norm(both @ both.T, 2)) / (len(both) * EPS)
        for rank in (0, 1):
            metrics = results[rank]["health", d]
            assert 0.9 * largest < metrics.pop("spectral_norm") <= largest * (1 + 1e-9)
            assert metrics == pytest.approx({name: expected[name] for name in metrics}, rel=1e-9)


def test_ddp_with_16_and_12_rows_trains_like_one_process_with_28(results):
    network = linear()
    value = reference.mec_loss([network(view.detach()) for view in make_views((16, 12), 7)[:2]])
    value.backward()
    for rank in (0, 1):
        torch.testing.assert_close(results[rank]["ddp"][0], value.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(results[rank]["ddp"][1], network.weight.grad, rtol=1e-10, atol=1e-12)


def test_a_singular_matrix_has_an_infinite_loss_in_one_process_and_in_two(results):
    for i, (m, order) in enumerate(SINGULAR):
        assert float(singular_loss(0, 2 * m, order, check=False)) == math.inf
        for rank in (0, 1):
            assert float(results[rank]["singular"][i]) == math.inf
    assert "the result is inf" in results[0]["error"]
