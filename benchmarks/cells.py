"""A results table that is filled over several calls: rows are saved one by one, and a call stops before its limit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from machine import RESULTS, write


class Deadline(Exception):  # noqa: N818
    """There is not enough time for the next step."""


class Clock:
    """Seconds since the start of the call, and the limit on them."""

    def __init__(self, minutes: float | None) -> None:
        self.started, self.limit = time.perf_counter(), 60 * (minutes or float("inf"))

    def require(self, seconds: float) -> None:
        """Raise Deadline if fewer than ``seconds`` are left."""
        if time.perf_counter() - self.started + seconds > self.limit:
            raise Deadline


@contextmanager
def until_deadline() -> Iterator[None]:
    """Stop at a Deadline, and print whether the table is complete."""
    try:
        yield
    except Deadline:
        print("time limit reached; run the same command again to continue")
    else:
        print("all rows are complete")


class Cells:
    """The rows of a results file, written after each row; a later call continues from them."""

    def __init__(self, name: str, question: str, settings: dict[str, Any]) -> None:
        self.name, self.question, self.settings, self.rows = name, question, settings, []
        path = RESULTS / f"{name}.json"
        if path.exists():
            previous = json.loads(path.read_text())
            if previous["settings"] != json.loads(json.dumps(settings)):
                raise SystemExit(f"{path} has rows of other settings; move it away to start again")
            self.rows = previous["rows"]

    def has(self, **key: Any) -> bool:
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(row, flush=True)
        write(self.name, self.question, settings=self.settings, rows=self.rows)
