"""Cost of the coding rate of a global batch, and the choice of the cheapest plan. Formulas: docs/scaling.md.

``rows`` counts the codes of all processes: m for the cross form, V m for the codes of V views. One multiplication
and one addition are two FLOPs. Bytes are those that a process sends (and receives) in ring collectives.
"""

from __future__ import annotations

from typing import NamedTuple

# FLOPs that take as long as one byte on the wire. A GPU does 40e12 FLOP/s in float32 and sends 50 to 400 GB/s,
# 100 to 800 FLOPs per byte; a CPU core does 50e9 and sends 0.2 to 1 GB/s through gloo, 50 to 250.
FLOPS_PER_BYTE = 300


class Plan(NamedTuple):
    """Which matrix is used, d x d (``feature_side``) or rows x rows, and whether each process computes its own block of
    the log det (``sharded``) or all of it."""

    feature_side: bool
    sharded: bool


class Cost(NamedTuple):
    """Cost for one process of forward and backward of one rate, with gradients in the predictions only."""

    flops: int
    bytes: int


def estimate_cost(plan: Plan, rows: int, d: int, world_size: int, order: int | None, symmetric: bool) -> Cost:
    """Return the FLOPs and bytes of one process, in float32."""
    size = d if plan.feature_side else rows
    block = -(-size // world_size) if plan.sharded else size
    products = 4 * rows * d * size // world_size  # the matrix, and the gradient with respect to the codes
    numbers = rows * d + rows * rows  # all-gather of the codes, then of the rows of the matrix
    if plan.feature_side:
        numbers = 2 * d * d + (d * d if plan.sharded else 0)  # all-reduce of the matrix, all-gather of the gradient
    flops = products + _log_det_flops(size, block, plan.sharded, order, symmetric)
    return Cost(flops, 4 * numbers * (world_size - 1) // world_size)


def _log_det_flops(size: int, block: int, sharded: bool, order: int | None, symmetric: bool) -> int:
    """Return the FLOPs of the log det (or its series) of a (size, size) matrix and ``block`` rows of its gradient."""
    if order is not None:
        products = max(order - 2, 0) if sharded else _num_products(order)
        return products * 2 * size * size * block
    factorization = size**3 // 3 if symmetric else 2 * size**3 // 3
    # the full inverse by Cholesky: one triangular solve, and the product of its solution with its transpose
    solves = 3 if symmetric and not sharded else 2
    return factorization + solves * size * size * block


def choose_step(order: int) -> int:
    """Return the step s for which the powers C, ..., C^s and C^s, C^2s, ... give every trace up to ``order`` with
    the fewest matrix products (about 2 sqrt(order)). Ties prefer a step that divides ``order``."""
    return min(range(1, order + 1), key=lambda s: ((s - 1) + max(0, -(-order // s) - 2), order % s))


def _num_products(order: int) -> int:
    """Return the number of matrix products that log_det.py needs for the full series and its gradient."""
    step = choose_step(order)
    blocks, remainder = divmod(order, step)
    return (step - 1) + max(0, -(-order // step) - 2) + (blocks > 1 and step > 1) + (remainder > 1)


def cheapest_plan(rows: int, d: int, world_size: int, order: int | None, symmetric: bool) -> Plan:
    """Return the plan with the lowest FLOPs + FLOPS_PER_BYTE * bytes. One process uses the smaller side.

    In several the rows x rows matrix is always sharded: each process needs only its own rows of the gradient.
    """
    if world_size == 1:
        return Plan(feature_side=d < rows, sharded=False)

    def price(plan: Plan) -> int:
        flops, sent = estimate_cost(plan, rows, d, world_size, order, symmetric)
        return flops + FLOPS_PER_BYTE * sent

    return min(Plan(False, True), Plan(True, False), Plan(True, True), key=price)
