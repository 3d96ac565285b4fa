import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mec.data import PixelFormat, TwoViews, open_dataset
from mec.data.loaders import training_loader, worker_count
from mec.data.order import EpochSampler
from tests.data.datasets.shard_files import encode_image

SCRIPT = """
import signal, sys, torch
import mec.data.loaders
from mec.data import PixelFormat, TwoViews, open_dataset
from mec.data.loaders import training_loader
from mec.data.order import EpochSampler

mec.data.loaders.POLL_SECONDS = 0.1
for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(signal_number, signal.SIG_IGN)
dataset = open_dataset(sys.argv[1])
sampler = EpochSampler(8, 2, seed=0)
loader = training_loader(dataset, TwoViews(16, seed=0), sampler, PixelFormat(), torch.device("cpu"), 2)
while True:
    for batch in loader:
        print(*(w.pid for w in loader._iterator._workers), flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(encode_image(i))
    return tmp_path


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="needs signal.sigtimedwait")
def test_workers_live_as_long_as_the_training_process(folder: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            workers = [int(pid) for pid in process.stdout.readline().split()]
            for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
                os.killpg(process.pid, signal_number)
            for _ in range(30):  # more than the workers prefetch
                process.stdin.write("\n")
                process.stdin.flush()
                assert [int(pid) for pid in process.stdout.readline().split()] == workers
            assert all(alive(pid) for pid in workers)
        finally:
            process.kill()
    end = time.monotonic() + 15
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)


def test_workers_end_with_the_loader_or_on_sigterm_from_the_parent(folder: Path) -> None:
    dataset, views = open_dataset(folder), TwoViews(16, seed=0)
    loader = training_loader(dataset, views, EpochSampler(8, 2, seed=0), PixelFormat(), torch.device("cpu"), 2)
    assert len(list(loader)) == 4
    first, second = loader._iterator._workers
    first.terminate()
    first.join(5)
    assert first.exitcode == 0
    start = time.monotonic()
    del loader
    second.join(5)
    assert second.exitcode == 0
    assert time.monotonic() - start < 4


@pytest.mark.parametrize(
    ("environment", "local_world_size", "expected"),
    [
        ({}, None, 12),
        ({}, 4, 3),
        ({}, 40, 1),
        ({"LOCAL_WORLD_SIZE": "3"}, None, 4),
        # srun started four tasks with five cores each, bound to them or not
        ({"SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "5"}, 4, 5),
        ({"SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "40"}, 4, 12),
        # one SLURM task, in which torchrun started four processes
        ({"SLURM_NTASKS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "12", "LOCAL_WORLD_SIZE": "4"}, None, 3),
    ],
)
def test_training_processes_share_the_cores_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], local_world_size: int | None, expected: int
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert worker_count(None, local_world_size) == expected
    assert worker_count(7, local_world_size) == 7
