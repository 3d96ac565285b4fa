"""Results of evaluations: metrics, protocols and one formatter for every table that shows them."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.markup import escape
from rich.table import Table

RESULTS = "results.jsonl"
NO_VALUE = "-"
TOP_5 = " top-5"
"""Suffix of a metric that shares the cell of its top-1."""

Unit = Literal["fraction", "count", "nats", "per frame"]
"""``fraction``: shown in percent. ``count``: an integer, or the mean of integers. Others: four significant digits."""


@dataclass(frozen=True)
class Metric:
    """One measured number.

    Attributes:
        name: column of a table, such as top-1, k=20, HOTA.
        value: measured value in its unit; the mean if there are several trials or datasets.
        unit: unit of value and std.
        std: standard deviation over the trials; None for a single trial and for a mean over datasets.
        n: number of trials; for a mean over datasets (``mean_row``), number of datasets.
    """

    name: str
    value: float
    unit: Unit = "fraction"
    std: float | None = None
    n: int = 1

    @property
    def title(self) -> str:
        """Column header: the name with its unit."""
        unit = {"fraction": "%", "count": ""}.get(self.unit, self.unit)
        return f"{self.name} ({unit})" if unit else self.name

    def __str__(self) -> str:
        """The value, and the spread over trials, without the unit."""
        if not math.isfinite(self.value):
            return NO_VALUE
        spread = "" if self.std is None else f" ± {_number(self.std, self.unit, is_mean=True)}"
        return f"{_number(self.value, self.unit, is_mean=self.n > 1)}{spread}"


def _number(value: float, unit: Unit, is_mean: bool) -> str:
    if unit == "fraction":
        return f"{100 * value:.1f}"
    if unit == "count":
        return f"{value:,.1f}" if is_mean else f"{value:,.0f}"
    return f"{value:.4g}"


def to_metrics(values: Mapping[str, float], units: Mapping[str, Unit] | None = None) -> list[Metric]:
    """Return the metrics of a single trial. The default unit is ``fraction`` for a float and ``count`` for an int."""
    units = units or {}
    return [
        Metric(name, value, units.get(name, "count" if isinstance(value, int) else "fraction"))
        for name, value in values.items()
    ]


def mean_metrics(trials: Sequence[Mapping[str, float]], units: Mapping[str, Unit] | None = None) -> list[Metric]:
    """Return mean and standard deviation (n - 1) of each metric over trials; units as in ``to_metrics``."""
    if len(trials) == 1:
        return to_metrics(trials[0], units)
    means = []
    for metric in to_metrics(trials[0], units):
        values = [trial[metric.name] for trial in trials]
        mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
        means.append(Metric(metric.name, mean, metric.unit, std, len(trials)))
    return means


@dataclass(frozen=True)
class Protocol:
    """The evaluation protocol of a result: an identifier, and the settings that must agree for a comparison.

    Attributes:
        id: task and variant, such as linear-paper or detect-coco-1x.
        settings: name -> number, string, boolean or list.
    """

    id: str
    settings: dict[str, Any]

    def describe(self) -> str:
        """Return one line, rendered from the settings: ``knn: similarity cosine, temperature 0.07``."""
        pairs = [f"{name.replace('_', ' ')} {_setting(v)}" for name, v in self.settings.items() if v is not None]
        return f"{self.id}: {', '.join(pairs)}" if pairs else self.id

    def includes(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the protocol has all these settings, with equal values."""
        return all(self.settings.get(name) == value for name, value in settings.items())


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return "/".join(_setting(v) for v in value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def command_line() -> str:
    """Return the command of this process, quoted for a shell. ``python -m mec`` is the command mec."""
    program = Path(sys.argv[0])
    is_module = (program.parent.name, program.name) == ("mec", "__main__.py")
    return shlex.join(["mec" if is_module else program.name, *sys.argv[1:]])


@dataclass(frozen=True)
class DatasetSummary:
    """Name of an evaluated dataset as the user gave it, and numbers of train, test, classes, or sequences, frames."""

    name: str
    counts: dict[str, int]

    def __str__(self) -> str:
        singular = {"classes": "class", "sequences": "sequence", "frames": "frame"}
        sizes = (f"{n:,} {singular.get(what, what) if n == 1 else what}" for what, n in self.counts.items())
        return f"{self.name} ({', '.join(sizes)})"


@dataclass(frozen=True)
class Result:
    """One evaluation of one encoder: a line of results.jsonl, a table on the terminal, in the report and model card.

    Attributes:
        task: knn, linear, few-shot, finetune, detect, sot, vos, mot, mots or pose.
        protocol: identifier and settings of the measurement.
        dataset: name and size of the evaluated data.
        encoder: description of the evaluated weights.
        rows: name of a row -> its metrics: "encoder", then one row per baseline.
        seconds: wall time.
        skipped: sequences that could not be used -> the reason.
        note: speed and the like, not part of the protocol.
        command: command line, quoted again from sys.argv.
        time: time of the end, UTC, ISO 8601.
    """

    task: str
    protocol: Protocol
    dataset: DatasetSummary
    encoder: str
    rows: dict[str, list[Metric]]
    seconds: float
    skipped: dict[str, str] = field(default_factory=dict)
    note: str = ""
    command: str = field(default_factory=command_line)
    time: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def metric(self, name: str, row: str = "encoder") -> Metric:
        """Return a metric of a row. Raise KeyError if there is none of that name."""
        return {metric.name: metric for metric in self.rows[row]}[name]

    def values(self, row: str = "encoder") -> dict[str, float]:
        """Return metric name -> value of a row."""
        return {metric.name: metric.value for metric in self.rows[row]}

    def table(self) -> Table:
        """Return the table for a terminal: a row for the encoder and for each baseline."""
        return results_table([self])

    @property
    def footnote(self) -> str:
        """Protocol and note, in one line."""
        return "; ".join(filter(None, [self.protocol.describe(), self.note]))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; ``from_dict`` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """Return the result that ``as_dict`` wrote; ValueError if a field is missing, unknown or of another type."""
        try:
            rows = {str(row): [Metric(**metric) for metric in metrics] for row, metrics in values["rows"].items()}
            protocol, dataset = Protocol(**values["protocol"]), DatasetSummary(**values["dataset"])
            result = cls(**{**values, "rows": rows, "protocol": protocol, "dataset": dataset})
            result._check()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a result ({error})") from error
        return result

    def _check(self) -> None:
        texts = (self.task, self.encoder, self.note, self.command, self.time, self.protocol.id, self.dataset.name)
        metrics = [metric for row in self.rows.values() for metric in row]
        values = [value for m in metrics for value in (m.value, m.std) if value is not None]
        valid = (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(n, int | float) for n in [self.seconds, *self.dataset.counts.values(), *values])
            and metrics and all(metric.unit in get_args(Unit) for metric in metrics)
            and isinstance(self.protocol.settings, dict) and isinstance(self.skipped, dict)
        )  # fmt: skip
        if not valid:
            raise TypeError("a field has another type, or there is no metric")

    def append_to(self, folder: str | os.PathLike[str]) -> Path:
        """Add one line to ``folder``/results.jsonl."""
        path = Path(folder, RESULTS)
        path.parent.mkdir(parents=True, exist_ok=True)
        # after a line that a kill or a full disk has cut off
        newline = "\n" if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n") else ""
        with path.open("a") as file:
            file.write(f"{newline}{json.dumps(self.as_dict())}\n")
        return path


