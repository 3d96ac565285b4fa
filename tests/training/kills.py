"""Runs that are killed at a chosen moment, each in a process forked from one that has imported everything."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import mec.training.run
from mec.training import Recipe, keeping, pretrain
from tests.training.test_run import quiet

TIME_LIMIT = 100.0
ATTEMPTS = multiprocessing.get_context("forkserver")
ATTEMPTS.set_forkserver_preload(
    ["mec.training", "sklearn.datasets", "torch.utils.tensorboard", "tensorboard.compat", "torch._dynamo"]
)
WRITES = ("half", "renamed", "named", "pruned")
"""In a checkpoint's write: after half of its bytes, before and after it is named by its checksum, after one is removed."""


def attempt(data: str | Path, out: Path, recipe: Recipe, moment: tuple[str, int] | None = None) -> int:
    """Begin or go on with a run that is killed at ``moment``, if any. Returns the exit status."""
    process = ATTEMPTS.Process(target=_attempt, args=(str(data), out, recipe, moment))
    process.start()
    process.join(TIME_LIMIT)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the run hangs")
    return process.exitcode


def _attempt(data: str, out: Path, recipe: Recipe, moment: tuple[str, int] | None) -> None:
    torch.set_num_threads(1)
    keeping.SECONDS, keeping.SHARE = 0.0, 0
    if moment is not None and moment[0] == "call":
        _die_at_call(moment[1])
    elif moment is not None:
        _die_in_write(*moment)
    pretrain(data, out, recipe, resume=True, console=quiet())


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_call(number: int) -> None:
    """At the ``number``-th call of a Python function after the folder is held."""
    left = number

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        left -= event == "call"
        if left <= 0:
            _die()

    held = mec.training.run.held

    @contextmanager
    def counted(out: Path) -> Iterator[None]:
        with held(out):
            sys.setprofile(count)
            yield

    mec.training.run.held = counted


def _die_in_write(kind: str, number: int) -> None:
    """In the ``number``-th checkpoint that is written."""
    left = number
    save, replace, unlink = torch.save, Path.replace, Path.unlink

    def half(content: Any, path: Path) -> None:
        nonlocal left
        left -= 1
        if left:
            return save(content, path)
        buffer = io.BytesIO()
        save(content, buffer)
        path.write_bytes(buffer.getvalue()[: buffer.tell() // 2])
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
