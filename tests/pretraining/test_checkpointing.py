"""Signals, full disks and two runs in one folder."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import signal
import socket
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
from mec.engine.checkpoints import latest_checkpoint, step_of
from mec.errors import InputError
from mec.pretraining import Run, SpeedSettings, checkpointing, pretrain
from mec.pretraining.module import Pretraining
from mec.pretraining.progress import MetricsFile
from mec.pretraining.run_folder import held
from tests.pretraining.kills import command, ended
from tests.pretraining.test_run import TINY, quiet
from tests.pretraining.test_survival import assert_same, photographs

SHORT = replace(TINY, epochs=2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert ended(command("digits", out, SHORT)) == 0
    return out


def at_step(number: int, does: Callable[[], object]) -> None:
    """In this process ``does`` is called at the beginning of step ``number``."""
    step = Pretraining.training_step

    def changed(self: Pretraining, batch: object, batch_idx: int) -> object:
        if self.global_step == number:
            does()
        return step(self, batch, batch_idx)

    Pretraining.training_step = changed


def sends(number: int, *signals: int, group: bool = False) -> None:
    """At step ``number`` the process, or its whole group, is sent signals."""
    target = os.killpg if group else os.kill
    at_step(number, lambda: [target(os.getpid(), s) for s in signals])


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [3, 4])  # the fifth step ends an epoch
def test_a_signal_saves_and_stops(
    sent: signal.Signals, status: int, step: int, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert ended(command("digits", out, SHORT, partial(sends, step, sent))) == status
    said = (tmp_path / "run.txt").read_text().splitlines()
    assert [sent.name in line for line in said].count(True) == 1
    assert "Traceback" not in "".join(said)
    newest = latest_checkpoint(out, print)
    assert newest is not None
    assert step_of(newest) == step + 1
    assert ended(command("digits", out, SHORT, resume=True)) == 0
    assert "going on from" in (tmp_path / "run.txt").read_text()
    assert_same(out, undisturbed)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    change = partial(sends, 3, signal.SIGINT, signal.SIGINT)
    assert ended(command("digits", tmp_path / "run", SHORT, change)) == 130
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_sigterm_to_all_processes_spares_the_loaders_until_it_has_saved(tmp_path: Path) -> None:
    data, recipe = photographs(tmp_path / "data"), replace(SHORT, channels=3, batch_size=4, workers=2)
    assert ended(command(data, tmp_path / "whole", replace(recipe, workers=0))) == 0
    change = partial(sends, 2, signal.SIGTERM, group=True)
    assert ended(command(data, tmp_path / "run", recipe, change)) == 75
    assert ended(command(data, tmp_path / "run", recipe, resume=True)) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


def in_two(out: Path, changes: tuple[Callable[[], None] | None, ...] = (None, None), resume: bool = False) -> list[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe = replace(SHORT, devices=2, accelerator="cpu")
    started = [command("digits", out, recipe, changes[r], (r, 2, port), resume) for r in range(2)]
    return [ended(process) for process in started]


def test_of_two_processes_both_stop_at_a_signal_to_one(tmp_path: Path) -> None:
    assert in_two(tmp_path / "whole") == [0, 0]
    # of processes that fail, launchers kill the others: the first alone reports it
    assert in_two(tmp_path / "run", (None, partial(sends, 6, signal.SIGTERM))) == [75, 0]
    assert [step_of(path) for path in (tmp_path / "run" / "checkpoints").iterdir()] == [7]
    assert in_two(tmp_path / "run", resume=True) == [0, 0]
    assert_same(tmp_path / "run", tmp_path / "whole")


def infinite_at(number: int) -> None:
    """In this process alone the gradient of one weight is infinite in step ``number``."""
    step = Pretraining.training_step

    def changed(self: Pretraining, batch: object, batch_idx: int) -> torch.Tensor:
        loss = step(self, batch, batch_idx)
        if self.global_step != number:
            return loss
        weight = next(self.network.projector.parameters())
        return loss + math.inf * (weight - weight.detach()).sum().nan_to_num()

    Pretraining.training_step = changed  # type: ignore[method-assign,assignment]


def test_of_two_processes_both_leave_out_what_is_not_finite_in_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert in_two(out, (partial(sends, 6, signal.SIGTERM), partial(infinite_at, 4))) == [75, 0]
    (checkpoint,) = (out / "checkpoints").iterdir()
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert int(state["guard.skipped"]) == 1
    assert all(value.isfinite().all() for value in state.values())
    assert in_two(out, resume=True) == [0, 0]
    assert {row["step"]: row["skipped"] for row in Run(out).metrics()} == {s: int(s >= 4) for s in range(10)}


def terminated_in(name: str) -> None:
    """SIGTERM when ``mec.pretraining.run`` calls its ``name``."""
    setattr(mec.pretraining.run, name, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize("moment", ["settle", "begin", "save_encoder"])
def test_sigterm_before_and_after_the_steps(moment: str, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert ended(command("digits", out, SHORT, partial(terminated_in, moment))) == -signal.SIGTERM
    assert ended(command("digits", out, SHORT, resume=True)) == 0
    assert_same(out, undisturbed)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_a_row_and_a_part(metrics: MetricsFile, row: dict[str, object]) -> None:
    """What a disk leaves that is full in the middle of a row: here of step 7, cut within its number."""
    if row["step"] != 7:
        return APPEND(metrics, row)
    with metrics.path.open("a") as file:
        file.write("0,1,0.25")
    full()


APPEND = MetricsFile.append


def full_in(place: str) -> None:
    checkpointing.SECONDS, checkpointing.SHARE = 0.0, 0
    if place == "metrics.csv":
        MetricsFile.append = write_a_row_and_a_part  # type: ignore[method-assign,assignment]
    else:
        CorruptLog.list_in = full  # type: ignore[method-assign,assignment]


def no_file_above(size: int, step: int | None) -> None:
    """From ``step`` on, or from the writing of the encoder on, a checkpoint being written at every step."""
    checkpointing.SECONDS, checkpointing.SHARE = 0.0, 0
    save = mec.pretraining.run.save_encoder

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    if step is not None:
        at_step(step, limit)
    else:
        mec.pretraining.run.save_encoder = lambda *arguments: [limit(), save(*arguments)][1]


@pytest.mark.parametrize(("step", "size", "kept"), [(4, 100_000, [2, 3, 4]), (None, 5_000, [8, 9, 10])])
def test_a_file_that_cannot_be_written_whole(
    step: int | None, size: int, kept: list[int], undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert ended(command("digits", out, SHORT, partial(no_file_above, size, step))) == 2
    said = (tmp_path / "run.txt").read_text().splitlines()
    assert said[-1].startswith("mec: out: ")
    assert "File too large" in said[-1]
    assert "Traceback" not in "".join(said)
    assert sorted(map(step_of, (out / "checkpoints").iterdir())) == kept
    assert not (out / "encoder.safetensors").exists()
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]
    assert ended(command("digits", out, SHORT, resume=True)) == 0
    assert_same(out, undisturbed)


@pytest.mark.parametrize("place", ["metrics.csv", "skipped.csv"])
def test_a_full_disk_is_told_in_a_line(place: str, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert ended(command("digits", out, SHORT, partial(full_in, place))) == 2
    last = (tmp_path / "run.txt").read_text().splitlines()[-1]
    assert last.startswith(f"mec: out: {out} cannot be written (No space left on device); ")
    assert ended(command("digits", out, SHORT, resume=True)) == 0
    assert_same(out, undisturbed)


def test_two_runs_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.pretraining.run_folder.LINGER", 0.2)
    first = command("digits", tmp_path / "run", SHORT, partial(at_step, 2, partial(time.sleep, 60)))
    while not (tmp_path / "run" / "metrics.csv").exists():
        time.sleep(0.02)
        assert first.is_alive()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"out: .*(already holds a run|another process is training into)"):
            pretrain("digits", tmp_path / "run", SHORT, resume, console=quiet())
    first.kill()
    first.join()
    pretrain("digits", tmp_path / "run", SHORT, resume=True, console=quiet())
    assert len(Run(tmp_path / "run").metrics()) == 10


def test_a_folder_that_is_let_go_of_soon_is_waited_for(tmp_path: Path) -> None:
    """So are the loader processes of a run that was killed: they live on for up to two seconds."""
    lock = FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    began, timer = time.monotonic(), threading.Timer(0.8, lock.release)
    timer.start()
    with held(tmp_path):
        assert time.monotonic() - began > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_processes_that_lightning_starts_stop_together(sent: signal.Signals, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(replace(TINY, epochs=1000, devices=2, accelerator="cpu").as_dict()))
    started = subprocess.Popen(
        [sys.executable, "-m", "mec", "pretrain", "digits", "--out", str(out), "--recipe", str(recipe)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (out / "metrics.csv").exists() or len(Run(out).metrics()) < 3:
            time.sleep(0.1)
            assert started.poll() is None
        if sent == signal.SIGTERM:
            started.terminate()
        else:  # as a terminal does
            os.killpg(started.pid, sent)
        assert started.wait(60) == (75 if sent == signal.SIGTERM else 130)
        assert len(list((out / "checkpoints").iterdir())) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


def test_what_may_change_at_resume_and_what_not(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    slow = replace(SHORT, speed=SpeedSettings(channels_last=False, fused=False))
    assert ended(command("digits", out, slow, partial(sends, 3, signal.SIGTERM))) == 75
    for changed, difference in (
        (replace(SHORT, seed=3), "seed: 0 -> 3"),
        (replace(SHORT, optimizer=replace(SHORT.optimizer, lr=0.5)), r"optimizer.lr: .* -> 0.5"),
    ):
        with pytest.raises(InputError, match=f"resume: the recipe differs from the run's: {difference}$"):
            pretrain("digits", out, changed, resume=True, console=quiet())
    with pytest.raises(InputError, match="resume: images: 1347 when the run was begun, here 20"):
        pretrain(photographs(tmp_path / "data"), out, replace(SHORT, channels=1), resume=True, console=quiet())
    console = quiet()
    elsewhere = replace(SHORT, workers=1, devices=1, accelerator="cpu", log_every=5)
    run = pretrain("digits", out, elsewhere, resume=True, console=console)
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3, 5]
    # other kernels round otherwise
    loss = {row["step"]: row["loss"] for row in Run(undisturbed).metrics()}[5]
    assert run.metrics()[-1]["loss"] == pytest.approx(loss, rel=0.02)


def test_resume_begins_where_there_is_nothing(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "absent", tmp_path / "empty"):
        console = quiet()
        pretrain("digits", out, replace(SHORT, epochs=1), resume=True, console=console)
        assert console.file.getvalue().startswith(f"{out} holds no run yet: it begins\n")
