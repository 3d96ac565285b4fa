"""Start several processes with the environment of torchrun, forked so that imports are not repeated."""

import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.processes import free_port, torchrun_environment

TIME_LIMIT = 100.0


class ProcessResult(NamedTuple):
    """Return value, exit status, standard output and standard error of a process."""

    value: Any
    status: int | None
    out: str
    err: str


def launch(
    count: int,
    work: Callable[[int], Any],
    folder: Path,
    environment_of: Callable[..., dict[str, str]] = torchrun_environment,
) -> list[ProcessResult]:
    """Run ``work(rank)`` in ``count`` processes and kill them if they hang."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    context = multiprocessing.get_context("fork")
    arguments = [(work, rank, folder, environment_of(rank, count, port)) for rank in range(count)]
    processes = [context.Process(target=_run, args=a) for a in arguments]
    for process in processes:
        process.start()
    deadline = time.monotonic() + TIME_LIMIT
    try:
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
            assert process.exitcode is not None, f"the processes hang: {(folder / '0.err').read_text()}"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return [
        ProcessResult(
            pickle.loads(value.read_bytes()) if (value := folder / f"{rank}.pickle").exists() else None,
            process.exitcode,
            (folder / f"{rank}.out").read_text(),
            (folder / f"{rank}.err").read_text(),
        )
        for rank, process in enumerate(processes)
    ]


def _run(work: Callable[[int], Any], rank: int, folder: Path, environ: dict[str, str]) -> None:
    os.environ |= environ
    torch.set_num_threads(1)  # a fork has no thread pool
    sys.stdout, sys.stderr = (open(folder / f"{rank}.{end}", "w", buffering=1) for end in ("out", "err"))  # noqa: SIM115
    try:
        value = work(rank)
        (folder / f"{rank}.pickle").write_bytes(pickle.dumps(value))
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
