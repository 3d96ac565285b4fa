"""Numbers of tables in the README and the docs are those of the json files of the scripts that their section names.

A necessary condition only: that the number is in the file, in whatever row. It finds tables that were not updated.
``<!-- not traced: REASON -->`` in a section leaves it out.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.test_docs import PAGES, ROOT

RESULTS = ROOT / "benchmarks" / "results"
NUMBER = re.compile(r"(?<![\w./-])\d+\.\d+(?![\w-])")
SCALES = (1, 100, 1e-6, 1e-9)
"""Factors of values in tables: fractions in percent, millions and billions."""
Keys = tuple[str, ...]


def leaves(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, float]]:
    """Yield the numbers of a json value, each with its keys. Rows of a list are named by their settings, without the
    seed, so that rows of several seeds have the same path."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield path, float(value)
    elif isinstance(value, dict):
        named = [f"{key}={item}" for key, item in value.items() if isinstance(item, str | int) and key != "seed"]
        for key, item in value.items():
            yield from leaves(item, (*path, *named, key) if path and path[-1] == "row" else (*path, key))
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, (*path, "row"))


@cache
def values_of(name: str) -> np.ndarray:
    """Return the numbers of a json file, and the means of those whose paths are equal, or equal except for one key."""
    groups: dict[tuple[int, Keys], list[float]] = {}
    for path, value in leaves(json.loads((RESULTS / f"{name}.json").read_text())):
        groups.setdefault((-1, path), []).append(value)
        for left_out in range(len(path) - 1):
            groups.setdefault((left_out, path[:left_out] + path[left_out + 1 :]), []).append(value)
    numbers = [value for (left_out, _), values in groups.items() if left_out < 0 for value in values]
    return np.array([*numbers, *(np.mean(values) for values in groups.values()), *map(np.std, groups.values())])


def tables() -> Iterator[tuple[str, set[str], list[str]]]:
    """Yield the title, the scripts and the numbers in tables, without those of the first column, of each section that
    names scripts whose json exists. A table row that names its own script counts for that alone."""
    for page in PAGES:
        for section in re.split(r"(?m)^(?=#+ )", page.read_text()):
            # the header is above a line of dashes
            lines = re.findall(r"(?m)^\|.*$(?!\n\|[-| ]+$)", section)
            rows = [(scripts_of(line), NUMBER.findall(" ".join(line.split("|")[2:]))) for line in lines]
            common = scripts_of(section)
            if "<!-- not traced:" in section:
                continue
            of_section = [numbers for scripts, numbers in rows if not scripts]
            title = f"{page.relative_to(ROOT)}: {section.splitlines()[0] if section else ''}"
            for scripts, numbers in [*rows, (common, list(itertools.chain(*of_section)))]:
                if scripts and numbers:
                    yield title, scripts, numbers


def scripts_of(text: str) -> set[str]:
    names = set(re.findall(r"\b(?:benchmarks/)?(\w+)\.py\b", text))
    return {name for name in names if (RESULTS / f"{name}.json").exists()}


def is_recorded(number: str, values: np.ndarray) -> bool:
    digits = len(number.partition(".")[2])
    return any(bool((np.abs(values * scale - float(number)) <= 0.501 * 10.0**-digits).any()) for scale in SCALES)


@pytest.mark.parametrize(
    ("title", "scripts", "numbers"), [pytest.param(*table, id=f"{table[0]} {min(table[1])}") for table in tables()]
)
def test_numbers_are_recorded(title: str, scripts: set[str], numbers: list[str]) -> None:
    values = np.concatenate([values_of(name) for name in sorted(scripts)])
    missing = [number for number in numbers if not is_recorded(number, values)]
    assert not missing, f"{title}: {', '.join(missing)} are not in {', '.join(sorted(scripts))}.json"


def test_a_number_that_is_not_recorded_is_found() -> None:
    assert is_recorded("68.3", np.array([0.6833]))
    assert is_recorded("3.22", np.array([3.2212e9]))
    assert not is_recorded("68.4", np.array([0.6833]))
    rows = {"rows": [{"method": "a", "seed": seed, "kNN": 50.0 + seed} for seed in range(3)]}
    paths = {path for path, _ in leaves(rows)}
    assert ("rows", "row", "method=a", "kNN") in paths
