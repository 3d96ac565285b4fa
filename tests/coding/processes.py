"""Run a function in several processes on this machine, connected through gloo."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.processes import run_ranks


def run_in_processes(worker: Callable[[int], Any], processes: int, folder: Path) -> list[Any]:
    """Return the values of ``worker(rank)``, by rank. Processes that hang are killed."""
    run_ranks(processes, _run, worker, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def _run(rank: int, worker: Callable[[int], Any], folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    torch.save(worker(rank), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
