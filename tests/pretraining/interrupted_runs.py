"""Start runs that are stopped at a chosen moment, each in a process forked from one that has imported everything."""

from __future__ import annotations

import io
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
from mec.engine import checkpoints
from mec.files import StepCsv
from mec.pretraining import Recipe, pretrain
from tests.processes import FORKSERVER, exit_status, torchrun_environment, use_fork

CHECKPOINT_MOMENTS = ("half written", "without checksum", "with checksum", "pruned")
"""Moments of writing a checkpoint: after half of its bytes, before and after the checksum is added to its name, and
after an older checkpoint is removed."""
CALL_MOMENTS = ("locked", "metrics opened")
"""Moments from which on calls of Python functions are counted: the run folder is locked, metrics.csv is opened."""

Moment = tuple[str, int]


def run_until_killed(data: str | Path, out: Path, recipe: Recipe, moment: Moment | None = None) -> int:
    """Start or resume a run, SIGKILL it at ``moment``, if any, and return the exit status."""
    process = FORKSERVER.Process(target=_run_until_killed, args=(str(data), out, recipe, moment))
    process.start()
    return exit_status(process)


def start_command(
    data: str | Path,
    out: Path,
    recipe: Recipe,
    patch: Callable[[], None] | None = None,
    rank: tuple[int, int, int] | None = None,
    resume: bool = False,
) -> BaseProcess:
    """Start ``mec pretrain``, with standard error in ``out``.txt.

    Args:
        data: the images.
        out: the run folder.
        recipe: the settings.
        patch: called in the process before the command.
        rank: rank, world size and port, as torchrun sets them; None for a single process.
        resume: add ``--resume``.
    """
    recipe_file = out.with_name("recipe-of-the-command.yaml")
    recipe_file.write_text(yaml.safe_dump(recipe.as_dict()))
    arguments = ["pretrain", str(data), "--out", str(out), "--recipe", str(recipe_file), "--probe-every", "0"]
    arguments += ["--resume"] if resume else []
    return start_mec(arguments, out.with_name(f"{out.name}{rank[0] if rank else ''}.txt"), patch, rank)


def start_mec(
    arguments: list[str],
    stderr: Path,
    patch: Callable[[], None] | None = None,
    rank: tuple[int, int, int] | None = None,
) -> BaseProcess:
    """Start the command with standard error in a file; see ``start_command``."""
    process = FORKSERVER.Process(target=_run_command, args=(arguments, stderr, patch, rank))
    process.start()
    return process


def _run_command(
    arguments: list[str], stderr: Path, patch: Callable[[], None] | None, rank: tuple[int, int, int] | None
) -> None:
    os.setsid()
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if rank is not None:
        os.environ |= torchrun_environment(*rank)
    use_fork()
    if patch is not None:
        patch()
    sys.argv = ["mec", *arguments]
    entry()


def _run_until_killed(data: str, out: Path, recipe: Recipe, moment: Moment | None) -> None:
    use_fork()
    checkpoints.SAVE_INTERVAL_SECONDS, checkpoints.SAVE_INTERVAL_FACTOR = 0.0, 0
    if moment is not None and moment[0] in CHECKPOINT_MOMENTS:
        _die_in_checkpoint(*moment)
    elif moment is not None:
        _die_at_call(*moment)
    pretrain(data, out, recipe, resume=True)


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_call(start: str, number: int) -> None:
    """Die at the ``number``-th call of a Python function after ``start``, one of ``CALL_MOMENTS``."""
    remaining = number

    def count_calls(frame: Any, event: str, argument: Any) -> None:
        nonlocal remaining
        remaining -= event == "call"
        if remaining <= 0:
            _die()

    lock_folder, init = mec.pretraining.run.lock_folder, StepCsv.__init__

    @contextmanager
    def counting_lock(out: Path) -> Iterator[None]:
        with lock_folder(out):
            sys.setprofile(count_calls)
            yield

    def counting_init(*args: Any) -> None:
        sys.setprofile(count_calls)
        init(*args)

    assert start in CALL_MOMENTS
    if start == "locked":
        mec.pretraining.run.lock_folder = counting_lock
    else:
        StepCsv.__init__ = counting_init  # type: ignore[method-assign,assignment]


def _die_in_checkpoint(moment: str, number: int) -> None:
    """Die at ``moment``, one of ``CHECKPOINT_MOMENTS``, of the ``number``-th checkpoint."""
    remaining = number
    save, replace, unlink = torch.save, Path.replace, Path.unlink

    def save_half(content: Any, file: BinaryIO) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining:
            return save(content, file)
        buffer = io.BytesIO()
        save(content, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        _die()

    def die_after(method: Callable[..., Any], counts: Callable[[str], bool]) -> Callable[..., Any]:
        def wrapper(path: Path, *args: Any, **kwargs: Any) -> Any:
            nonlocal remaining
            result = method(path, *args, **kwargs)
            remaining -= counts(Path(args[0] if args else path).name)
            if remaining <= 0:
                _die()
            return result

        return wrapper

    if moment == "half written":
        torch.save = save_half
    elif moment == "without checksum":
        Path.replace = die_after(replace, lambda name: name.startswith("step=") and "-" not in name)  # type: ignore
    elif moment == "with checksum":
        Path.replace = die_after(replace, lambda name: name.startswith("step=") and "-" in name)  # type: ignore
    elif moment == "pruned":
        Path.unlink = die_after(unlink, lambda name: name.startswith("step="))  # type: ignore
