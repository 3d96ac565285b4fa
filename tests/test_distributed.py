import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mec import distributed
from mec.distributed import (
    all_gather_objects,
    broadcast_object,
    gather_rows,
    get_rank,
    local_rank_zero_first,
    process_group,
    shard_range,
    world_size,
)
from mec.errors import InputError
from mec.evaluate.features import feature_table
from tests.evaluate.launched import environment, launch

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def slurm(number: int, of: int, port: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "4321",
        "SLURM_JOB_NAME": "embed",
        "SLURM_NTASKS": str(of),
        "SLURM_NTASKS_PER_NODE": str(of),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def test_one_process_is_no_group() -> None:
    with process_group(), local_rank_zero_first():
        assert (world_size(), get_rank(), all_gather_objects("a"), broadcast_object(3)) == (1, 0, ["a"], 3)
        assert shard_range(700, 256) == slice(0, 700)
        assert not dist.is_initialized()
        rows = torch.rand(3, 2)
        assert gather_rows(rows, torch.empty) is rows


@pytest.mark.parametrize("of", [environment, slurm])
def test_processes_meet(tmp_path: Path, of: Any) -> None:
    def work(number: int) -> Any:
        with process_group():
            before = time.time()
            with local_rank_zero_first():
                times = [time.time()]
                time.sleep(0.2)
                times.append(time.time())
            found = (
                world_size(),
                get_rank(),
                all_gather_objects(number * 10),
                broadcast_object(f"of {number}"),
                times,
                before,
            )
        return found, dist.is_initialized(), world_size()

    ended = launch(2, work, tmp_path, of)
    for number, (value, status, _, err) in enumerate(ended):
        assert status == 0, err
        (found, initialized, after) = value
        assert found[:4] == (2, number, [0, 10], "of 0")
        assert (initialized, after) == (False, 1)
    assert ended[1].value[0][4][0] >= ended[0].value[0][4][1]


@pytest.mark.parametrize(("length", "of"), [(0, 3), (1, 3), (255, 2), (256, 2), (700, 3), (1024, 4), (5001, 7)])
def test_shares_are_whole_batches_in_order(monkeypatch: pytest.MonkeyPatch, length: int, of: int) -> None:
    found, sizes = [], []
    for number in range(of):
        monkeypatch.setattr(distributed, "_group", distributed._Group(None, number, of, number))
        own = list(range(length))[shard_range(length, 256)]
        assert not own or own[0] % 256 == 0
        found += own
        sizes.append(-(-len(own) // 256))
    assert found == list(range(length))
    assert max(sizes) - min(sizes) <= 1


def test_rows_are_joined_by_rank_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a block, none at all, and a table that is mapped from a file."""
    monkeypatch.setattr(distributed, "ROWS", 64)
    monkeypatch.setattr("mec.evaluate.features.IN_MEMORY", 1000)
    lengths = [100, 0, 200, 30]

    def work(number: int) -> Any:
        rows = torch.full((lengths[number], 3 if lengths[number] else 0), float(number))
        rows += torch.arange(len(rows))[:, None] / 1000
        with process_group():
            found = gather_rows(rows, lambda n, d: feature_table(n, d, torch.float32))
        return found.numpy()

    ended = launch(4, work, tmp_path)
    expected = np.concatenate([n + np.arange(lengths[n])[:, None].repeat(3, 1) / 1000 for n in (0, 2, 3)])
    np.testing.assert_allclose(ended[0].value, expected, atol=1e-6)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_is_one_of_all(tmp_path: Path, failing: int) -> None:
    def work(number: int) -> Any:
        try:
            with process_group():
                all_gather_objects(number)
                if number == failing:
                    raise InputError("data: too bad")
                broadcast_object(number)
        except InputError as error:
            return str(error), error.agreed, world_size(), dist.is_initialized()
        return None

    started = time.monotonic()
    assert [e.value for e in launch(3, work, tmp_path)] == [("data: too bad", True, 1, False)] * 3
    assert time.monotonic() - started < 30


def test_one_that_ends_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    def work(number: int) -> Any:
        with process_group():
            all_gather_objects(number)
            if number == 1:
                os._exit(7)
            all_gather_objects(number)

    started = time.monotonic()
    assert [e.status for e in launch(3, work, tmp_path)] == [1, 7, 1]
    assert time.monotonic() - started < 30


def test_a_group_that_is_there_is_taken_and_left(tmp_path: Path) -> None:
    def work(number: int) -> Any:
        dist.init_process_group("gloo", rank=number, world_size=2)
        found = []
        for _ in range(2):
            with process_group():
                found.append(all_gather_objects(number))
        dist.barrier()
        return found, dist.is_initialized()

    assert [e.value for e in launch(2, work, tmp_path)] == [([[0, 1], [0, 1]], True)] * 2


def test_processes_that_do_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "COMING", distributed.timedelta(seconds=2))

    def work(number: int) -> Any:
        try:
            with process_group():
                return None
        except InputError as error:
            return str(error)

    (ended,) = launch(1, work, tmp_path, lambda *_: environment(0, 2, _[2]))
    assert ended.value.startswith("processes: 2 were announced and did not all come to 127.0.0.1:")
