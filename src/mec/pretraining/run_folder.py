"""The run folder: its lock, the files written before the first step, and ``Run``, which reads it."""

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
from mec.engine.checkpoints import remove_temporary_files
from mec.errors import InputError
from mec.files import atomic_write
from mec.models.encoder import Encoder
from mec.models.io import SPEC_FILE, load_encoder
from mec.pretraining.progress import METRICS_FILE
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import differences, make_recipe, read_settings

RECIPE_FILE, ENVIRONMENT_FILE, LOCK_FILE = "recipe.yaml", "environment.json", ".lock"
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOCK_TIMEOUT = 5.0
"""Seconds to wait for the lock: loader processes of a killed run hold it until they exit."""
CHANGEABLE_ON_RESUME = ("accelerator:", "devices:", "nodes:", "workers:", "log_every:", "speed.")
"""Settings that may change when a run is resumed: they affect where and how fast it runs, not what it computes."""


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: its path.
    """

    folder: Path

    def encoder(self) -> Encoder:
        """Load the trained encoder, in evaluation mode."""
        return load_encoder(self.folder)

    def recipe(self) -> Recipe:
        """Load the recipe, with every setting resolved."""
        return make_recipe(read_settings(self.folder / RECIPE_FILE))

    def metrics(self) -> list[dict[str, float]]:
        """Read the rows of metrics.csv."""
        with (self.folder / METRICS_FILE).open(newline="") as file:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]

    def __fspath__(self) -> str:
        return str(self.folder)


def contains_run(folder: Path) -> bool:
    return (folder / RECIPE_FILE).exists()


@contextmanager
def lock_run_folder(out: Path) -> Iterator[None]:
    """Create the folder and lock it for this run, until the block or the process ends.

    Raises:
        InputError: another process trains into the folder, it is not writable, or the disk is full.
    """
    if not is_rank_zero():
        yield
        return
    lock = FileLock(out / LOCK_FILE, timeout=LOCK_TIMEOUT)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"out: another process is training into {out}; wait for it, or take another folder") from error
    except NotImplementedError:  # some network file systems have no locks
        pass
    except OSError as error:
        raise InputError(f"out: {out} cannot be written to ({error.strerror or error})") from error
    original_hook = threading.excepthook
    # a full disk raises in the threads of loggers too: the main thread reports it once
    threading.excepthook = lambda args: None if _is_disk_full(args.exc_value) else original_hook(args)
    try:
        remove_temporary_files(out)
        yield
    except OSError as error:
        if not _is_disk_full(error):
            raise
        raise InputError(
            f"out: {error.filename or out} cannot be written ({error.strerror}); free some space, then continue from "
            "the last checkpoint with --resume"
        ) from error
    finally:
        threading.excepthook = original_hook
        lock.release()


def _is_disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS


def describe_environment(
    data: Any, dataset: ImageDataset, batch_size: int, trainer: lightning.Trainer
) -> dict[str, Any]:
    """Return what environment.json holds: data, command, machine and versions."""
    return {
        "data": str(data),
        "working_directory": os.getcwd(),
        "images": len(dataset),
        "classes": len(dataset.classes),
        "batch_size": batch_size,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "world_size": trainer.world_size,
        "precision": trainer.precision,
        "packages": {name: version(name) for name in ("mec-ssl", "torch", "timm", "lightning", "torchvision")},
    }


def check_resumable(out: Path, recipe: Recipe, environment: Mapping[str, Any]) -> None:
    """Refuse to resume a run with another recipe, other data, or another effective batch size or precision.

    Raises:
        InputError: the differences.
    """
    changed = [d for d in differences(Run(out).recipe(), recipe) if not d.startswith(CHANGEABLE_ON_RESUME)]
    if changed:
        raise InputError(f"resume: the recipe differs from that of the run: {'; '.join(changed)}")
    path = out / ENVIRONMENT_FILE
    before = json.loads(path.read_text()) if path.exists() else {}
    for name in ("images", "batch_size", "precision"):
        if name in before and before[name] != environment[name]:
            raise InputError(f"resume: {name}: expected {before[name]} as in the run so far, got {environment[name]}")


def write_run_files(out: Path, recipe: Recipe, encoder: Encoder, environment: Mapping[str, Any]) -> None:
    """Write encoder.json, environment.json and recipe.yaml, before the first step."""
    # the encoder's weights are written at the end; checkpoints need its description before
    with atomic_write(out / SPEC_FILE) as path:
        path.write_text(json.dumps(encoder.spec.as_dict(), indent=2) + "\n")
    with atomic_write(out / ENVIRONMENT_FILE) as path:
        path.write_text(json.dumps(environment, indent=2) + "\n")
    with atomic_write(out / RECIPE_FILE) as path:  # last, because it marks the folder as a run
        path.write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
