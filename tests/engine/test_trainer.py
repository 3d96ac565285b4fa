"""How many processes train, and who started them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_only

from mec.engine.trainer import make_trainer
from mec.errors import InputError
from mec.pretraining import Run

TIME_LIMIT = 150.0
TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test",
}  # fmt: skip
SLURM = {
    "SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "3", "SLURM_NNODES": "2", "SLURM_PROCID": "4", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_JOB_NAME": "mec", "SLURM_JOB_ID": "17", "SLURM_NODELIST": "node[1-2]",
}  # fmt: skip
ARGUMENTS = [
    "--backbone_options",
    "{layers: [1, 1, 1, 1], channels: [8, 8, 8, 8], zero_init_last: false}",
    "--image_size",
    "16",
]
ARGUMENTS += ["--epochs", "1", "--batch_size", "448", "--projector.hidden_dim", "16", "--projector.output_dim", "8"]
ARGUMENTS += ["--log_every", "1", "--probe_every", "0", "--accelerator", "cpu", "--precision", "32-true"]

needs_gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SLURM_") or name in TORCHRUN:
            monkeypatch.delenv(name)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # lightning sets it, and it would outlive the test


def processes(trainer: Any) -> tuple[int, int, int, int]:
    return trainer.num_devices, trainer.num_nodes, trainer.world_size, trainer.global_rank


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, (1, 1, 1, 0)), (TORCHRUN, (4, 2, 8, 5)), (SLURM, (3, 2, 6, 4))]
)
@pytest.mark.parametrize("asked", ["auto", "as started"])
def test_processes_are_those_that_were_started(
    environment: dict[str, str], expected: tuple[int, ...], asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    devices, nodes = ("auto", "auto") if asked == "auto" else expected[:2]
    assert processes(make_trainer(tmp_path, devices, nodes, "32-true", "cpu")) == expected


def test_torchrun_below_srun_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One task on each machine, which starts processes itself."""
    for name, value in (SLURM | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"} | TORCHRUN).items():
        monkeypatch.setenv(name, value)
    assert processes(make_trainer(tmp_path, "auto", "auto", "32-true", "cpu")) == (4, 2, 8, 5)


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "message"),
    [
        (TORCHRUN, 8, "auto", r"devices: torchrun started 4 processes on each machine, got 8; leave it out"),
        (TORCHRUN, 4, 1, r"nodes: torchrun started 2 machines, got 1; leave it out"),
        (SLURM, 1, "auto", r"devices: SLURM started 3 processes on each machine, got 1"),
        (SLURM, "auto", 3, r"nodes: SLURM started 2 machines, got 3"),
    ],
)
def test_other_numbers_than_were_started_are_refused(
    environment: dict[str, str], devices: Any, nodes: Any, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message) as error:
        make_trainer(tmp_path, devices, nodes, "32-true", "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^devices: ") as error:
        make_trainer(tmp_path, 1, 1, "32-true", "gpu")
    assert "\n" not in str(error.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ended(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit statuses and what was said, of commands that run at the same time."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for command in commands
    ]  # fmt: skip
    deadline = time.monotonic() + TIME_LIMIT
    try:
        said = [process.communicate(timeout=deadline - time.monotonic())[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def pretraining(out: Path, *more: str) -> list[str]:
    return ["mec", "pretrain", "digits", "--out", str(out), *ARGUMENTS, *more]


def on_two_nodes(command: list[str]) -> list[list[str]]:
    meeting = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(free_port()),
    ]
    return [["torch.distributed.run", "--node-rank", str(node), *meeting, "-m", *command] for node in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "one"
    assert ended([pretraining(out)])[0][0] == 0
    return Run(out)


def assert_written_once(out: Path, one: Run, said: str) -> None:
    """By the first process, and what one process alone would have written."""
    assert {path.name for path in out.iterdir()} == {path.name for path in one.folder.iterdir()}
    assert len(list(out.glob("checkpoints/*"))) == len(list(out.glob("tensorboard/events*"))) == 1
    assert said.count("encoder written to") == 1
    rows, expected = Run(out).metrics(), one.metrics()
    assert [row["step"] for row in rows] == [0, 1, 2]
    # float32 adds up in another order, and three steps multiply what that changes: seen 1e-5
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-4)


@needs_gloo
def test_two_nodes_that_meet_by_torchrun(one: Run, tmp_path: Path) -> None:
    (status, first), (other, second) = ended(on_two_nodes(pretraining(tmp_path / "two")))
    assert status == other == 0, first + second
    assert_written_once(tmp_path / "two", one, first + second)


@needs_gloo
def test_lightning_starts_the_processes_that_were_asked_for(one: Run, tmp_path: Path) -> None:
    ((status, said),) = ended([pretraining(tmp_path / "two", "--devices", "2")])
    assert status == 0, said
    assert_written_once(tmp_path / "two", one, said)


def test_torchrun_and_another_number_of_devices(tmp_path: Path) -> None:
    ((status, said),) = ended(
        [["torch.distributed.run", "--standalone", "-m", *pretraining(tmp_path / "run", "--devices", "2")]]
    )
    assert status == 1  # torchrun's own, of any process that fails
    assert "devices: torchrun started 1 processes on each machine, got 2; leave it out, or make them equal" in said
    assert "make_trainer" not in said
    assert not (tmp_path / "run").exists()


def test_a_batch_too_small_for_its_processes(tmp_path: Path) -> None:
    ((status, said),) = ended([pretraining(tmp_path / "run", "--devices", "4", "--batch_size", "6")])
    assert status == 2
    assert "batch_size: expected at least 2 images per process, got 1: 6 of 1347 images over 4 processes" in said
    assert not (tmp_path / "run").exists()
