"""The report's tables: what was run, and how good it is, the runs side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mec.report.record import Record
from mec.report.schema import Published
from mec.results import Result, cells, titles

MAIN = (
    "backbone", "image_size", "epochs", "batch_size", "objective.form", "objective.distortion", "objective.order",
    "projector.output_dim", "teacher.enabled", "optimizer.name", "optimizer.lr", "seed",
)  # fmt: skip
"""Settings told of a run that stands alone."""


@dataclass(frozen=True)
class Row:
    """A name and a cell for each run."""

    name: str
    cells: list[str]


@dataclass(frozen=True)
class Line:
    """A row of an evaluation; ``kind`` is encoder, baseline or published, ``whence`` the table it stands in."""

    kind: str
    run: str
    name: str
    cells: list[str]
    whence: str = ""


@dataclass(frozen=True)
class Evaluation:
    """One task by one protocol on one source.

    Attributes:
        task: of all results.
        protocol: of all results, described.
        dataset: of all results, with its size.
        columns: headers of the table.
        lines: encoders of the runs, baselines, published numbers.
        details: encoder, time, duration and command of each result, and what could not be used.
    """

    task: str
    protocol: str
    dataset: str
    columns: list[str]
    lines: list[Line]
    details: list[str]


def settings(records: Sequence[Record]) -> list[Row]:
    """Those that differ between the runs; of one run, the main ones."""
    trained = [r for r in records if r.recipe]
    names = dict.fromkeys(name for r in trained for name in r.recipe)
    if len(trained) > 1:
        names = dict.fromkeys(n for n in names if len({repr(r.recipe.get(n, "-")) for r in trained}) > 1)
    else:
        names = dict.fromkeys(n for n in MAIN if n in names)
    return [Row(n, [told(r.recipe[n]) if n in r.recipe else "–" for r in records]) for n in names]


def facts(records: Sequence[Record]) -> list[Row]:
    """Data, machine, time and versions; a row that no run has something for is left out."""
    rows: list[tuple[str, Callable[[Record], str]]] = [
        ("state", _state),
        ("data", lambda r: told(r.environment.get("data", ""))),
        ("images", _images),
        ("images in a step", lambda r: told(r.environment.get("batch_size", ""))),
        ("time", _time),
        ("started", lambda r: told(r.environment.get("started", "")).replace("T", " ").replace("+00:00", " UTC")),
        ("machine", lambda r: told(r.environment.get("platform", ""))),
        ("CPU cores", lambda r: told(r.environment.get("cpu_cores", ""))),
        ("GPUs", lambda r: told(r.environment.get("gpus", ""))),
        ("processes", lambda r: told(r.environment.get("world_size", ""))),
        ("precision", lambda r: told(r.environment.get("precision", ""))),
        ("Python", lambda r: told(r.environment.get("python", ""))),
        ("packages", lambda r: _pairs(r.environment.get("packages"))),
        ("command", lambda r: told(r.environment.get("command", ""))),
        ("folder", lambda r: str(r.folder)),
    ]
    made = [Row(name, [tell(record) or "–" for record in records]) for name, tell in rows]
    return [row for row in made if set(row.cells) != {"–"}]


def told(value: Any) -> str:
    """A setting as YAML would have it, lists without their brackets."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(told(v) for v in value)
    return _pairs(value) if isinstance(value, dict) else str(value)


def evaluations(records: Sequence[Record], published: Callable[[Result], list[Published]]) -> list[Evaluation]:
    """Results of one task, protocol and dataset together, the newest of each run; in the order they first came."""
    groups: dict[tuple[str, str, str], dict[tuple[str, str], Result]] = {}
    for record in records:
        for result in record.results:  # the oldest first: a newer one replaces it
            key = (result.task, result.protocol.describe(), str(result.dataset))
            groups.setdefault(key, {})[record.name, result.encoder] = result
    return [_evaluation(*key, _named(newest), published) for key, newest in groups.items()]


def _named(newest: Mapping[tuple[str, str], Result]) -> dict[str, Result]:
    """By the run's name, and the encoder's where a folder has results of several."""
    runs = Counter(run for run, _ in newest)
    return {run if runs[run] == 1 else f"{run}: {encoder}": r for (run, encoder), r in newest.items()}


def _evaluation(
    task: str,
    protocol: str,
    dataset: str,
    newest: dict[str, Result],
    published: Callable[[Result], list[Published]],
) -> Evaluation:
    columns = titles(row for result in newest.values() for row in result.rows.values())
    encoders: list[Line] = []
    baselines: dict[tuple[str, ...], Line] = {}
    references: dict[tuple[str, ...], Line] = {}
    for run, result in newest.items():
        for name, row in result.rows.items():
            values = cells(row, columns)
            if name == "encoder":
                encoders.append(Line("encoder", run, "", values))
            else:  # raw pixels are the same for every run
                line = baselines.setdefault((name, *values), Line("baseline", run, name, values))
                if line.run != run:
                    baselines[(name, *values)] = Line("baseline", "", name, values)
        for p in published(result):
            references[p.what, p.source] = Line("published", "", p.what, cells(p.metrics, columns), p.source)
    details = [_details(run, result) for run, result in newest.items()]
    lines = [*encoders, *baselines.values(), *references.values()]
    return Evaluation(task, protocol, dataset, list(columns.values()), lines, details)


def _details(run: str, result: Result) -> str:
    details = [
        f"{run}: {result.encoder}",
        result.time.replace("T", " ").replace("+00:00", " UTC"),
        _duration(result.seconds),
        result.note,
        result.command,
    ]
    if result.skipped:
        name, reason = next(iter(result.skipped.items()))
        details.append(f"{len(result.skipped)} could not be used, the first: {name}: {reason}")
    return "; ".join(filter(None, details))


def _state(record: Record) -> str:
    if not record.recipe:
        return "evaluations only"
    if record.ended:
        return "ended"
    written = "" if record.written is None else f"; last written {record.written:%Y-%m-%d %H:%M} UTC"
    return f"not ended{written}"


def _images(record: Record) -> str:
    images, classes = (record.environment.get(name) for name in ("images", "classes"))
    words = [f"{images:,}"] if isinstance(images, int) else []
    if isinstance(classes, int) and classes:
        words.append(f"{classes:,} classes, not used to train")
    if record.skipped:
        words.append(f"{record.skipped:,} unreadable (corrupt.csv)")
    return "; ".join(words)


def _time(record: Record) -> str:
    steps, seconds = (record.metrics.get(name, np.empty(0)) for name in ("step", "seconds"))
    words = []
    if len(seconds) and math.isfinite(seconds[-1]):
        words.append(_duration(float(seconds[-1])))
    if len(steps):
        taken, per_epoch, epochs = int(steps[-1]) + 1, record.steps_per_epoch, record.recipe.get("epochs")
        if record.ended and per_epoch and isinstance(epochs, int):
            taken = per_epoch * epochs  # the last steps need not have a row
        words.append(f"{taken:,} step{'s' if taken > 1 else ''}")
        if per_epoch:
            words.append(f"epoch {math.ceil(taken / per_epoch):,} of {told(epochs)}")
    return ", ".join(words)


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 2 else f"{seconds:.0f} s"


def _pairs(value: Any) -> str:
    return ", ".join(f"{k} {told(v)}" for k, v in value.items()) if isinstance(value, dict) else ""
