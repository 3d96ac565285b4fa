"""Devices, nodes and launchers of the trainer."""

import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only

from mec.cli.main import main
from mec.data import open_dataset
from mec.data.loaders import evaluation_loader
from mec.data.pixels import PixelFormat
from mec.distributed import process_group
from mec.engine.trainer import make_trainer
from mec.errors import InputError
from mec.pretraining import Run, pretrain
from tests.pretraining.test_resume_after_kill import write_photographs
from tests.pretraining.test_run import TINY
from tests.processes import free_port, needs_gloo

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
# a sweep amplifies the rounding of three steps of so narrow a network
ARGUMENTS += ["--objective.distortion", "0.03125"]
ARGUMENTS += ["--log_every", "1", "--probe_every", "0", "--accelerator", "cpu", "--precision", "32-true"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SLURM_") or name in TORCHRUN:
            monkeypatch.delenv(name)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning sets it for the whole process


def sizes_and_rank(trainer: Any) -> tuple[int, int, int, int]:
    return trainer.num_devices, trainer.num_nodes, trainer.world_size, trainer.global_rank


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, (1, 1, 1, 0)), (TORCHRUN, (4, 2, 8, 5)), (SLURM, (3, 2, 6, 4))]
)
@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_sizes_are_those_of_the_launcher(
    environment: dict[str, str],
    expected: tuple[int, ...],
    explicit: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    devices, nodes = expected[:2] if explicit else ("auto", "auto")
    assert sizes_and_rank(make_trainer(tmp_path, devices, nodes, "32-true", "cpu")) == expected


def test_torchrun_takes_precedence_over_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """srun starts one torchrun per machine, which starts the processes."""
    for name, value in (SLURM | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"} | TORCHRUN).items():
        monkeypatch.setenv(name, value)
    assert sizes_and_rank(make_trainer(tmp_path, "auto", "auto", "32-true", "cpu")) == (4, 2, 8, 5)


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "message"),
    [
        (
            TORCHRUN,
            8,
            "auto",
            r"devices: expected 4, because torchrun started 4 processes per machine, got 8; leave it out",
        ),
        (TORCHRUN, 4, 1, r"nodes: expected 2, because torchrun started 2 machines, got 1; leave it out"),
        (SLURM, 1, "auto", r"devices: expected 3, because SLURM started 3 processes per machine, got 1"),
        (SLURM, "auto", 3, r"nodes: expected 2, because SLURM started 2 machines, got 3"),
    ],
)
def test_sizes_that_differ_from_the_launcher_are_refused(
    environment: dict[str, str], devices: Any, nodes: Any, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message) as error:
        make_trainer(tmp_path, devices, nodes, "32-true", "cpu")
    assert "\n" not in str(error.value)


def test_advice_of_libraries_is_silenced_without_changing_their_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    filters = list(warnings.filters)
    make_trainer(tmp_path, "auto", "auto", "32-true", "cpu")
    with process_group():
        pass
    dataset = open_dataset(write_photographs(tmp_path / "images"))
    evaluation_loader(dataset, PixelFormat(), 16, workers=500)
    assert not list(recwarn)
    assert warnings.filters == filters
    with pytest.warns(match="srun"):  # Lightning's advice exists
        SLURMEnvironment.detect()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_an_unavailable_device_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^accelerator: ") as error:
        make_trainer(tmp_path, 1, 1, "32-true", "gpu")
    assert "\n" not in str(error.value)


def run_commands(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Run commands at the same time and return their exit statuses and outputs."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for command in commands
    ]  # fmt: skip
    deadline = time.monotonic() + TIME_LIMIT
    try:
        outputs = [process.communicate(timeout=deadline - time.monotonic())[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def pretrain_command(out: Path, *options: str) -> list[str]:
    return ["mec", "pretrain", "digits", "--out", str(out), *ARGUMENTS, *options]


def on_two_nodes(command: list[str]) -> list[list[str]]:
    rendezvous = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(free_port()),
    ]
    return [["torch.distributed.run", "--node-rank", str(node), *rendezvous, "-m", *command] for node in range(2)]


@pytest.fixture(scope="module")
def single_process_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "single"
    assert main(pretrain_command(out)[1:]) == 0
    return Run(out)


def assert_written_once(out: Path, single_process_run: Run, output: str) -> None:
    """Assert that only rank 0 has written files, and the same as a single process."""
    assert {path.name for path in out.iterdir()} == {path.name for path in single_process_run.folder.iterdir()}
    assert len(list(out.glob("checkpoints/*"))) == len(list(out.glob("tensorboard/events*"))) == 1
    assert output.count("encoder written to") == 1
    rows, expected = Run(out).metrics(), single_process_run.metrics()
    assert [row["step"] for row in rows] == [1, 2, 3]
    # float32 sums in another order, and three steps amplify the difference: 1e-4 observed
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-3)


@needs_gloo
def test_two_nodes_of_torchrun_train_like_one_process(single_process_run: Run, tmp_path: Path) -> None:
    (status_0, output_0), (status_1, output_1) = run_commands(on_two_nodes(pretrain_command(tmp_path / "two")))
    assert status_0 == status_1 == 0, output_0 + output_1
    assert_written_once(tmp_path / "two", single_process_run, output_0 + output_1)


@needs_gloo
def test_two_devices_of_lightning_train_like_one_process(single_process_run: Run, tmp_path: Path) -> None:
    ((status, output),) = run_commands([pretrain_command(tmp_path / "two", "--devices", "2")])
    assert status == 0, output
    assert_written_once(tmp_path / "two", single_process_run, output)


def test_sizes_that_do_not_fit_are_refused_before_the_run_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = replace(TINY, accelerator="cpu", devices=4, batch_size=6)
    with pytest.raises(InputError, match="batch_size: expected at least 2 images per process, got 1: 6 of 1347 images"):
        pretrain("digits", tmp_path / "run", recipe)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="devices: expected 4, because torchrun started 4 processes per machine"):
        pretrain("digits", tmp_path / "run", replace(recipe, devices=2))
    assert not (tmp_path / "run").exists()


def test_several_processes_in_a_notebook_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(InputError, match=r"^devices: expected 1 in a notebook"):
        make_trainer(tmp_path, 2, 1, "32-true", "cpu")
    assert make_trainer(tmp_path, 1, 1, "32-true", "cpu").world_size == 1
