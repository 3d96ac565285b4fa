"""What several processes, started by torchrun, SLURM or lightning, do together: each its share, the first the rest."""

from __future__ import annotations

import itertools
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

ROWS = 8192
"""Rows sent at once."""
COMING, WAITING = timedelta(minutes=5), timedelta(days=30)
"""How long processes wait for all to start, and then for what another is doing."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Group:
    gloo: Any
    rank: int
    count: int
    local_rank: int


_group: _Group | None = None
_starts = itertools.count()


def is_rank_zero() -> bool:
    """Whether this process is the one that writes, of those that torchrun, SLURM or lightning started.

    Read from the environment: valid before a process group exists.
    """
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def world_size() -> int:
    """How many processes are ``process_group``; 1 outside of it."""
    return _group.count if _group else 1


def get_rank() -> int:
    return _group.rank if _group else 0


@contextmanager
def process_group() -> Iterator[None]:
    """All processes go through the block alike, and leave it when the last has come to its end.

    They are those of the process group that is there, else those that torchrun or SLURM's srun started, each with the
    GPU of its local rank. With one process nothing happens.

    Raises:
        InputError: in all of them where one has raised it, with ``agreed`` set; or not all processes have come.
    """
    global _group
    made = False
    if not _initialized() and (environment := _launched()) is not None:
        _start(environment)
        made = True
    if not _initialized() or dist.get_world_size() == 1:
        yield
        return
    local_rank = environment.local_rank() if made else int(os.environ.get("LOCAL_RANK", "0"))
    _group = _Group(_gloo(dist.group.WORLD), dist.get_rank(), dist.get_world_size(), local_rank)
    try:
        yield
        all_gather_objects(None)
    except InputError as error:
        if not error.agreed:
            _meet(None, str(error))  # raises it in all
        raise
    finally:
        _group = None
        if made:
            dist.destroy_process_group()


def all_gather_objects(value: T) -> list[T]:
    """What each process has, by rank. InputError: another process cannot go on."""
    return [value] if _group is None else _meet(value, None)


def broadcast_object(value: T) -> T:
    """What the first process has, in all of them."""
    return all_gather_objects(value if get_rank() == 0 else None)[0]  # type: ignore[return-value]


@contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """One process of each machine goes through the block before the others: they find what it has downloaded."""
    waits = _group is not None and _group.local_rank > 0
    if waits:
        all_gather_objects(None)
    yield
    if not waits:
        all_gather_objects(None)


def shard_range(length: int, batch: int) -> slice:
    """This process's stretch of ``length`` images: whole batches, those that one process would make."""
    batches = -(-length // batch)
    start, stop = (-(-r * batches // world_size()) * batch for r in (get_rank(), get_rank() + 1))
    return slice(min(start, length), min(stop, length))


def gather_rows(rows: Tensor, allocate: Callable[[int, int], Tensor]) -> Tensor:
    """The rows (n, d) of all processes, by rank, in the first; its own in another. They come a block at a time.

    ``allocate(n, d)`` makes the table that they go to. A process without rows need not know d.
    """
    if _group is None:
        return rows
    shapes = all_gather_objects((len(rows), rows.shape[1]))
    if get_rank() > 0:
        for block in torch.split(rows, ROWS) if len(rows) else ():
            dist.send(block.contiguous(), 0, _group.gloo)
        return rows
    table = allocate(sum(n for n, _ in shapes), max(d for _, d in shapes))
    done = len(rows)
    if done:
        table[:done] = rows
    for other, (n, _) in enumerate(shapes[1:], 1):
        for block in torch.split(table[done : done + n], ROWS) if n else ():
            dist.recv(block, other, _group.gloo)
        done += n
    return table


def _meet(value: T, failure: str | None) -> list[T]:
    assert _group is not None
    met: list[Any] = [None] * _group.count
    dist.all_gather_object(met, (failure, value), group=_group.gloo)
    for failed, _ in met:
        if failed is not None:
            error = InputError(failed)
            error.agreed = True
            raise error
    return [value for _, value in met]


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _launched() -> Any:
    """The environment of several processes that were started together; None is of one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lightning advises srun wherever there is one
            for kind in (TorchElasticEnvironment, SLURMEnvironment):
                if kind.detect():
                    found = kind()
                    return found if found.world_size() > 1 else None
    except (RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"processes: their environment cannot be read ({' '.join(str(error).split())})") from error
    return None


def _start(environment: Any) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    number, of = environment.global_rank(), environment.world_size()
    try:
        # each time under names of its own: those of an earlier time may still be there, with addresses nobody hears
        store = PrefixStore(f"together/{next(_starts)}", _store(number, of))
        dist.init_process_group("gloo", store=store, rank=number, world_size=of, timeout=COMING)
    except RuntimeError as error:
        where = f"{environment.main_address}:{environment.main_port}"
        raise InputError(f"processes: {of} were announced and did not all come to {where} ({_first(error)})") from error
    if torch.cuda.is_available():
        torch.cuda.set_device(environment.local_rank() % torch.cuda.device_count())


@lru_cache(maxsize=1)
def _store(number: int, of: int) -> Any:
    """Where the processes find each other; it stays, for one that has just gone may be taken for the next."""
    return next(rendezvous("env://", number, of, timeout=COMING))[0]


@lru_cache(maxsize=1)
def _gloo(world: Any) -> Any:
    """One more group of the processes of ``world``, made once: for tables on the CPU, and to wait as long as the first
    one works."""
    return dist.new_group(backend="gloo", timeout=WAITING)


def _first(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
