"""The processes of an evaluation, as torchrun, SLURM or Lightning started them: ``process_group``, ``ProcessGroup``.
``mec.coding``, SyncBatchNorm and code inside a Lightning trainer call torch.distributed directly."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from mec.errors import InputError

ROWS_PER_MESSAGE = 8192
START_TIMEOUT, WAIT_TIMEOUT = timedelta(minutes=5), timedelta(days=30)
"""Timeout for all processes to start, and for a process that waits for the work of another."""

T = TypeVar("T")
_num_starts = itertools.count()


def is_rank_zero() -> bool:
    """Return whether this process writes files and messages, from environment variables of torchrun, SLURM or
    Lightning: valid before a process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


# a message that every process logs appears once
logging.getLogger("mec").addFilter(lambda record: is_rank_zero())


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that share the work of one evaluation. The default is a single process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine
    gloo: Any = None  # group of torch.distributed for CPU tensors

    def all_gather(self, value: T, error_message: str | None = None) -> list[T]:
        """Return the values of all processes, in rank order; or raise an InputError in all, if any has a message."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, (error_message, value), group=self.gloo)
        for message, _ in gathered:
            if message is not None:
                error = InputError(message)
                error.on_all_ranks = True
                raise error
        return [value for _, value in gathered]

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0 in all processes."""
        return self.all_gather(value if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        self.all_gather(None)

    @contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """Run the block on local rank 0 of each machine first, so that the others find the files that it downloaded."""
        if self.local_rank > 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    def slice(self, length: int, batch_size: int) -> slice:
        """Return the slice of ``length`` images that this process reads: whole batches, so that all processes together
        make the same batches as a single one."""
        num_batches = -(-length // batch_size)
        start, stop = (-(-r * num_batches // self.world_size) * batch_size for r in (self.rank, self.rank + 1))
        return slice(min(start, length), min(stop, length))

    def gather_rows(self, rows: Tensor, allocate: Callable[[int, int], Tensor]) -> Tensor:
        """Concatenate the rows (n, d) of all processes on rank 0, in rank order, in a tensor from ``allocate(n, d)``.
        Other ranks return their own rows. d may be 0 if n is 0."""
        if self.world_size == 1:
            return rows
        shapes = self.all_gather((len(rows), rows.shape[1]))
        if self.rank > 0:
            for block in torch.split(rows, ROWS_PER_MESSAGE) if len(rows) else ():
                dist.send(block.contiguous(), 0, self.gloo)
            return rows
        table = allocate(sum(n for n, _ in shapes), max(d for _, d in shapes))
        num_filled = len(rows)
        if num_filled:
            table[:num_filled] = rows
        for rank, (n, _) in enumerate(shapes[1:], 1):
            for block in torch.split(table[num_filled : num_filled + n], ROWS_PER_MESSAGE) if n else ():
                dist.recv(block, rank, self.gloo)
            num_filled += n
        return table


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Run the block in all processes together; no process leaves it before all have finished.

    Uses the initialized default process group, or else initializes one from the environment variables of torchrun or
    srun and selects the GPU of the local rank. Does nothing for a single process. An InputError that one process raises
    in the block is raised in all, with ``on_all_ranks`` set. Not all processes starting in time is an InputError too.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    owns_group = False
    initialized = dist.is_available() and dist.is_initialized()
    if not initialized and (environment := _detect_environment()) is not None:
        _init_process_group(environment)
        owns_group, initialized, local_rank = True, True, environment.local_rank()
    if not initialized or dist.get_world_size() == 1:
        yield SINGLE_PROCESS
        return
    group = ProcessGroup(dist.get_rank(), dist.get_world_size(), local_rank, _gloo_group(dist.group.WORLD))
    try:
        yield group
        group.barrier()
    except InputError as error:
        if not error.on_all_ranks:
            group.all_gather(None, str(error))  # raises in all processes
        raise
    finally:
        if owns_group:
            dist.destroy_process_group()


def started_by(launcher: type[TorchElasticEnvironment] | type[SLURMEnvironment]) -> bool:
    """Return whether torchrun or SLURM started this process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `srun` command is available")  # Lightning's advice to use it
        return launcher.detect()


def _detect_environment() -> Any:
    """Return Lightning's cluster environment if torchrun or SLURM started several processes, else None."""
    try:
        for environment_type in (TorchElasticEnvironment, SLURMEnvironment):
            if started_by(environment_type):
                environment: Any = environment_type()
                return environment if environment.world_size() > 1 else None
    except (RuntimeError, KeyError, ValueError) as error:
        message = "processes: expected the environment variables of torchrun or SLURM, got "
        raise InputError(message + " ".join(str(error).split())) from error
    return None


def _init_process_group(environment: Any) -> None:
    """Initialize the default process group with gloo and select the GPU. Sets MASTER_ADDR and MASTER_PORT."""
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    rank, size = environment.global_rank(), environment.world_size()
    try:
        # a new prefix each time: the store may still hold the addresses of an earlier, closed group
        store = PrefixStore(f"mec/{next(_num_starts)}", _store(rank, size))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=START_TIMEOUT)
    except RuntimeError as error:
        address = f"{environment.main_address}:{environment.main_port}"
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"processes: expected {size} processes at {address}, but not all of them connected ({first_line})"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.set_device(environment.local_rank() % torch.cuda.device_count())


@lru_cache(maxsize=1)
def _store(rank: int, size: int) -> Any:
    """Return the rendezvous store. It stays open: a client could mistake a store that just closed for the next one."""
    return next(rendezvous("env://", rank, size, timeout=START_TIMEOUT))[0]


@lru_cache(maxsize=1)
def _gloo_group(world: Any) -> Any:
    """Return a gloo group of the processes of ``world``, created once: for CPU tensors, and with a long timeout."""
    return dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
