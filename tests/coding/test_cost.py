import pytest

from mec.coding import cost
from mec.coding.cost import Way, cheapest_way, cost_of

ORDERS = [None, 1, 2, 3, 4, 5, 8, 12]
BATCH, FEATURE, SHARED_FEATURE = Way(False, True), Way(True, False), Way(True, True)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "d"), [(256, 2048), (2048, 256), (300, 300), (300, 299), (2, 1), (2, 3)])
def test_one_process_takes_the_smaller_side_and_sends_nothing(rows, d, order, symmetric):
    sides = [cost_of(Way(side, False), rows, d, 1, order, symmetric) for side in (False, True)]
    assert [sent for _, sent in sides] == [0, 0]
    least = sides[1].flops < sides[0].flops
    assert cheapest_way(rows, d, 1, order, symmetric) == Way(least, False) == Way(d < rows, False)


def test_counted_by_hand():
    # 1,024 devices, batch 65,536, width 2048, order 4: 64 rows each. The matrix and the gradient in p,
    # 2 * 64 * 2048^2 each; C^2 and C^3 in a block of two columns, 2 * 2048^2 * 2 each
    flops = 2 * (2 * 64 * 2048**2) + 2 * (2 * 2048**2 * 2)
    # C is summed (there and back) and the blocks of the gradient are gathered: 3 * 16 MiB, less the own part
    assert cost_of(SHARED_FEATURE, 65536, 2048, 1024, 4, False) == (flops, 3 * 2**24 * 1023 // 1024)
    # batch side, 2 processes, 256 rows, width 2048: half the rows each way, C^2 and C^3 of 128 columns;
    # half of everybody's codes and of C come from the other
    flops = 2 * (2 * 128 * 256 * 2048) + 2 * (2 * 256**2 * 128)
    assert cost_of(BATCH, 256, 2048, 2, 4, False) == (flops, 4 * (256 * 2048 + 256**2) // 2)
    # Cholesky n^3 / 3 and two triangular systems with a quarter of the columns
    flops = 4 * 512 * 96 * 96 // 4 + 96**3 // 3 + 2 * 96**2 * 24
    assert cost_of(SHARED_FEATURE, 512, 96, 4, None, True).flops == flops


@pytest.mark.parametrize(
    ("rows", "d", "processes", "order", "symmetric", "way"),
    [
        (65536, 2048, 1024, 4, False, SHARED_FEATURE),
        (131072, 2048, 1024, None, True, SHARED_FEATURE),
        (256, 2048, 8, 4, False, BATCH),
        (12, 5, 4, 4, False, FEATURE),  # 500 FLOPs are not worth a message
        (65536, 2048, 1024, 2, False, FEATURE),  # no product to share
    ],
)
def test_the_way_taken(rows, d, processes, order, symmetric, way):
    assert cheapest_way(rows, d, processes, order, symmetric) == way


@pytest.mark.parametrize(("rows", "d"), [(65536, 2048), (1024, 2048), (4096, 8192)])
@pytest.mark.parametrize(("order", "symmetric"), [(4, False), (None, False), (None, True)])
def test_flops_fall_with_the_processes(rows, d, order, symmetric):
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    costs = [cost_of(cheapest_way(rows, d, n, order, symmetric), rows, d, n, order, symmetric) for n in counts]
    flops = [c.flops for c in costs]
    assert flops == sorted(flops, reverse=True)
    floor = 0 if order else min(rows, d) ** 3 // 3  # the factorization stays
    assert flops[-1] - floor < flops[0] / 3


def test_dear_bytes_are_not_sent(monkeypatch):
    rows, d, processes = 4096, 512, 8
    ways = []
    for flops_per_byte in (0, 10**9):
        monkeypatch.setattr(cost, "FLOPS_PER_BYTE", flops_per_byte)
        ways.append(cheapest_way(rows, d, processes, 4, False))
    assert ways == [SHARED_FEATURE, FEATURE]
