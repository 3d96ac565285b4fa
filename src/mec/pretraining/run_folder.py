"""A run folder: who may write to it, what stands in it from the first step on, and what can be read from it."""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from filelock import FileLock, Timeout

from mec.data.dataset import ImageDataset
from mec.distributed import is_rank_zero
from mec.engine.checkpoints import sweep
from mec.errors import InputError
from mec.files import atomic_write
from mec.models.encoder import Encoder
from mec.models.io import SPEC_FILE, load_encoder
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import differences, make_recipe, read_recipe

RECIPE, ENVIRONMENT, LOCK = "recipe.yaml", "environment.json", ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LINGER = 5.0
"""Seconds that loader processes of a run that was killed may outlive it, and hold its folder."""
MAY_CHANGE = ("accelerator:", "devices:", "nodes:", "workers:", "log_every:", "speed.")
"""Settings of where and how fast a run goes on, not of what it computes."""


@dataclass(frozen=True)
class Run:
    """A run folder and what can be read from it.

    Attributes:
        folder: its path.
    """

    folder: Path

    def encoder(self) -> Encoder:
        """The trained encoder, in evaluation mode."""
        return load_encoder(self.folder)

    def recipe(self) -> Recipe:
        """The recipe as it was resolved."""
        return make_recipe(read_recipe(self.folder / RECIPE))

    def metrics(self) -> list[dict[str, float]]:
        """Rows of metrics.csv."""
        with (self.folder / "metrics.csv").open(newline="") as file:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]

    def __fspath__(self) -> str:
        return str(self.folder)


def holds_run(out: Path) -> bool:
    return (out / RECIPE).exists()


@contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder is this run's alone until the block, or the process, ends.

    Raises:
        InputError: another process trains into it, it cannot be written to, or its disk is full.
    """
    if not is_rank_zero():
        yield
        return
    lock = FileLock(out / LOCK, timeout=LINGER)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"out: another process is training into {out}; wait for it, or take another folder") from error
    except NotImplementedError:  # some network file systems have no locks
        pass
    except OSError as error:
        raise InputError(f"out: {out} cannot be written to ({error.strerror or error})") from error
    of_threads = threading.excepthook
    threading.excepthook = lambda args: None if _is_full(args.exc_value) else of_threads(args)  # they raise it here too
    try:
        sweep(out)
        yield
    except OSError as error:
        if not _is_full(error):
            raise
        raise InputError(
            f"out: {error.filename or out} cannot be written ({error.strerror}); free some space: --resume goes on "
            "from the last checkpoint"
        ) from error
    finally:
        threading.excepthook = of_threads
        lock.release()


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in FULL


def environment_of(data: Any, dataset: ImageDataset, batch: int, trainer: lightning.Trainer) -> dict[str, Any]:
    """What a run runs on: data, machine, versions."""
    return {
        "data": str(data),
        "directory": os.getcwd(),
        "images": len(dataset),
        "classes": len(dataset.classes),
        "batch": batch,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": trainer.world_size,
        "precision": trainer.precision,
        "packages": {name: version(name) for name in ("mec-ssl", "torch", "timm", "lightning", "torchvision")},
    }


def check_same(out: Path, recipe: Recipe, environment: Mapping[str, Any]) -> None:
    """Refuse to go on with another recipe than the run was begun with, or where it comes to something else."""
    changed = [d for d in differences(Run(out).recipe(), recipe) if not d.startswith(MAY_CHANGE)]
    if changed:
        raise InputError(f"resume: the recipe differs from the run's: {'; '.join(changed)}")
    before = json.loads((out / ENVIRONMENT).read_text()) if (out / ENVIRONMENT).exists() else {}
    for name, words in (("images", "images"), ("batch", "images in a step"), ("precision", "precision")):
        if name in before and before[name] != environment[name]:
            raise InputError(f"resume: {words}: {before[name]} when the run was begun, here {environment[name]}")


def begin(out: Path, recipe: Recipe, encoder: Encoder, environment: Mapping[str, Any]) -> None:
    """Write down what is run, before the first step."""
    # beside the weights at the end; the checkpoints need it before
    with atomic_write(out / SPEC_FILE) as path:
        path.write_text(json.dumps(encoder.spec.as_dict(), indent=2) + "\n")
    with atomic_write(out / ENVIRONMENT) as path:
        path.write_text(json.dumps(environment, indent=2) + "\n")
    with atomic_write(out / RECIPE) as path:  # last: with it the folder holds a run
        path.write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
