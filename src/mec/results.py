"""What an evaluation found: one line of results.jsonl, one table."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Result:
    """Figures of one evaluation.

    Attributes:
        task: knn, linear, few-label, ...
        protocol: how it was measured, in a sentence.
        data: the source, with the numbers of images.
        encoder: what was measured.
        figures: a row for the encoder ("encoder") and for each baseline: column -> value. Accuracies are shares, and
            whole numbers (int) counts.
        seconds: it took.
        broken: sequences that could not be used, and why.
        command: as it was typed.
        time: when it ended, UTC.
    """

    task: str
    protocol: str
    data: str
    encoder: str
    figures: dict[str, dict[str, float]]
    seconds: float
    broken: dict[str, str] = field(default_factory=dict)
    command: str = field(default_factory=lambda: shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    time: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def append_to(self, folder: str | os.PathLike[str]) -> Path:
        """Add one line to ``folder``/results.jsonl."""
        path = Path(folder) / RESULTS
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(self.as_dict()) + "\n")
        return path

    def table(self) -> Table:
        """For a terminal: a row for the encoder and for each baseline, shares in percent."""
        return table([self])


def table(results: Sequence[Result]) -> Table:
    """Results of one task, on one or several sources: a row for the encoder and each baseline, and their means over
    the sources. Shares in percent, counts as they are; "± 1.2" is the spread where there are several draws or seeds,
    "/ 98.0" the top-5 where a column is not of top-1 alone."""
    columns = columns_of([row for r in results for row in r.figures.values()])
    several = len(results) > 1
    shown = Table(
        title=results[0].task + ("" if several else f": {escape(results[0].data)}"),
        caption=escape("\n".join(dict.fromkeys(r.protocol for r in results))),
        title_justify="left",
        caption_justify="left",
    )
    if several:
        shown.add_column("data")
    shown.add_column("")
    for column in columns:
        shown.add_column(column, justify="right")
    for result in results:
        for n, (name, values) in enumerate(result.figures.items()):
            first = [escape(result.data) if n == 0 else ""] if several else []
            last = n + 1 == len(result.figures)
            shown.add_row(*first, name, *(cell(values, c) for c in columns), end_section=several and last)
    if several:
        for name in results[0].figures:
            rows = [r.figures[name] for r in results if name in r.figures]
            means = {c: sum(r[c] for r in rows) / len(rows) for c in columns if all(c in r for r in rows)}
            shown.add_row(f"mean of {len(rows)}", name, *(cell(means, c) for c in columns))
    return shown


def columns_of(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Those of a table: spread and top-5 stand in the cell of the figure they belong to."""
    columns = list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))
    return [c for c in columns if not (c.endswith((" std", " top-5")) and c.rsplit(" ", 1)[0] in columns)]


def cell(values: Mapping[str, float], column: str) -> str:
    """See ``table``."""
    if column not in values:
        return "-"
    if isinstance(values[column], int):
        return f"{values[column]:,}"
    joined = "".join(
        f"{sign}{100 * values[f'{column} {name}']:.1f}"
        for name, sign in (("std", " ± "), ("top-5", " / "))
        if f"{column} {name}" in values
    )
    return f"{100 * values[column]:.1f}{joined}"


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def __call__(self) -> float:
        return round(time.perf_counter() - self.started, 2)