def titles(rows: Iterable[Sequence[Metric]]) -> dict[str, str]:
    """Return metric name -> column header, for the rows of one table, in the order of the longest row. A top-5 metric
    shares the column of its top-1 if that has one."""
    headers: dict[str, str] = {}
    for row in sorted(rows, key=len, reverse=True):
        for metric in row:
            headers.setdefault(metric.name, metric.title)
    return {n: title for n, title in headers.items() if not n.endswith(TOP_5) or n.removesuffix(TOP_5) not in headers}


def cells(row: Sequence[Metric], names: Iterable[str]) -> list[str]:
    """Return the cells of a row for the columns of ``titles``: "93.7 ± 0.5", "61.2 / 88.0" (top-1 / top-5), or "-"."""
    metrics = {metric.name: metric for metric in row}
    return [
        " / ".join(str(metrics[n]) for n in (name, name + TOP_5) if n in metrics) if name in metrics else NO_VALUE
        for name in names
    ]


def mean_row(rows: Sequence[Sequence[Metric]]) -> list[Metric]:
    """Return the means over datasets of the metrics that every row has; ``n`` is the number of datasets."""
    by_name = [{metric.name: metric for metric in row} for row in rows]
    return [
        Metric(name, float(np.mean([row[name].value for row in by_name])), metric.unit, n=len(rows))
        for name, metric in by_name[0].items()
        if all(name in row for row in by_name)
    ]


def results_table(results: Sequence[Result]) -> Table:
    """Return the terminal table of one task on one or several datasets, with the mean over the datasets."""
    several = len(results) > 1
    columns = titles(row for result in results for row in result.rows.values())
    table = Table(
        title=results[0].task + ("" if several else f": {escape(str(results[0].dataset))}"),
        caption=escape("\n".join(dict.fromkeys(result.footnote for result in results))),
        title_justify="left",
        caption_justify="left",
    )
    if several:
        table.add_column("dataset")
    table.add_column("")
    for title in columns.values():
        table.add_column(title, justify="right")
    for result in results:
        for number, (name, row) in enumerate(result.rows.items()):
            first = [escape(str(result.dataset)) if number == 0 else ""] if several else []
            last = number + 1 == len(result.rows)
            table.add_row(*first, name, *cells(row, columns), end_section=several and last)
    if several:
        for name in results[0].rows:
            rows = [result.rows[name] for result in results if name in result.rows]
            table.add_row(f"mean of {len(rows)}", name, *cells(mean_row(rows), columns))
    return table


class Stopwatch:
    """Timer; calling it returns the seconds since construction."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def __call__(self) -> float:
        return round(time.perf_counter() - self.started, 2)
