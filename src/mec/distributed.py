"""Rank, world size and collectives of the processes that torchrun, SLURM or Lightning started.

``mec.coding``, SyncBatchNorm and code that runs inside a Lightning trainer call torch.distributed directly.
``process_group`` opens a context; outside of it every function behaves as in a single process, except ``is_rank_zero``.
"""

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
"""Rows that ``gather_rows`` sends in one message."""
START_TIMEOUT, WAIT_TIMEOUT = timedelta(minutes=5), timedelta(days=30)
"""Timeout for all processes to start, and for a process that waits for the work of another."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Group:
    gloo: Any
    rank: int
    world_size: int
    local_rank: int


_group: _Group | None = None
_num_starts = itertools.count()


def is_rank_zero() -> bool:
    """Return whether this process has rank 0 and therefore writes files.

    Read from the environment variables of torchrun, SLURM or Lightning: valid before a process group exists.
    """
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


# a message that every process logs appears once
logging.getLogger("mec").addFilter(lambda record: is_rank_zero())


def get_world_size() -> int:
    """Return the number of processes in ``process_group``, 1 outside of it."""
    return _group.world_size if _group else 1


def get_rank() -> int:
    """Return the rank of this process in ``process_group``, 0 outside of it."""
    return _group.rank if _group else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Run the block in all processes together; no process leaves it before all have finished.

    Uses the initialized default process group, or else initializes one from the environment variables of torchrun or
    srun and selects the GPU of the local rank. Does nothing for a single process.

    Raises:
        InputError: not all processes started in time; or a process raised it in the block. It is then raised in all
            processes, with ``on_all_ranks`` set.
    """
    global _group
    owns_group = False
    if not _initialized() and (environment := _detect_environment()) is not None:
        _init_process_group(environment)
        owns_group = True
    if not _initialized() or dist.get_world_size() == 1:
        yield
        return
    local_rank = environment.local_rank() if owns_group else int(os.environ.get("LOCAL_RANK", "0"))
    _group = _Group(_gloo_group(dist.group.WORLD), dist.get_rank(), dist.get_world_size(), local_rank)
    try:
        yield
        all_gather_objects(None)
    except InputError as error:
        if not error.on_all_ranks:
            _all_gather(None, str(error))  # raises in all processes
        raise
    finally:
        _group = None
        if owns_group:
            dist.destroy_process_group()


def all_gather_objects(value: T) -> list[T]:
    """Return the values of all processes, in rank order.

    Raises:
        InputError: another process has raised it.
    """
    return [value] if _group is None else _all_gather(value, None)


def broadcast_object(value: T) -> T:
    """Return the value of rank 0 in all processes."""
    return all_gather_objects(value if get_rank() == 0 else None)[0]  # type: ignore[return-value]


@contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """Run the block on local rank 0 of each machine first, so that the others find the files that it downloaded."""
    waits = _group is not None and _group.local_rank > 0
    if waits:
        all_gather_objects(None)
    yield
    if not waits:
        all_gather_objects(None)


def rank_slice(length: int, batch_size: int) -> slice:
    """Return the contiguous slice of ``length`` images that this process reads.

    It consists of whole batches, so that all processes together make the same batches as a single one.
    """
    num_batches = -(-length // batch_size)
    start, stop = (-(-r * num_batches // get_world_size()) * batch_size for r in (get_rank(), get_rank() + 1))
    return slice(min(start, length), min(stop, length))


def gather_rows(rows: Tensor, allocate: Callable[[int, int], Tensor]) -> Tensor:
    """Concatenate the rows (n, d) of all processes on rank 0, in rank order. Other ranks return their own rows.

    Args:
        rows: rows of this process, sent in blocks of ``ROWS_PER_MESSAGE``. d may be 0 if n is 0.
        allocate: ``allocate(n, d)`` returns an uninitialized (n, d) tensor for the result on rank 0.
    """
    if _group is None:
        return rows
    shapes = all_gather_objects((len(rows), rows.shape[1]))
    if get_rank() > 0:
        for block in torch.split(rows, ROWS_PER_MESSAGE) if len(rows) else ():
            dist.send(block.contiguous(), 0, _group.gloo)
        return rows
    table = allocate(sum(n for n, _ in shapes), max(d for _, d in shapes))
    num_filled = len(rows)
    if num_filled:
        table[:num_filled] = rows
    for rank, (n, _) in enumerate(shapes[1:], 1):
        for block in torch.split(table[num_filled : num_filled + n], ROWS_PER_MESSAGE) if n else ():
            dist.recv(block, rank, _group.gloo)
        num_filled += n
    return table


def _all_gather(value: T, error_message: str | None) -> list[T]:
    """Gather values in rank order. Raise InputError in all processes if one of them passes an error message."""
    assert _group is not None
    gathered: list[Any] = [None] * _group.world_size
    dist.all_gather_object(gathered, (error_message, value), group=_group.gloo)
    for message, _ in gathered:
        if message is not None:
            error = InputError(message)
            error.on_all_ranks = True
            raise error
    return [value for _, value in gathered]


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _detect_environment() -> Any:
    """Return Lightning's cluster environment if torchrun or SLURM started several processes, else None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning warns if srun is installed but not used
            for environment_type in (TorchElasticEnvironment, SLURMEnvironment):
                if environment_type.detect():
                    environment = environment_type()
                    return environment if environment.world_size() > 1 else None
    except (RuntimeError, KeyError, ValueError) as error:
        message = " ".join(str(error).split())
        raise InputError(
            f"processes: expected the environment variables of torchrun or SLURM, got {message}"
        ) from error
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
        raise InputError(
            f"processes: expected {size} processes at {address}, but not all of them connected ({_first_line(error)})"
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


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
