"""Signals, full disks, and two runs in one folder."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

import mec.pretraining.run
from mec.data.corrupt import CorruptLog
from mec.engine import checkpoints
from mec.engine.checkpoints import latest_checkpoint
from mec.engine.run_folder import lock_folder
from mec.errors import InputError
from mec.files import StepCsv
from mec.models.checkpoint_files import checkpoint_step
from mec.pretraining import ObjectiveSettings, Run, SpeedSettings, pretrain
from mec.pretraining.module import Pretraining
from tests.pretraining.interrupted_runs import start_command
from tests.pretraining.test_resume_after_kill import assert_same_run, write_photographs
from tests.pretraining.test_run import TINY
from tests.processes import exit_status, free_port

SHORT = replace(TINY, epochs=2, objective=ObjectiveSettings("pooled"))  # a sweep amplifies rounding


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert exit_status(start_command("digits", out, SHORT)) == 0
    return out


def call_at_step(step: int, function: Callable[[], object]) -> None:
    """Patch this process to call ``function`` at the beginning of a step."""
    training_step = Pretraining.training_step

    def patched(self: Pretraining, batch: object, batch_idx: int) -> object:
        if self.global_step == step:
            function()
        return training_step(self, batch, batch_idx)

    Pretraining.training_step = patched


def send_at_step(step: int, *signals: int, group: bool = False) -> None:
    """Patch this process to send signals to itself, or to its whole process group, at a step."""
    send = os.killpg if group else os.kill
    call_at_step(step, lambda: [send(os.getpid(), s) for s in signals])


# the fifth step ends an epoch
@pytest.mark.parametrize(("sent", "status", "step"), [(signal.SIGTERM, 75, 4), (signal.SIGINT, 130, 3)])
def test_a_signal_saves_and_stops(sent: int, status: int, step: int, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert exit_status(start_command("digits", out, SHORT, partial(send_at_step, step, sent))) == status
    lines = (tmp_path / "run.txt").read_text().splitlines()
    assert [signal.Signals(sent).name in line for line in lines].count(True) == 1
    assert "Traceback" not in "".join(lines)
    newest = latest_checkpoint(out)
    assert newest is not None
    assert checkpoint_step(newest) == step + 1
    assert exit_status(start_command("digits", out, SHORT, resume=True)) == 0
    assert "resuming from" in (tmp_path / "run.txt").read_text()
    assert_same_run(out, undisturbed)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    patch = partial(send_at_step, 3, signal.SIGINT, signal.SIGINT)
    assert exit_status(start_command("digits", tmp_path / "run", SHORT, patch)) == 130
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_sigterm_to_the_process_group_does_not_kill_loaders_before_the_save(tmp_path: Path) -> None:
    data, recipe = write_photographs(tmp_path / "data"), replace(SHORT, channels=3, batch_size=4, workers=2)
    assert exit_status(start_command(data, tmp_path / "undisturbed", replace(recipe, workers=0))) == 0
    patch = partial(send_at_step, 2, signal.SIGTERM, group=True)
    assert exit_status(start_command(data, tmp_path / "run", recipe, patch)) == 75
    assert exit_status(start_command(data, tmp_path / "run", recipe, resume=True)) == 0
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def run_in_two_processes(
    out: Path, patches: tuple[Callable[[], None] | None, ...] = (None, None), resume: bool = False
) -> list[int]:
    port = free_port()
    recipe = replace(SHORT, devices=2, accelerator="cpu")
    processes = [start_command("digits", out, recipe, patches[r], (r, 2, port), resume) for r in range(2)]
    return [exit_status(process) for process in processes]


def make_gradient_infinite_at_step(step: int) -> None:
    """Patch this process, and no other, so that the gradient of one weight is infinite at a step."""
    training_step = Pretraining.training_step

    def patched(self: Pretraining, batch: object, batch_idx: int) -> torch.Tensor:
        loss = training_step(self, batch, batch_idx)
        if self.global_step != step:
            return loss
        weight = next(self.network.projector.parameters())
        return loss + math.inf * (weight - weight.detach()).sum().nan_to_num()

    Pretraining.training_step = patched  # type: ignore[method-assign,assignment]


def spoil_a_step_and_terminate() -> None:
    make_gradient_infinite_at_step(4)
    send_at_step(6, signal.SIGTERM)


def test_two_processes_skip_a_step_and_stop_together(tmp_path: Path) -> None:
    out, spoil = tmp_path / "run", partial(make_gradient_infinite_at_step, 4)
    assert run_in_two_processes(tmp_path / "undisturbed", (None, spoil)) == [0, 0]
    # launchers kill the other processes when one fails, so only the first exits with an error
    assert run_in_two_processes(out, (None, spoil_a_step_and_terminate)) == [75, 0]
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert checkpoint_step(checkpoint) == 7
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert int(state["guard.skipped_steps"]) == 1
    assert all(value.isfinite().all() for value in state.values())
    assert run_in_two_processes(out, resume=True) == [0, 0]
    assert_same_run(out, tmp_path / "undisturbed")
    assert {row["step"]: row["skipped_steps"] for row in Run(out).metrics()} == {s: int(s > 4) for s in range(1, 11)}


def terminate_in(name: str) -> None:
    """Send SIGTERM when ``mec.pretraining.run`` calls the function ``name``."""
    setattr(mec.pretraining.run, name, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize(
    "function", ["load_into_memory", pytest.param("write_run_files", marks=pytest.mark.slow), "save_encoder"]
)
def test_a_run_resumes_after_sigterm_before_or_after_training(function: str, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert exit_status(start_command("digits", out, SHORT, partial(terminate_in, function))) == 75
    assert exit_status(start_command("digits", out, SHORT, resume=True)) == 0
    assert_same_run(out, undisturbed)


def test_a_run_without_checkpoint_starts_again_with_other_settings_and_one_with_a_checkpoint_does_not(
    tmp_path: Path,
) -> None:
    out, data = tmp_path / "run", write_photographs(tmp_path / "data")
    for i in range(3):
        (data / f"corrupt{i}.jpg").write_bytes(b"")
    strict = replace(SHORT, channels=3, batch_size=4)
    with pytest.raises(InputError, match=r"^max_corrupt: "):
        pretrain(data, out, strict)
    pretrain(data, out, replace(strict, max_corrupt=0.5), resume=True)
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(InputError, match=r"^resume: .*seed: 0 -> 1"):  # its encoder would be lost
        pretrain(data, out, replace(strict, seed=1, max_corrupt=0.5), resume=True)
    (out / "encoder.safetensors").unlink()
    run = pretrain(data, out, replace(strict, seed=1, max_corrupt=0.5), resume=True)
    assert run.recipe().seed == 1
    assert len(run.metrics()) == 10


def test_a_resumed_run_keeps_the_command_that_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    for number in range(3):
        monkeypatch.setattr(sys, "argv", ["mec", f"command {number}"])
        pretrain("digits", out, replace(SHORT, workers=number), resume=number > 0)
        (out / "encoder.safetensors").unlink()  # with it, the run is finished
    environment = json.loads((out / "environment.json").read_text())
    resumed = environment["resumed"]
    assert [e["command"] for e in (environment, *resumed)] == [f"mec 'command {n}'" for n in range(3)]
    assert environment["started"] <= resumed[0]["started"] <= resumed[1]["started"]


def raise_disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


APPEND = StepCsv.append


def append_until_disk_full(metrics: StepCsv, row: dict[str, object]) -> None:
    """Write a truncated row at step 7, as a disk that is full in the middle of a row leaves it."""
    if row["step"] != 8:
        return APPEND(metrics, row)
    with metrics.path.open("a") as file:
        file.write("0,1,0.25")
    raise_disk_full()


def fill_disk_at(file: str) -> None:
    save_every_step()
    if file == "metrics.csv":
        StepCsv.append = append_until_disk_full  # type: ignore[method-assign,assignment]
    else:
        CorruptLog.write_to = raise_disk_full  # type: ignore[method-assign,assignment]


def save_every_step() -> None:
    checkpoints.SAVE_INTERVAL_SECONDS, checkpoints.SAVE_INTERVAL_FACTOR = 0.0, 0


def limit_file_size(size: int, step: int | None) -> None:
    """Limit the size of files from ``step`` on, or from the final ``save_encoder`` on if ``step`` is None."""
    save_every_step()
    save_encoder = mec.pretraining.run.save_encoder
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    if step is not None:
        call_at_step(step, limit)
    else:
        mec.pretraining.run.save_encoder = lambda *args: [limit(), save_encoder(*args)][1]


@pytest.mark.parametrize(
    ("step", "size", "saved_steps"),
    [(4, 100_000, [2, 3, 4]), pytest.param(None, 5_000, [8, 9, 10], marks=pytest.mark.slow)],
)
def test_a_file_that_cannot_be_written_completely_leaves_the_run_resumable(
    step: int | None, size: int, saved_steps: list[int], undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert exit_status(start_command("digits", out, SHORT, partial(limit_file_size, size, step))) == 2
    lines = (tmp_path / "run.txt").read_text().splitlines()
    assert lines[-1].startswith("mec: out: ")
    assert "File too large" in lines[-1]
    assert "Traceback" not in "".join(lines)
    assert sorted(map(checkpoint_step, (out / "checkpoints").iterdir())) == saved_steps
    assert not (out / "encoder.safetensors").exists()
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]
    assert exit_status(start_command("digits", out, SHORT, resume=True)) == 0
    assert_same_run(out, undisturbed)


@pytest.mark.parametrize("file", ["metrics.csv", pytest.param("corrupt.csv", marks=pytest.mark.slow)])
def test_a_full_disk_is_reported_in_one_line(file: str, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert exit_status(start_command("digits", out, SHORT, partial(fill_disk_at, file))) == 2
    last = (tmp_path / "run.txt").read_text().splitlines()[-1]
    assert last.startswith(f"mec: out: {out} cannot be written (No space left on device); ")
    assert exit_status(start_command("digits", out, SHORT, resume=True)) == 0
    assert_same_run(out, undisturbed)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.engine.run_folder.LOCK_TIMEOUT", 0.2)
    first = start_command("digits", tmp_path / "run", SHORT, partial(call_at_step, 2, partial(time.sleep, 60)))
    while not (tmp_path / "run" / "metrics.csv").exists():
        time.sleep(0.02)
        assert first.is_alive()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"out: .*(already contains a run|another process is training into)"):
            pretrain("digits", tmp_path / "run", SHORT, resume)
    first.kill()
    first.join()
    pretrain("digits", tmp_path / "run", SHORT, resume=True)
    assert len(Run(tmp_path / "run").metrics()) == 10


def test_a_lock_that_is_released_soon_is_waited_for(tmp_path: Path) -> None:
    """Loader processes of a killed run hold the lock for up to two seconds."""
    lock = FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    started, timer = time.monotonic(), threading.Timer(0.8, lock.release)
    timer.start()
    with lock_folder(tmp_path):
        assert time.monotonic() - started > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_processes_that_lightning_starts_stop_together(sent: int, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(replace(TINY, epochs=1000, devices=2, accelerator="cpu").as_dict()))
    process = subprocess.Popen(
        [sys.executable, "-m", "mec", "pretrain", "digits", "--out", str(out), "--recipe", str(recipe)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (out / "metrics.csv").exists() or len(Run(out).metrics()) < 3:
            time.sleep(0.1)
            assert process.poll() is None
        if sent == signal.SIGTERM:
            process.terminate()
        else:  # as a terminal does
            os.killpg(process.pid, sent)
        assert process.wait(60) == (75 if sent == signal.SIGTERM else 130)
        assert len(list((out / "checkpoints").iterdir())) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_resume_accepts_other_hardware_settings_but_no_other_recipe_or_data(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    slow = replace(SHORT, speed=SpeedSettings(channels_last=False, fused=False))
    assert exit_status(start_command("digits", out, slow, partial(send_at_step, 3, signal.SIGTERM))) == 75
    for changed, difference in (
        (replace(SHORT, seed=3), "seed: 0 -> 3"),
        (replace(SHORT, optimizer=replace(SHORT.optimizer, lr=0.5)), r"optimizer.lr: .* -> 0.5"),
    ):
        with pytest.raises(InputError, match=f"^resume: .*: {difference}$"):
            pretrain("digits", out, changed, resume=True)
    data = write_photographs(tmp_path / "data")
    with pytest.raises(InputError, match=r"^resume: images: expected 1347 .*, got 20"):
        pretrain(data, out, replace(SHORT, channels=1), resume=True)
    elsewhere = replace(SHORT, workers=1, devices=1, accelerator="cpu", log_every=5)
    run = pretrain("digits", out, elsewhere, resume=True)
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 6]
    # other kernels round differently
    loss = {row["step"]: row["loss"] for row in Run(undisturbed).metrics()}[6]
    assert run.metrics()[-1]["loss"] == pytest.approx(loss, rel=0.02)


def test_resume_starts_a_run_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "absent", tmp_path / "empty"):
        pretrain("digits", out, replace(SHORT, epochs=1), resume=True)
        assert capsys.readouterr().err.count(f"{out} contains no run yet: starting\n") == 1
