"""Loader processes: how many, and what signals do to them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

PATIENCE = 2.0
"""Seconds between two looks at whether the training process still lives."""
SENDER_IS_TOLD = hasattr(signal, "sigtimedwait")
"""On Linux; elsewhere SIGTERM ends a loader process."""


def worker_count(asked: int | None, local_processes: int | None = None) -> int:
    """Loader processes of one training process: as asked, or one per core that it may use, at most 16.

    The cores are shared by ``local_processes`` on this machine; None takes torchrun's number, or one. Those that
    SLURM started with so many cores for each have these for themselves.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = max(1, local_processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    tasks, each = os.environ.get("SLURM_NTASKS_PER_NODE"), os.environ.get("SLURM_CPUS_PER_TASK")
    own = min(cores, int(each)) if each and tasks == str(local) else cores // local
    return max(1, min(16, own))


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Hold back what a scheduler or Ctrl-C sends; for processes started within for good, in all their threads."""
    if not SENDER_IS_TOLD:
        yield
        return
    held = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(_: int) -> None:
    """Let a loader process, started while ``signals_wait``, live as long as its parent: signals that go to all
    processes are the parent's to heed. A SIGTERM of the parent itself ends it, and the parent's own end does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not SENDER_IS_TOLD:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            sent = signal.sigtimedwait({signal.SIGTERM}, PATIENCE)
            if sent is not None and sent.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
