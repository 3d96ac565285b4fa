"""Loader worker processes: their number, and their handling of signals."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

POLL_SECONDS = 2.0
"""Interval at which a worker checks that its parent process is alive."""
HAS_SIGTIMEDWAIT = hasattr(signal, "sigtimedwait")
"""Whether the sender of a signal can be identified, as on Linux. Elsewhere SIGTERM ends a worker."""


def worker_count(workers: int | None, local_world_size: int | None = None) -> int:
    """Return the number of loader workers of one training process.

    Args:
        workers: the number that the user chose. None: one per core available to this process, at most 16.
        local_world_size: training processes on this machine, which share its cores. None: LOCAL_WORLD_SIZE of torchrun,
            or 1. Where SLURM started these processes with a number of cores for each, each one has its own cores.
    """
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = max(1, local_world_size or int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    tasks, cores_per_task = os.environ.get("SLURM_NTASKS_PER_NODE"), os.environ.get("SLURM_CPUS_PER_TASK")
    own_cores = min(cores, int(cores_per_task)) if cores_per_task and tasks == str(processes) else cores // processes
    return max(1, min(16, own_cores))


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Block the signals of a scheduler and of Ctrl-C, also in all threads of processes that are started inside."""
    if not HAS_SIGTIMEDWAIT:
        yield
        return
    blocked = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def ignore_group_signals(_: int) -> None:
    """Keep a worker, started under ``block_signals``, alive as long as its parent; a ``worker_init_fn``.

    Signals sent to the whole process group are handled by the parent. The worker ends on a SIGTERM from the parent, and
    when the parent has ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not HAS_SIGTIMEDWAIT:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            received = signal.sigtimedwait({signal.SIGTERM}, POLL_SECONDS)
            if received is not None and received.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
