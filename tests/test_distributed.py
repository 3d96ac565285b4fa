import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mec import distributed
from mec.distributed import SINGLE_PROCESS, ProcessGroup, process_group
from mec.embedding.extract import feature_table
from mec.errors import InputError
from tests.evaluate.multi_process import launch
from tests.processes import needs_gloo, torchrun_environment

pytestmark = needs_gloo


def slurm_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the variables that srun sets on one machine."""
    return {
        "SLURM_JOB_ID": "4321",
        "SLURM_JOB_NAME": "embed",
        "SLURM_NTASKS": str(count),
        "SLURM_NTASKS_PER_NODE": str(count),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def test_a_single_process_initializes_no_group() -> None:
    with process_group() as group, group.local_rank_zero_first():
        assert group == SINGLE_PROCESS
        assert (group.world_size, group.rank, group.all_gather("a"), group.broadcast(3)) == (1, 0, ["a"], 3)
        assert group.slice(700, 256) == slice(0, 700)
        assert not dist.is_initialized()
        rows = torch.rand(3, 2)
        assert group.gather_rows(rows, torch.empty) is rows


@pytest.mark.parametrize("environment_of", [torchrun_environment, slurm_environment])
def test_processes_of_torchrun_and_slurm_form_a_group(tmp_path: Path, environment_of: Any) -> None:
    def work(rank: int) -> Any:
        with process_group() as group:
            with group.local_rank_zero_first():
                start = time.time()
                time.sleep(0.2)
                end = time.time()
            collectives = group.world_size, group.rank, group.all_gather(rank * 10), group.broadcast(f"from {rank}")
        return collectives, (start, end), dist.is_initialized()

    results = launch(2, work, tmp_path, environment_of)
    for rank, result in enumerate(results):
        assert result.status == 0, result.err
        collectives, _, initialized = result.value
        assert collectives == (2, rank, [0, 10], "from 0")
        assert not initialized
    (_, (_, end_of_first), _), (_, (start_of_second, _), _) = (result.value for result in results)
    assert start_of_second >= end_of_first


@pytest.mark.parametrize(("length", "count"), [(0, 3), (1, 3), (255, 2), (256, 2), (700, 3), (1024, 4), (5001, 7)])
def test_slices_of_the_ranks_are_whole_batches_in_order(length: int, count: int) -> None:
    indices, num_batches = [], []
    for rank in range(count):
        own = list(range(length))[ProcessGroup(rank, count).slice(length, 256)]
        assert not own or own[0] % 256 == 0
        indices += own
        num_batches.append(-(-len(own) // 256))
    assert indices == list(range(length))
    assert max(num_batches) - min(num_batches) <= 1


def test_rows_are_gathered_by_rank_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a block, no rows, and a table that is mapped from a file."""
    monkeypatch.setattr(distributed, "ROWS_PER_MESSAGE", 64)
    monkeypatch.setattr("mec.embedding.extract.MAX_RAM_BYTES", 1000)
    lengths = [100, 0, 200, 30]

    def work(rank: int) -> Any:
        rows = torch.full((lengths[rank], 3 if lengths[rank] else 0), float(rank))
        rows += torch.arange(len(rows))[:, None] / 1000
        with process_group() as group:
            table = group.gather_rows(rows, lambda n, d: feature_table(n, d, torch.float32))
        return table.numpy()

    results = launch(4, work, tmp_path)
    expected = np.concatenate([n + np.arange(lengths[n])[:, None].repeat(3, 1) / 1000 for n in (0, 2, 3)])
    np.testing.assert_allclose(results[0].value, expected, atol=1e-6)


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_an_input_error_of_one_process_is_raised_in_all(tmp_path: Path, failing_rank: int) -> None:
    def work(rank: int) -> Any:
        try:
            with process_group() as group:
                group.all_gather(rank)
                if rank == failing_rank:
                    raise InputError("data: too bad")
                group.broadcast(rank)
        except InputError as error:
            return str(error), error.on_all_ranks, dist.is_initialized()
        return None

    start = time.monotonic()
    assert [result.value for result in launch(3, work, tmp_path)] == [("data: too bad", True, False)] * 3
    assert time.monotonic() - start < 30


def test_a_process_that_exits_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        with process_group() as group:
            group.barrier()
            if rank == 1:
                os._exit(7)
            group.barrier()

    start = time.monotonic()
    assert [result.status for result in launch(3, work, tmp_path)] == [1, 7, 1]
    assert time.monotonic() - start < 30


def test_an_initialized_group_is_used_and_kept(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        dist.init_process_group("gloo", rank=rank, world_size=2)
        gathered = []
        for _ in range(2):
            with process_group() as group:
                gathered.append(group.all_gather(rank))
        dist.barrier()
        return gathered, dist.is_initialized()

    assert [result.value for result in launch(2, work, tmp_path)] == [([[0, 1], [0, 1]], True)] * 2


def test_processes_that_do_not_start_in_time_are_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "START_TIMEOUT", distributed.timedelta(seconds=2))

    def work(rank: int) -> Any:
        try:
            with process_group():
                return None
        except InputError as error:
            return str(error)

    (result,) = launch(1, work, tmp_path, lambda rank, count, port: torchrun_environment(0, 2, port))
    assert result.value.startswith("processes: expected 2 processes at 127.0.0.1:")
