"""The ranking of several runs. Runs that differ in nothing but their seed are one row, with mean and deviation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mec.report.record import PROBE_NAMES, Record
from mec.report.tables import MAIN_SETTINGS, Row, format_value, settings_rows
from mec.report.verdict import comparisons, last_probes, newest_results, without_evaluation
from mec.results import NO_VALUE, Metric

MAX_COMMANDS, MAX_SETTINGS = 10, 4
PARTS = ("objective", "view_transform", "encoder")
"""Settings that describe an object of a user."""


class RankedRow(NamedTuple):
    """A run, or several runs with different seeds."""

    runs: list[int]  # indices
    name: str
    cells: list[str]


class Ranking(NamedTuple):
    """The runs of a report, best first."""

    by: str  # the column that they are sorted by; empty if none has a value
    columns: list[str]
    rows: list[RankedRow]
    commands: list[str]  # first evaluations of the runs that have none

    @property
    def has_means(self) -> bool:
        return any(len(row.runs) > 1 for row in self.rows)


def rank(records: Sequence[Record]) -> Ranking:
    """Rank runs by the evaluation or online probe that most of them have, evaluations first."""
    values = _measured(records)
    by = max(values, key=lambda column: len(values[column]), default="")
    settings = _settings(records)
    scored: list[tuple[float, RankedRow]] = []
    for group in group_seeds(records):
        means = {column: _mean([metrics[i] for i in group if i in metrics]) for column, metrics in values.items()}
        cells = [_cell(mean, len(group)) for mean in means.values()]
        cells += [", ".join(dict.fromkeys(row.cells[i] for i in group)) for row in settings]
        cells += [", ".join(dict.fromkeys(_progress(records[i]) for i in group))]
        best = means.get(by)
        scored.append((-math.inf if best is None else best.value, RankedRow(group, _name(records, group), cells)))
    rows = [row for _, row in sorted(scored, key=lambda item: (-item[0], item[1].runs))]
    missing = [records[i] for row in rows for i in row.runs if not newest_results(records[i])]
    commands = [command for record in missing for command in without_evaluation(record).commands]
    columns = [*values, *(row.name for row in settings), "epochs"]
    return Ranking(by, columns, rows, commands[:MAX_COMMANDS])


def group_seeds(records: Sequence[Record]) -> list[list[int]]:
    """Return the indices of the runs in groups that differ in nothing but their seed, in order of their first run."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    repeated: Counter[str] = Counter()
    for index, record in enumerate(records):
        settings = repr(sorted((name, value) for name, value in record.recipe.items() if name != "seed"))
        data = repr([record.environment.get(name) for name in ("data", "images")])
        # different objects may have equal descriptions; mec compare has a folder for each
        folder = record.folder.parent if {*PARTS} & record.recipe.keys() else None
        key = f"{settings} {data} {folder}"
        seed = f"{key} {record.recipe.get('seed')}"
        if not record.recipe:  # evaluations only
            key = str(record.folder)
        groups.setdefault((key, repeated[seed]), []).append(index)
        repeated[seed] += 1  # a repetition with the same seed is no independent trial
    return list(groups.values())


def _measured(records: Sequence[Record]) -> dict[str, dict[int, Metric]]:
    """Return column -> index of the run -> its evaluation, or last online probe."""
    values: dict[str, dict[int, Metric]] = {}
    several = len({str(result.dataset) for record in records for result in newest_results(record)}) > 1
    for index, record in enumerate(records):
        for result in newest_results(record):
            for comparison in comparisons(result)[:1]:
                where = f" on {result.dataset.name}" if several else ""
                values.setdefault(f"{comparison.name}{where} (%)", {}).setdefault(index, comparison.metric)
    for index, record in enumerate(records):
        for name, value in last_probes(record.probes).items():
            column = f"last online probe: {PROBE_NAMES.get(name, name)} (%)"
            values.setdefault(column, {})[index] = Metric(name, value)
    return values


def _mean(metrics: Sequence[Metric]) -> Metric | None:
    """Return mean and standard deviation (n - 1) of a metric of several runs."""
    if len(metrics) < 2:
        return metrics[0] if metrics else None
    values = [metric.value for metric in metrics]
    return Metric(metrics[0].name, float(np.mean(values)), metrics[0].unit, float(np.std(values, ddof=1)), len(values))


def _cell(mean: Metric | None, runs: int) -> str:
    if mean is None:
        return NO_VALUE
    return str(mean) if runs in (1, mean.n) else f"{mean} ({mean.n} of {runs})"


def _settings(records: Sequence[Record]) -> list[Row]:
    """Return some of the settings that differ, the main ones first. Different objectives are one column; settings that
    only runs of one objective or network have are left out."""
    rows = [row for row in settings_rows(records) if row.name != "epochs"]
    objectives = [record.objective if record.recipe else NO_VALUE for record in records]
    if len({*objectives} - {NO_VALUE}) > 1:
        rows = [Row("objective", objectives), *(r for r in rows if r.name not in ("objective", "objective.name"))]
    rows = [row for row in rows if row.name in PARTS or len({*row.cells} - {NO_VALUE}) > 1]
    order = {name: index for index, name in enumerate(dict.fromkeys((*PARTS, *MAIN_SETTINGS)))}
    return sorted(rows, key=lambda row: order.get(row.name, len(order)))[:MAX_SETTINGS]


def _name(records: Sequence[Record], group: Sequence[int]) -> str:
    """Return the name of a run; of several their common folder, if it has no other runs, or all names."""
    first = records[group[0]]
    parent = first.folder.parent
    if len(group) == 1:
        return first.name
    if {i for i, record in enumerate(records) if record.folder.parent == parent} == {*group}:
        return first.name.rpartition("/")[0] or parent.name
    return ", ".join(records[i].name for i in group)


def _progress(record: Record) -> str:
    """Return completed and planned epochs: "3 of 4"."""
    planned, steps_per_epoch = record.planned_epochs, record.steps_per_epoch
    if not planned or not steps_per_epoch:
        return NO_VALUE
    done = planned if record.steps == record.planned_steps else record.steps // steps_per_epoch
    return format_value(planned) if done == planned else f"{done:,} of {format_value(planned)}"
