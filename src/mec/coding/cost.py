"""What the coding rate of a joined batch costs one process, and the cheapest way to it.

``rows`` counts the codes of all processes: m of the cross form, 2 m of the pooled one. A multiplication and an
addition are two FLOPs; bytes are those a process sends (and receives) when the collectives go round a ring.
docs/scaling.md has the formulas as a table, and measurements beside them.
"""

from __future__ import annotations

from typing import NamedTuple

from mec.coding.series import split_order

# Work worth as much time as one byte on the wire. A GPU does 40e12 FLOP/s in float32 and sends 50 to 400 GB/s,
# 100 to 800 FLOPs a byte; a CPU core does 50e9 and sends 0.2 to 1 GB/s through gloo, 50 to 250.
FLOPS_PER_BYTE = 300


class Way(NamedTuple):
    """How the rate is computed: from d x d or rows x rows, and each process all of it or only its own block."""

    feature_side: bool
    shared: bool


class Cost(NamedTuple):
    """Of one process, forward and backward of the rate of one pair, where only the predictions have gradient."""

    flops: int
    bytes: int


def cost_of(way: Way, rows: int, d: int, processes: int, order: int | None, symmetric: bool) -> Cost:
    """FLOPs and bytes of a process, in float32."""
    size = d if way.feature_side else rows
    block = -(-size // processes) if way.shared else size
    products = 4 * rows * d * size // processes  # the matrix, and the gradient in the codes
    words = rows * d + rows * rows  # everybody's codes, then everybody's rows of the matrix
    if way.feature_side:
        words = 2 * d * d + (d * d if way.shared else 0)  # a sum over processes, then everybody's gradient block
    flops = products + _log_det_flops(size, block, way.shared, order, symmetric)
    return Cost(flops, 4 * words * (processes - 1) // processes)


def _log_det_flops(size: int, block: int, shared: bool, order: int | None, symmetric: bool) -> int:
    """Of the log det, or its series, of a matrix (size, size) and ``block`` rows of its gradient."""
    if order is not None:
        products = max(order - 2, 0) if shared else _products(order)
        return products * 2 * size * size * block
    factors = size**3 // 3 if symmetric else 2 * size**3 // 3
    # Cholesky's whole inverse: one triangular system and the product of its solution with itself
    solves = 3 if symmetric and not shared else 2
    return factors + solves * size * size * block


def _products(order: int) -> int:
    """Matrix products of the whole series and its gradient, as series.py takes them."""
    step = split_order(order)
    blocks, rest = divmod(order, step)
    return (step - 1) + max(0, -(-order // step) - 2) + (blocks > 1 and step > 1) + (rest > 1)


def cheapest_way(rows: int, d: int, processes: int, order: int | None, symmetric: bool) -> Way:
    """The least FLOPs + FLOPS_PER_BYTE * bytes; for one process that is the smaller side.

    Rows x rows is shared whenever processes are many: each needs its own rows of the gradient only.
    """
    if processes == 1:
        return Way(feature_side=d < rows, shared=False)

    def price(way: Way) -> int:
        flops, sent = cost_of(way, rows, d, processes, order, symmetric)
        return flops + FLOPS_PER_BYTE * sent

    return min(Way(False, True), Way(True, False), Way(True, True), key=price)
