"""Runs that are stopped at a chosen moment, each in a process forked from one that has imported everything."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

import mec.pretraining.run
from mec.cli.main import entry
from mec.pretraining import Recipe, checkpointing, pretrain
from mec.pretraining.progress import MetricsFile
from tests.pretraining.test_run import quiet

TIME_LIMIT = 100.0
ATTEMPTS = multiprocessing.get_context("forkserver")
ATTEMPTS.set_forkserver_preload(
    [
        "mec.pretraining",
        "mec.cli.options",
        "mec.pretraining.online_probe",
        "sklearn.datasets",
        "torch.utils.tensorboard",
        "tensorboard.compat",
        "torch._dynamo",
    ]
)
WRITES = ("half", "renamed", "named", "pruned")
"""In a checkpoint's write: after half its bytes, before and after it is named by its checksum, after one is removed."""


def attempt(data: str | Path, out: Path, recipe: Recipe, moment: tuple[str, int] | None = None) -> int:
    """Begin or go on with a run that is killed at ``moment``, if any. Returns the exit status."""
    process = ATTEMPTS.Process(target=_attempt, args=(str(data), out, recipe, moment))
    process.start()
    return ended(process)


def ended(process: BaseProcess) -> int:
    process.join(TIME_LIMIT)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the run hangs")
    return process.exitcode


def command(
    data: str | Path,
    out: Path,
    recipe: Recipe,
    change: Callable[[], None] | None = None,
    rank: tuple[int, int, int] | None = None,
    resume: bool = False,
) -> BaseProcess:
    """``mec pretrain``, started; what it says goes to ``out``.txt. ``rank``: its own, of how many, and their port."""
    given = out.with_name("recipe-of-the-command.yaml")
    given.write_text(yaml.safe_dump(recipe.as_dict()))
    arguments = ["pretrain", str(data), "--out", str(out), "--recipe", str(given), "--probe-every", "0"]
    said = out.with_name(f"{out.name}{rank[0] if rank else ''}.txt")
    process = ATTEMPTS.Process(
        target=_command, args=([*arguments, *(["--resume"] if resume else [])], said, change, rank)
    )
    process.start()
    return process


def _command(
    arguments: list[str], said: Path, change: Callable[[], None] | None, rank: tuple[int, int, int] | None
) -> None:
    os.setsid()
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if rank is not None:
        number, of, port = map(str, rank)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": of, "RANK": number}
        os.environ |= {"LOCAL_RANK": number, "LOCAL_WORLD_SIZE": of, "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as it is without a fork server
    if change is not None:
        change()
    sys.argv = ["mec", *arguments]
    entry()


def _attempt(data: str, out: Path, recipe: Recipe, moment: tuple[str, int] | None) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as it is without a fork server
    checkpointing.SECONDS, checkpointing.SHARE = 0.0, 0
    if moment is not None and moment[0] in WRITES:
        _die_in_write(*moment)
    elif moment is not None:
        _die_at_call(moment[1], moment[0])
    pretrain(data, out, recipe, resume=True, console=quiet())


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_call(number: int, first: str) -> None:
    """At the ``number``-th call of a Python function after the folder is held, or after metrics.csv is opened."""
    left = number

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        left -= event == "call"
        if left <= 0:
            _die()

    held, init = mec.pretraining.run.held, MetricsFile.__init__

    @contextmanager
    def counted(out: Path) -> Iterator[None]:
        with held(out):
            sys.setprofile(count)
            yield

    def opened(*arguments: Any) -> None:
        sys.setprofile(count)
        init(*arguments)

    if first == "held":
        mec.pretraining.run.held = counted
    else:
        MetricsFile.__init__ = opened  # type: ignore[method-assign,assignment]


def _die_in_write(kind: str, number: int) -> None:
    """In the ``number``-th checkpoint that is written."""
    left = number
    save, replace, unlink = torch.save, Path.replace, Path.unlink

    def half(content: Any, file: BinaryIO) -> None:
        nonlocal left
        left -= 1
        if left:
            return save(content, file)
        buffer = io.BytesIO()
        save(content, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        _die()

    def after(does: Callable[..., Any], of: Callable[[str], bool]) -> Callable[..., Any]:
        def done(path: Path, *arguments: Any, **named: Any) -> Any:
            nonlocal left
            result = does(path, *arguments, **named)
            left -= of(Path(arguments[0] if arguments else path).name)
            if left <= 0:
                _die()
            return result

        return done

    if kind == "half":
        torch.save = half
    elif kind == "renamed":
        Path.replace = after(replace, lambda name: name.startswith("step=") and "-" not in name)  # type: ignore
    elif kind == "named":
        Path.replace = after(replace, lambda name: name.startswith("step=") and "-" in name)  # type: ignore
    elif kind == "pruned":
        Path.unlink = after(unlink, lambda name: name.startswith("step="))  # type: ignore
