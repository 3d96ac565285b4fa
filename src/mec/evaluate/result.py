"""What an evaluation found: one line of results.jsonl, one table."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.table import Table

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Result:
    """Figures of one evaluation.

    Attributes:
        task: knn, linear, few-label, ...
        protocol: how it was measured, in a sentence.
        data: the source, with the numbers of pictures.
        encoder: what was measured.
        figures: a row for the encoder ("encoder") and for each baseline: column -> value. Accuracies are shares.
        seconds: it took.
        command: as it was typed.
        time: when it ended, UTC.
    """

    task: str
    protocol: str
    data: str
    encoder: str
    figures: dict[str, dict[str, float]]
    seconds: float
    command: str = field(default_factory=lambda: " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
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
        """Rows encoder and baselines; accuracies in percent, with their spread where there are several draws, and
        beside a column "k=20" its top-5 where there is "k=20 top-5"."""
        found = next(iter(self.figures.values()))
        columns = [c for c in found if not (c.endswith((" std", " top-5")) and c.rsplit(" ", 1)[0] in found)]
        table = Table(title=f"{self.task}: {self.data}", caption=self.protocol, title_justify="left")
        table.add_column("")
        for column in columns:
            table.add_column(column, justify="right")
        for row, values in self.figures.items():
            table.add_row(row, *(_cell(values, column) for column in columns))
        return table


def _cell(values: dict[str, float], column: str) -> str:
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
