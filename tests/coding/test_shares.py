"""Three and four processes, on either side, each with its block of the work: value, gradient, FLOPs and bytes."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch.autograd import grad
from torch.utils._python_dispatch import TorchDispatchMode

from mec.coding import MECLoss, cost, health
from mec.coding.cost import Way, cheapest_way, cost_of

from . import plain
from .processes import in_processes, needs_gloo

PROCESSES, EPS = 4, 0.4
SIZES = [(24, 5), (24, 7), (12, 31)]  # m of all and d: unequal blocks, one of them empty; batch side
LOSSES = {  # order, form, with targets
    "cross, order 4": (4, "cross", True),
    "cross, exact": (None, "cross", True),
    "pooled, exact": (None, "pooled", False),
    "pooled, order 3, targets": (3, "pooled", True),
    "pooled, order 1": (1, "pooled", False),
    "cross, order 7": (7, "cross", True),
    "cross, exact, own targets": (None, "cross", False),
}
SHARED = {0: True, 10**9: False}  # FLOPs a byte: where bytes are free the feature side is shared, where dear it is not
KINDS = [(name, True) for name in LOSSES] + [("cross, order 4", False), ("pooled, order 3, targets", False)]
CASES = [(*case, *kind) for case in itertools.product([3, 4], SHARED, SIZES) for kind in KINDS]
LARGE = (256, 64), (64, 256)  # m of all and d: the counts without what is small
COUNTED = list(itertools.product(SHARED, LARGE, ["cross, order 4", "cross, order 7", "pooled, exact"]))

pytestmark = needs_gloo


def own_part(view, rank, processes):
    return view.detach().chunk(processes)[rank].clone().requires_grad_(view.requires_grad)


def views_of(m, d, target_gradients, dtype=torch.float64):
    views = plain.codes(4, m, d, dtype)
    for view in views[2:]:
        view.requires_grad_(target_gradients)
    return views


def value_and_gradients(loss, views, targets):
    """Zeros where a view has no gradient."""
    value = loss(views[:2], views[2:]) if targets else loss(views[:2])
    with_gradient = [view for view in views if view.requires_grad]
    return value.detach(), list(grad(value, with_gradient, allow_unused=True, materialize_grads=True))


class Work(TorchDispatchMode):
    """FLOPs of matrix products, and the bytes that a ring sends, of one process."""

    def __init__(self):
        super().__init__()
        self.flops, self.bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "mm":
            self.flops += 2 * args[0].shape[0] * args[0].shape[1] * args[1].shape[1]
        return func(*args, **(kwargs or {}))

    def count(self, collective, trips):
        def counted(tensor, *args, **kwargs):
            self.bytes += trips * tensor.numel() * tensor.element_size() * (PROCESSES - 1) // PROCESSES
            return collective(tensor, *args, **kwargs)

        return counted


def work_of(rank, m, d, name):
    order, form, targets = LOSSES[name]
    views = [own_part(view, rank, PROCESSES) for view in views_of(m, d, False, torch.float32)]
    all_reduce, all_gather = dist.all_reduce, dist.all_gather_into_tensor
    with Work() as work:
        dist.all_reduce, dist.all_gather_into_tensor = work.count(all_reduce, 2), work.count(all_gather, 1)
        value_and_gradients(MECLoss(EPS, order, form), views, targets)
        dist.all_reduce, dist.all_gather_into_tensor = all_reduce, all_gather
    return work.flops, work.bytes


def worker(rank):
    found = {}
    three = dist.new_group([0, 1, 2])
    for processes, flops_per_byte, (m, d), name, target_gradients in CASES:
        if rank < processes:
            cost.FLOPS_PER_BYTE = flops_per_byte
            order, form, targets = LOSSES[name]
            loss = MECLoss(EPS, order, form, group=three if processes == 3 else None)
            views = [own_part(view, rank, processes) for view in views_of(m, d, target_gradients)]
            found[processes, flops_per_byte, (m, d), name, target_gradients] = value_and_gradients(loss, views, targets)
    for flops_per_byte, (m, d), name in COUNTED:
        cost.FLOPS_PER_BYTE = flops_per_byte
        found[flops_per_byte, (m, d), name] = work_of(rank, m, d, name)
    for m, d in SIZES:
        p, z = (own_part(view, rank, PROCESSES).detach() for view in plain.codes(2, m, d))
        found["norm", (m, d)] = health(p, z, EPS, dist.group.WORLD).spectral_norm
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_processes(worker, PROCESSES, tmp_path_factory.mktemp("shares"))


@pytest.mark.parametrize(("processes", "flops_per_byte", "size", "name", "target_gradients"), CASES)
def test_value_and_gradients_are_those_of_the_whole_batch(
    found, processes, flops_per_byte, size, name, target_gradients
):
    order, form, targets = LOSSES[name]

    def whole(p, z=None):
        if form == "cross":
            return plain.cross_loss(p, z, EPS, order) if targets else -EPS * plain.rate(*p, EPS, order)
        pairs = [(p[0], z[1]), (p[1], z[0])] if targets else [p]
        return sum(plain.pooled_loss(a, b, EPS, order) for a, b in pairs) / len(pairs)

    value, gradients = value_and_gradients(whole, views_of(*size, target_gradients), targets)
    own = [found[rank][processes, flops_per_byte, size, name, target_gradients] for rank in range(processes)]
    for joined_value, _ in own:
        assert torch.equal(joined_value, own[0][0])  # to the last bit
        torch.testing.assert_close(joined_value, value, rtol=1e-12, atol=1e-12)
    for i, expected in enumerate(gradients):
        joined = torch.cat([own_gradients[i] for _, own_gradients in own]) / processes
        torch.testing.assert_close(joined, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flops_per_byte", SHARED)
def test_both_sides_and_both_ways_were_run(monkeypatch, flops_per_byte):
    monkeypatch.setattr(cost, "FLOPS_PER_BYTE", flops_per_byte)
    ways = {
        cheapest_way(m, d, processes, order, symmetric)
        for (m, d), processes, (order, symmetric) in itertools.product(SIZES, [3, 4], [(4, False), (None, True)])
    }
    assert ways == {Way(False, True), Way(True, SHARED[flops_per_byte])}


@pytest.mark.parametrize(("flops_per_byte", "size", "name"), COUNTED)
def test_a_process_works_and_sends_as_much_as_the_model_says(found, monkeypatch, flops_per_byte, size, name):
    monkeypatch.setattr(cost, "FLOPS_PER_BYTE", flops_per_byte)
    order, form, targets = LOSSES[name]
    (m, d), pairs = size, 2 if targets else 1
    rows, symmetric = (m, False) if form == "cross" else (2 * m, True)
    way = cheapest_way(rows, d, PROCESSES, order, symmetric)
    flops, sent = cost_of(way, rows, d, PROCESSES, order, symmetric)
    for rank in range(PROCESSES):
        counted_flops, counted_bytes = found[rank][flops_per_byte, size, name]
        if order is not None:  # solves are no products
            assert counted_flops == pairs * flops
        # norms of rows and scalars come on top
        assert pairs * sent <= counted_bytes <= pairs * (sent + 4 * (rows + 4))


@pytest.mark.parametrize("size", SIZES)
def test_the_spectral_norm_needs_no_codes_of_others(found, size):
    p, z = (torch.nn.functional.normalize(view.detach()) for view in plain.codes(2, *size))
    largest = float(torch.linalg.matrix_norm(p @ z.T, 2)) / (size[0] * EPS)
    for rank in range(PROCESSES):
        assert 0.9 * largest < found[rank]["norm", size] < largest * (1 + 1e-9)
        assert found[rank]["norm", size] == found[0]["norm", size]
