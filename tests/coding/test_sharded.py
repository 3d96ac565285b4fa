"""Sharded log det over three and four processes, on both sides: value, gradient, FLOPs and bytes."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch.autograd import grad
from torch.utils._python_dispatch import TorchDispatchMode

from mec.coding import MECLoss, cost, health
from mec.coding.cost import Plan, cheapest_plan, estimate_cost
from tests.pairwise import pairwise
from tests.processes import needs_gloo

from . import reference
from .processes import run_in_processes

PROCESSES, EPS = 4, 0.4
SIZES = [(24, 5), (24, 7), (12, 31)]  # global m and d: unequal blocks, one of them empty; batch side
LOSSES = {  # arguments of the loss, whether it has targets
    "cross, order 4": ({"order": 4}, True),
    "cross, order 7": ({"order": 7}, True),
    "cross, exact": ({}, True),
    "cross, exact, no targets": ({"form": "cross"}, False),
    "pooled, exact": ({"form": "pooled"}, False),
    "pooled, order 1": ({"form": "pooled", "order": 1}, False),
    "reduction, exact": ({}, False),
    "reduction, order 3, targets": ({"form": "reduction", "order": 3}, True),
}
# FLOPS_PER_BYTE -> whether the feature side is sharded: it is where bytes are free, and not where they are expensive
SHARDED = {0: True, 10**9: False}
LOSS_CASES = [(name, True) for name in LOSSES] + [("cross, order 4", False), ("reduction, order 3, targets", False)]
BLOCKS = list(itertools.product([3, 4], SIZES))
CASES = [
    (processes, flops_per_byte, size, *loss)
    for (processes, size), flops_per_byte, loss in pairwise(BLOCKS, list(SHARDED), LOSS_CASES)
]
CASES += [
    (4, 0, (24, 5), name, True) for name in ("pooled, exact", "reduction, exact")
]  # a Cholesky factor with an empty block
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
LARGE = (256, 64), (64, 256)  # global m and d, large enough for small terms not to matter
COST_CASES = list(itertools.product(SHARDED, LARGE, ["cross, order 4", "cross, order 7", "reduction, exact"]))

pytestmark = needs_gloo


def local_rows(view, rank, processes):
    return view.detach().chunk(processes)[rank].clone().requires_grad_(view.requires_grad)


def make_views(m, d, target_gradients, dtype=torch.float64):
    views = reference.random_codes(4, m, d, dtype)
    for view in views[2:]:
        view.requires_grad_(target_gradients)
    return views


def value_and_gradients(loss, views, with_targets):
    """Return the loss and its gradients with respect to the views that require one."""
    value = loss(views[:2], views[2:]) if with_targets else loss(views[:2])
    inputs = [view for view in views if view.requires_grad]
    return value.detach(), list(grad(value, inputs, allow_unused=True, materialize_grads=True))


class CountWork(TorchDispatchMode):
    """Counts the FLOPs of matrix products and the bytes sent in ring collectives by this process."""

    def __init__(self):
        super().__init__()
        self.flops, self.bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "mm":
            self.flops += 2 * args[0].shape[0] * args[0].shape[1] * args[1].shape[1]
        return func(*args, **(kwargs or {}))

    def counted(self, collective, trips):
        def wrapper(tensor, *args, **kwargs):
            self.bytes += trips * tensor.numel() * tensor.element_size() * (PROCESSES - 1) // PROCESSES
            return collective(tensor, *args, **kwargs)

        return wrapper


def count_work(rank, m, d, name):
    arguments, with_targets = LOSSES[name]
    views = [local_rows(view, rank, PROCESSES) for view in make_views(m, d, False, torch.float32)]
    with CountWork() as work, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", work.counted(dist.all_reduce, 2))
        patch.setattr(dist, ALL_GATHER, work.counted(getattr(dist, ALL_GATHER), 1))
        value_and_gradients(MECLoss(EPS, **arguments), views, with_targets)
    return work.flops, work.bytes


def worker(rank):
    result = {}
    three_processes = dist.new_group([0, 1, 2])
    for processes, flops_per_byte, (m, d), name, target_gradients in CASES:
        if rank < processes:
            cost.FLOPS_PER_BYTE = flops_per_byte
            arguments, with_targets = LOSSES[name]
            loss = MECLoss(EPS, **arguments, group=three_processes if processes == 3 else None)
            views = [local_rows(view, rank, processes) for view in make_views(m, d, target_gradients)]
            case = processes, flops_per_byte, (m, d), name, target_gradients
            result[case] = value_and_gradients(loss, views, with_targets)
    for flops_per_byte, (m, d), name in COST_CASES:
        cost.FLOPS_PER_BYTE = flops_per_byte
        result[flops_per_byte, (m, d), name] = count_work(rank, m, d, name)
    for m, d in SIZES:
        p, z = (local_rows(view, rank, PROCESSES).detach() for view in reference.random_codes(2, m, d))
        result["norm", (m, d)] = health(p, z, EPS, dist.group.WORLD, "cross").spectral_norm
    return result


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_in_processes(worker, PROCESSES, tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize(("processes", "flops_per_byte", "size", "name", "target_gradients"), CASES)
def test_value_and_gradients_are_those_of_the_whole_batch(
    results, processes, flops_per_byte, size, name, target_gradients
):
    arguments, with_targets = LOSSES[name]

    def reference_loss(p, z=None):
        return reference.mec_loss(p, z, EPS, **arguments)

    expected, expected_gradients = value_and_gradients(
        reference_loss, make_views(*size, target_gradients), with_targets
    )
    case = processes, flops_per_byte, size, name, target_gradients
    by_rank = [results[rank][case] for rank in range(processes)]
    for value, _ in by_rank:
        assert torch.equal(value, by_rank[0][0])  # to the last bit
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for i, expected_gradient in enumerate(expected_gradients):
        gradient = torch.cat([gradients[i] for _, gradients in by_rank]) / processes
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flops_per_byte", SHARDED)
def test_cases_cover_both_sides_and_both_plans(monkeypatch, flops_per_byte):
    monkeypatch.setattr(cost, "FLOPS_PER_BYTE", flops_per_byte)
    plans = {
        cheapest_plan(m, d, processes, order, symmetric)
        for (m, d), processes, (order, symmetric) in itertools.product(SIZES, [3, 4], [(4, False), (None, True)])
    }
    assert plans == {Plan(False, True), Plan(True, SHARDED[flops_per_byte])}


@pytest.mark.parametrize(("flops_per_byte", "size", "name"), COST_CASES)
def test_flops_and_bytes_match_the_cost_model(results, monkeypatch, flops_per_byte, size, name):
    monkeypatch.setattr(cost, "FLOPS_PER_BYTE", flops_per_byte)
    arguments, with_targets = LOSSES[name]
    (m, d), order = size, arguments.get("order")
    # rows of each log det: both pairs of predictions and targets, or that of both views and that of their differences
    log_dets = [m, m] if with_targets else [2 * m, m] if name == "reduction, exact" else [2 * m]
    costs = [
        estimate_cost(cheapest_plan(n, d, PROCESSES, order, not with_targets), n, d, PROCESSES, order, not with_targets)
        for n in log_dets
    ]
    flops, sent = (sum(numbers) for numbers in zip(*costs, strict=True))
    for rank in range(PROCESSES):
        counted_flops, counted_bytes = results[rank][flops_per_byte, size, name]
        if order is not None:  # triangular solves are not counted
            assert counted_flops == flops
        # plus the norms of rows and scalars
        assert sent <= counted_bytes <= sent + 4 * (sum(log_dets) + 4 * len(log_dets))


@pytest.mark.parametrize("size", SIZES)
def test_spectral_norm_matches_the_whole_batch(results, size):
    p, z = (torch.nn.functional.normalize(view.detach()) for view in reference.random_codes(2, *size))
    largest = float(torch.linalg.matrix_norm(p @ z.T, 2)) / (size[0] * EPS)
    for rank in range(PROCESSES):
        assert 0.9 * largest < results[rank]["norm", size] < largest * (1 + 1e-9)
        assert results[rank]["norm", size] == results[0]["norm", size]
