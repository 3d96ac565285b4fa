"""Run a function in several processes on this machine, connected through gloo."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIME_LIMIT = 240.0

needs_gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def run_in_processes(worker: Callable[[int], Any], processes: int, folder: Path) -> list[Any]:
    """Return the values of ``worker(rank)``, by rank. Processes that hang are killed."""
    context = mp.start_processes(
        _run, args=(worker, processes, str(folder)), nprocs=processes, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + TIME_LIMIT
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, "the processes hang"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def _run(rank: int, worker: Callable[[int], Any], processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=TIME_LIMIT / 2),
    )
    torch.save(worker(rank), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
