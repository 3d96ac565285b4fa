"""Tables of the report: settings, environment and evaluations of the runs, side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mec.report.record import Record
from mec.report.schema import PublishedResult
from mec.results import NO_VALUE, Result, cells, titles

MAIN_SETTINGS = (
    "backbone", "image_size", "epochs", "batch_size", "objective.form", "objective.distortion", "objective.order",
    "projector.output_dim", "teacher.enabled", "optimizer.name", "optimizer.lr", "seed",
)  # fmt: skip
"""Settings in the table of a single run."""


@dataclass(frozen=True)
class Row:
    """A row of the table of settings or environments: its name, and a cell for each run."""

    name: str
    cells: list[str]


@dataclass(frozen=True)
class EvaluationRow:
    """A row of the table of an evaluation.

    Attributes:
        kind: encoder of a run, baseline or published result.
        run: name of the run; empty for published results and for baselines that all runs share.
        name: name of the baseline, or description of the published result.
        cells: one string per column of the table.
        source: publication of a published result.
    """

    kind: Literal["encoder", "baseline", "published"]
    run: str
    name: str
    cells: list[str]
    source: str = ""


@dataclass(frozen=True)
class EvaluationTable:
    """Results of one task, protocol and dataset.

    Attributes:
        task: knn, linear, ...
        protocol: description of the protocol.
        dataset: name and size of the dataset.
        columns: column headers.
        rows: encoders of the runs, baselines, published results.
        details: encoder, time, duration, command and skipped sequences of each result.
    """

    task: str
    protocol: str
    dataset: str
    columns: list[str]
    rows: list[EvaluationRow]
    details: list[str]


def settings_rows(records: Sequence[Record]) -> list[Row]:
    """Return the settings that differ between the runs, or the main settings of a single run."""
    trained = [r for r in records if r.recipe]
    names = dict.fromkeys(name for r in trained for name in r.recipe)
    if len(trained) > 1:
        names = dict.fromkeys(n for n in names if len({repr(r.recipe.get(n, "-")) for r in trained}) > 1)
    else:
        names = dict.fromkeys(n for n in MAIN_SETTINGS if n in names)
    return [Row(n, [format_value(r.recipe[n]) if n in r.recipe else NO_VALUE for r in records]) for n in names]


def run_rows(records: Sequence[Record]) -> list[Row]:
    """Return data, duration, machine and versions of the runs, without rows that are empty for all of them."""

    def recorded(name: str) -> Callable[[Record], str]:
        return lambda record: format_value(record.environment.get(name, ""))

    columns: list[tuple[str, Callable[[Record], str]]] = [
        ("status", _status),
        ("data", recorded("data")),
        ("images", _images),
        ("batch size", recorded("batch_size")),
        ("duration", _duration),
        ("started", lambda record: recorded("started")(record).replace("T", " ").replace("+00:00", " UTC")),
        ("machine", recorded("platform")),
        ("CPU cores", recorded("cpu_cores")),
        ("GPUs", recorded("gpus")),
        ("processes", recorded("world_size")),
        ("precision", recorded("precision")),
        ("Python", recorded("python")),
        ("packages", lambda record: _pairs(record.environment.get("packages"))),
        ("command", recorded("command")),
        ("folder", lambda record: str(record.folder)),
    ]
    rows = [Row(name, [cell(record) or NO_VALUE for record in records]) for name, cell in columns]
    return [row for row in rows if set(row.cells) != {NO_VALUE}]


def format_value(value: Any) -> str:
    """Format a setting as in YAML; lists and mappings without brackets."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(format_value(v) for v in value)
    return _pairs(value) if isinstance(value, dict) else str(value)


def evaluation_tables(
    records: Sequence[Record], find_published: Callable[[Result], list[PublishedResult]]
) -> list[EvaluationTable]:
    """Group the newest result of each run and encoder by task, protocol and dataset, in order of first appearance."""
    groups: dict[tuple[str, str, str], dict[tuple[str, str], Result]] = {}
    for record in records:
        for result in record.results:  # oldest first, so that a newer one replaces it
            key = (result.task, result.protocol.describe(), str(result.dataset))
            groups.setdefault(key, {})[record.name, result.encoder] = result
    return [_evaluation_table(*key, _label_runs(newest), find_published) for key, newest in groups.items()]


