"""Tables of the report: settings, environment, health and evaluations of the runs, side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

import numpy as np

from mec.pretraining.health import CHECKS, PATIENCE, HealthMonitor
from mec.report.published import PublishedResult
from mec.report.record import METRICS, Record
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
class HealthMessage:
    """The outcome of a health check of a run, in one or two sentences."""

    run: str
    level: Literal["ok", "note", "warning"]
    text: str


@dataclass(frozen=True)
class EvaluationRow:
    """A row of the table of an evaluation."""

    kind: Literal["encoder", "baseline", "published"]
    run: str  # empty for published results and for baselines that all runs share
    name: str  # of the baseline, or description of the published result
    cells: list[str]
    source: str = ""  # publication of a published result


@dataclass(frozen=True)
class EvaluationTable:
    """Results of one task, protocol and dataset."""

    task: str
    protocol: str
    dataset: str
    columns: list[str]
    rows: list[EvaluationRow]  # encoders of the runs, baselines, published results
    details: list[str]  # encoder, time, duration, command and skipped sequences of each result


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


def check_health(record: Record) -> list[HealthMessage]:
    """Return a warning for each failed check, or one message of level ok. Empty for folders without a recipe."""
    metrics = record.metrics
    if not record.recipe:
        return []
    if not metrics:
        return [HealthMessage(record.name, "note", "No step has been written to metrics.csv yet.")]
    form, order = record.recipe.get("objective.form"), record.recipe.get("objective.order")
    monitor = HealthMonitor(has_series=form == "cross" and order is not None)
    for row in np.stack(list(metrics.values()), axis=1).tolist():
        monitor.add(dict(zip(metrics, row, strict=True)))
    warnings = [HealthMessage(record.name, "warning", monitor.verdicts[k]) for k in CHECKS if k in monitor.verdicts]
    return warnings or [HealthMessage(record.name, "ok", _describe_trend(record))]


def _describe_trend(record: Record) -> str:
    """Compare the means of the first and the last measurements after the warm-up."""
    nothing = np.full(len(record.metrics["step"]), np.nan)
    lr, rank, loss = (record.metrics.get(name, nothing) for name in ("lr", "effective_rank", "loss"))
    start = int(np.nanargmax(lr)) if np.isfinite(lr).any() else 0
    rank, loss = (values[start:][np.isfinite(values[start:])] for values in (rank, loss))
    count = min(len(rank), len(loss))
    if count >= 2 * PATIENCE:
        return (
            "No problem found. Since the warm-up, the effective rank of the codes went from "
            f"{rank[:PATIENCE].mean():.1f} to {rank[-PATIENCE:].mean():.1f} and the loss from "
            f"{loss[:PATIENCE].mean():.3f} to {loss[-PATIENCE:].mean():.3f} (means of {PATIENCE} measurements)."
        )
    if record.finished:
        return f"No problem found. Measurements after the warm-up: {count}, too few for a trend; lower log_every."
    return f"No problem found so far. The learning rate {'has just peaked' if count > 1 else 'is still warming up'}."


def evaluation_tables(
    records: Sequence[Record], find_published: Callable[[Result], list[PublishedResult]]
) -> list[EvaluationTable]:
    """Group the newest result of each run and encoder by task, protocol and dataset, in order of first appearance."""
    groups: dict[tuple[str, str, str], dict[tuple[str, str], Result]] = {}
    for record in records:
        for result in record.results:  # oldest first, so that a newer one replaces it
            key = (result.task, result.protocol.describe(), str(result.dataset))
            groups.setdefault(key, {})[record.name, result.encoder] = result
    tables = []
    for key, newest in groups.items():
        counts = Counter(run for run, _ in newest)  # more than 1: a run has results of several encoders
        by_run = {run if counts[run] == 1 else f"{run}: {encoder}": result for (run, encoder), result in newest.items()}
        columns = titles(row for result in newest.values() for row in result.rows.values())
        details = [_details(run, result) for run, result in by_run.items()]
        rows = _evaluation_rows(by_run, columns, find_published)
        tables.append(EvaluationTable(*key, list(columns.values()), rows, details))
    return tables


def _evaluation_rows(
    results: Mapping[str, Result], columns: Mapping[str, str], find_published: Callable[[Result], list[PublishedResult]]
) -> list[EvaluationRow]:
    encoders: list[EvaluationRow] = []
    baselines: dict[tuple[str, ...], EvaluationRow] = {}
    published: dict[tuple[str, ...], EvaluationRow] = {}
    for run, result in results.items():
        for name, metrics in result.rows.items():
            values = cells(metrics, columns)
            if name == "encoder":
                encoders.append(EvaluationRow("encoder", run, "", values))
            else:
                # a baseline that is the same for several runs, such as raw pixels, has one row without a run name
                is_shared = (name, *values) in baselines
                baselines[(name, *values)] = EvaluationRow("baseline", "" if is_shared else run, name, values)
        for reference in find_published(result):
            published[reference.description, reference.source] = EvaluationRow(
                "published", "", reference.description, cells(reference.metrics, columns), reference.source
            )
    return [*encoders, *baselines.values(), *published.values()]


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
    try:
        last_update = datetime.fromtimestamp((record.folder / METRICS).stat().st_mtime, timezone.utc)
    except OSError:
        return "not finished"
    return f"not finished; last update {last_update:%Y-%m-%d %H:%M} UTC"


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
