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
LOSSES = {  # order, form, with_targets
    "cross, order 4": (4, "cross", True),
    "cross, exact": (None, "cross", True),
    "pooled, exact": (None, "pooled", False),
    "pooled, order 3, targets": (3, "pooled", True),
    "pooled, order 1": (1, "pooled", False),
    "cross, order 7": (7, "cross", True),
    "cross, exact, no targets": (None, "cross", False),
}
# FLOPS_PER_BYTE -> whether the feature side is sharded: it is where bytes are free, and not where they are expensive
SHARDED = {0: True, 10**9: False}
LOSS_CASES = [(name, True) for name in LOSSES] + [("cross, order 4", False), ("pooled, order 3, targets", False)]
BLOCKS = list(itertools.product([3, 4], SIZES))
CASES = [
    (processes, flops_per_byte, size, *loss)
    for (processes, size), flops_per_byte, loss in pairwise(BLOCKS, list(SHARDED), LOSS_CASES)
]
CASES.append((4, 0, (24, 5), "pooled, exact", True))  # a Cholesky factor with an empty block
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
LARGE = (256, 64), (64, 256)  # global m and d, large enough for small terms not to matter
COST_CASES = list(itertools.product(SHARDED, LARGE, ["cross, order 4", "cross, order 7", "pooled, exact"]))

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
    order, form, with_targets = LOSSES[name]
    views = [local_rows(view, rank, PROCESSES) for view in make_views(m, d, False, torch.float32)]
    with CountWork() as work, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", work.counted(dist.all_reduce, 2))
        patch.setattr(dist, ALL_GATHER, work.counted(getattr(dist, ALL_GATHER), 1))
        value_and_gradients(MECLoss(EPS, order, form), views, with_targets)
    return work.flops, work.bytes


def worker(rank):
    result = {}
    three_processes = dist.new_group([0, 1, 2])
    for processes, flops_per_byte, (m, d), name, target_gradients in CASES:
        if rank < processes:
            cost.FLOPS_PER_BYTE = flops_per_byte
            order, form, with_targets = LOSSES[name]
            loss = MECLoss(EPS, order, form, group=three_processes if processes == 3 else None)
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
    order, form, with_targets = LOSSES[name]

    def reference_loss(p, z=None):
        if form == "cross" and with_targets:
            return reference.cross_loss(p, z, EPS, order)
        if form == "cross":
            return -EPS * reference.coding_rate(*p, EPS, order)
        pairs = [(p[0], z[1]), (p[1], z[0])] if with_targets else [p]
        return sum(reference.pooled_loss(a, b, EPS, order) for a, b in pairs) / len(pairs)

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
    order, form, with_targets = LOSSES[name]
    (m, d), pairs = size, 2 if with_targets else 1
    rows, symmetric = (m, False) if form == "cross" else (2 * m, True)
    plan = cheapest_plan(rows, d, PROCESSES, order, symmetric)
    flops, sent = estimate_cost(plan, rows, d, PROCESSES, order, symmetric)
    for rank in range(PROCESSES):
        counted_flops, counted_bytes = results[rank][flops_per_byte, size, name]
        if order is not None:  # triangular solves are not counted
            assert counted_flops == pairs * flops
        # plus the norms of rows and scalars
        assert pairs * sent <= counted_bytes <= pairs * (sent + 4 * (rows + 4))


@pytest.mark.parametrize("size", SIZES)
def test_spectral_norm_matches_the_whole_batch(results, size):
    p, z = (torch.nn.functional.normalize(view.detach()) for view in reference.random_codes(2, *size))
    largest = float(torch.linalg.matrix_norm(p @ z.T, 2)) / (size[0] * EPS)
    for rank in range(PROCESSES):
        assert 0.9 * largest < results[rank]["norm", size] < largest * (1 + 1e-9)
        assert results[rank]["norm", size] == results[0]["norm", size]