def _label_runs(newest: Mapping[tuple[str, str], Result]) -> dict[str, Result]:
    """Return run name -> result; "run: encoder" -> result if a run has results of several encoders."""
    counts = Counter(run for run, _ in newest)
    return {run if counts[run] == 1 else f"{run}: {encoder}": result for (run, encoder), result in newest.items()}


def _evaluation_table(
    task: str,
    protocol: str,
    dataset: str,
    newest: dict[str, Result],
    find_published: Callable[[Result], list[PublishedResult]],
) -> EvaluationTable:
    columns = titles(row for result in newest.values() for row in result.rows.values())
    encoders: list[EvaluationRow] = []
    baselines: dict[tuple[str, ...], EvaluationRow] = {}
    published: dict[tuple[str, ...], EvaluationRow] = {}
    for run, result in newest.items():
        for name, metrics in result.rows.items():
            values = cells(metrics, columns)
            if name == "encoder":
                encoders.append(EvaluationRow("encoder", run, "", values))
            else:
                # a baseline that is the same for several runs, such as raw pixels, has one row without a run name
                row = baselines.setdefault((name, *values), EvaluationRow("baseline", run, name, values))
                if row.run != run:
                    baselines[(name, *values)] = EvaluationRow("baseline", "", name, values)
        for reference in find_published(result):
            published[reference.description, reference.source] = EvaluationRow(
                "published", "", reference.description, cells(reference.metrics, columns), reference.source
            )
    details = [_details(run, result) for run, result in newest.items()]
    rows = [*encoders, *baselines.values(), *published.values()]
    return EvaluationTable(task, protocol, dataset, list(columns.values()), rows, details)


def _details(run: str, result: Result) -> str:
    details = [
        f"{run}: {result.encoder}",
        result.time.replace("T", " ").replace("+00:00", " UTC"),
        _format_seconds(result.seconds),
        result.note,
        result.command,
    ]
    if result.skipped:
        name, reason = next(iter(result.skipped.items()))
        details.append(f"skipped sequences: {len(result.skipped)}, the first: {name}: {reason}")
    return "; ".join(filter(None, details))


def _status(record: Record) -> str:
    if not record.recipe:
        return "evaluations only"
    if record.finished:
        return "finished"
    update = "" if record.last_update is None else f"; last update {record.last_update:%Y-%m-%d %H:%M} UTC"
    return f"not finished{update}"


def _images(record: Record) -> str:
    images, classes = (record.environment.get(name) for name in ("images", "classes"))
    descriptions = [f"{images:,}"] if isinstance(images, int) else []
    if isinstance(classes, int) and classes:
        descriptions.append(f"{classes:,} classes, not used for training")
    if record.num_corrupt:
        descriptions.append(f"{record.num_corrupt:,} corrupt (corrupt.csv)")
    return "; ".join(descriptions)


def _duration(record: Record) -> str:
    steps, seconds = (record.metrics.get(name, np.empty(0)) for name in ("step", "seconds"))
    descriptions = []
    if len(seconds) and math.isfinite(seconds[-1]):
        descriptions.append(_format_seconds(float(seconds[-1])))
    if len(steps):
        completed, per_epoch, epochs = int(steps[-1]) + 1, record.steps_per_epoch, record.recipe.get("epochs")
        if record.finished and per_epoch and isinstance(epochs, int):
            completed = per_epoch * epochs  # the last steps may have no row in metrics.csv
        descriptions.append(f"{completed:,} step{'s' if completed > 1 else ''}")
        if per_epoch:
            descriptions.append(f"epoch {math.ceil(completed / per_epoch):,} of {format_value(epochs)}")
    return ", ".join(descriptions)


def _format_seconds(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 2 else f"{seconds:.0f} s"


def _pairs(value: Any) -> str:
    return ", ".join(f"{k} {format_value(v)}" for k, v in value.items()) if isinstance(value, dict) else ""
