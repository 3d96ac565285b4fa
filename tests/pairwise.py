"""Pairwise sweeps: fewer cases than the product, where a fault shows with one or two particular values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

Case = tuple[int, ...]


def pairwise(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return cases, one value of each factor, so that any two values of two factors occur together in a case."""

    def pairs(case: Case) -> set[tuple[int, int, int, int]]:
        return {(i, j, case[i], case[j]) for i, j in itertools.combinations(range(len(case)), 2)}

    candidates = list(itertools.product(*(range(len(values)) for values in factors)))
    missing = set().union(*map(pairs, candidates))
    cases: list[Case] = []
    while missing:
        cases.append(max(candidates, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(cases[-1])
    return [tuple(values[i] for values, i in zip(factors, case, strict=True)) for case in cases]
