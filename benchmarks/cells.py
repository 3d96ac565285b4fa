"""A table that is filled over several calls: each row is kept at once, and a call stops before its time is out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from machine import RESULTS, write


class Deadline(Exception):  # noqa: N818
    """There is no time left for the next piece of work."""


class Clock:
    """Seconds since the start of the call, against its limit."""

    def __init__(self, minutes: float | None) -> None:
        self.started, self.limit = time.perf_counter(), 60 * (minutes or float("inf"))

    def need(self, seconds: float) -> None:
        """Raise Deadline where the next piece of work takes longer than there is."""
        if time.perf_counter() - self.started + seconds > self.limit:
            raise Deadline


@contextmanager
def until_time_is_out() -> Iterator[None]:
    """Whether all was done, or the call stopped at its Deadline, is said at the end."""
    try:
        yield
    except Deadline:
        print("time is out; the same command goes on from here")
    else:
        print("all is done")


class Cells:
    """The rows of a results file, written after each; a later call goes on from them."""

    def __init__(self, name: str, question: str, setting: dict[str, Any]) -> None:
        self.name, self.question, self.setting, self.rows = name, question, setting, []
        path = RESULTS / f"{name}.json"
        if path.exists():
            before = json.loads(path.read_text())
            if before["setting"] != json.loads(json.dumps(setting)):
                raise SystemExit(f"{path} holds rows of another setting; move it away to start anew")
            self.rows = before["rows"]

    def has(self, **key: Any) -> bool:
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(row, flush=True)
        write(self.name, self.question, setting=self.setting, rows=self.rows)
