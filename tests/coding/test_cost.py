import itertools

import pytest

from mec.coding import cost
from mec.coding.cost import Plan, cheapest_plan, estimate_cost

BATCH, FEATURE, SHARDED_FEATURE = Plan(False, True), Plan(True, False), Plan(True, True)


@pytest.mark.parametrize(("rows", "d"), [(256, 2048), (300, 300), (300, 299), (2, 1)])
def test_one_process_uses_the_smaller_side_and_sends_nothing(rows, d):
    for order, symmetric in itertools.product([None, 1, 2, 3, 4, 5, 8, 12], [True, False]):
        batch, feature = (estimate_cost(Plan(side, False), rows, d, 1, order, symmetric) for side in (False, True))
        assert batch.bytes == feature.bytes == 0
        feature_is_cheaper = feature.flops < batch.flops
        assert cheapest_plan(rows, d, 1, order, symmetric) == Plan(feature_is_cheaper, False) == Plan(d < rows, False)


def test_costs_match_counts_by_hand():
    # 1,024 devices, batch 65,536, width 2048, order 4: 64 rows each. The matrix and the gradient in p,
    # 2 * 64 * 2048^2 each; C^2 and C^3 in a block of two columns, 2 * 2048^2 * 2 each
    flops = 2 * (2 * 64 * 2048**2) + 2 * (2 * 2048**2 * 2)
    # all-reduce of C and all-gather of the gradient: 3 * 16 MiB, less the local part
    assert estimate_cost(SHARDED_FEATURE, 65536, 2048, 1024, 4, False) == (flops, 3 * 2**24 * 1023 // 1024)
    # batch side, 2 processes, 256 rows, width 2048: half the rows in forward and in backward, C^2 and C^3 of 128
    # columns; half of the codes and half of C come from the other process
    flops = 2 * (2 * 128 * 256 * 2048) + 2 * (2 * 256**2 * 128)
    assert estimate_cost(BATCH, 256, 2048, 2, 4, False) == (flops, 4 * (256 * 2048 + 256**2) // 2)
    # Cholesky n^3 / 3 and two triangular solves with a quarter of the columns
    flops = 4 * 512 * 96 * 96 // 4 + 96**3 // 3 + 2 * 96**2 * 24
    assert estimate_cost(SHARDED_FEATURE, 512, 96, 4, None, True).flops == flops


@pytest.mark.parametrize(
    ("rows", "d", "processes", "order", "symmetric", "plan"),
    [
        (65536, 2048, 1024, 4, False, SHARDED_FEATURE),
        (131072, 2048, 1024, None, True, SHARDED_FEATURE),
        (256, 2048, 8, 4, False, BATCH),
        (12, 5, 4, 4, False, FEATURE),  # 500 FLOPs are cheaper than a message
        (65536, 2048, 1024, 2, False, FEATURE),  # no product to shard
    ],
)
def test_cheapest_plan(rows, d, processes, order, symmetric, plan):
    assert cheapest_plan(rows, d, processes, order, symmetric) == plan


@pytest.mark.parametrize(
    ("rows", "d", "order", "symmetric"), [(65536, 2048, 4, False), (1024, 2048, None, False), (4096, 8192, None, True)]
)
def test_flops_fall_with_the_number_of_processes(rows, d, order, symmetric):
    flops = []
    for processes in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        plan = cheapest_plan(rows, d, processes, order, symmetric)
        flops.append(estimate_cost(plan, rows, d, processes, order, symmetric).flops)
    assert flops == sorted(flops, reverse=True)
    floor = 0 if order else min(rows, d) ** 3 // 3  # the factorization is replicated
    assert flops[-1] - floor < flops[0] / 3


def test_expensive_bytes_are_not_sent(monkeypatch):
    rows, d, processes = 4096, 512, 8
    plans = []
    for flops_per_byte in (0, 10**9):
        monkeypatch.setattr(cost, "FLOPS_PER_BYTE", flops_per_byte)
        plans.append(cheapest_plan(rows, d, processes, 4, False))
    assert plans == [SHARDED_FEATURE, FEATURE]
