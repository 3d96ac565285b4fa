"""Start processes forked from one that has imported everything, and give them the environment of torchrun."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch
import torch.distributed as dist

needs_gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        "mec.pretraining",
        "mec.cli.main",
        "mec.pretraining.online_probe",
        "sklearn.datasets",
        "torch.utils.tensorboard",
        "tensorboard.compat",
        "torch._dynamo",
    ]
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun sets on one machine."""
    return {
        "TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip


def run_ranks(count: int, work: Callable[..., Any], *arguments: Any, time_limit: float = 240.0) -> None:
    """Call ``work(rank, *arguments)`` in ``count`` processes of torchrun, and kill them if they hang."""
    port = free_port()
    processes = [FORKSERVER.Process(target=_run_rank, args=(r, count, port, work, arguments)) for r in range(count)]
    deadline = time.monotonic() + time_limit
    for process in processes:
        process.start()
    assert [exit_status(process, deadline - time.monotonic()) for process in processes] == [0] * count


def _run_rank(rank: int, count: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    use_fork()
    os.environ |= torchrun_environment(rank, count, port)
    work(rank, *arguments)


def use_fork() -> None:
    """Fork loader processes, as in a process that no fork server has started."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)


def exit_status(process: BaseProcess, time_limit: float = 100.0) -> int:
    """Wait for the process to exit, and kill it if it hangs."""
    process.join(max(0.0, time_limit))
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the process hangs")
    return process.exitcode
