"""Run the jobs of a benchmark that have no row in its json yet, one on each core."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, Protocol, TypeVar

import torch

from machine import RESULTS, write


class Job(Protocol):
    """A run, identified by ``as_dict``."""

    def as_dict(self) -> dict[str, Any]: ...


J = TypeVar("J", bound=Job)


def read_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of benchmarks/results/``name``.json; none if it does not exist."""
    path = RESULTS / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def without_row(jobs: Sequence[J], rows: Sequence[dict[str, Any]]) -> list[J]:
    """Return the jobs that have no row."""
    return [job for job in jobs if not any(row.items() >= job.as_dict().items() for row in rows)]


def run_jobs(name: str, question: str, jobs: Sequence[J], run: Callable[[J], dict[str, Any]]) -> list[dict[str, Any]]:
    """Run jobs in processes of one thread, and add to the json a row of each: the job, and what ``run`` returns.

    The json is written after every job, so that an interrupted benchmark keeps its rows.
    """
    rows = read_rows(name)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for number, future in enumerate(as_completed(futures), 1):
            rows.append(futures[future].as_dict() | future.result())
            print(f"{number}/{len(futures)}", rows[-1], flush=True)
            write(name, question, rows=rows)
    return rows
