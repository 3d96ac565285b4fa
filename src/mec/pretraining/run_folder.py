"""The run folder: the files written before the first step, and ``Run``, which reads it."""

from __future__ import annotations

import csv
import json
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from torch import nn

from mec.data.dataset import DataLike, ImageDataset, data_name, describe, is_path
from mec.distributed import is_rank_zero
from mec.engine.checkpoints import latest_checkpoint
from mec.engine.loggers import IDS_FILE
from mec.engine.progress import METRICS_FILE
from mec.engine.run_folder import check_same_settings
from mec.errors import InputError
from mec.files import atomic_write
from mec.models.baseline import START_FILE, UNTRAINED_FILE, find_start
from mec.models.checkpoint_files import CHECKPOINTS_FOLDER
from mec.models.encoder import Encoder
from mec.models.io import SPEC_FILE, WEIGHTS_FILE, load_encoder, load_start, save_encoder, save_weights, write_spec
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import make_recipe, read_settings
from mec.results import command_line

logger = logging.getLogger("mec")

RECIPE_FILE, ENVIRONMENT_FILE = "recipe.yaml", "environment.json"
DATA_OBJECT = "data_object"  # the layout of images that were passed as an object, which no other process can open
CHANGEABLE_ON_RESUME = ("accelerator.", "devices.", "nodes.", "workers.", "log_every.", "speed.", "max_corrupt.")
"""Settings that may change when a run is resumed: they affect where and how fast it runs, not what it computes."""


@dataclass(frozen=True)
class Run:
    """A run folder: ``folder`` is its path, ``network`` the encoder's network if it is not from timm."""

    folder: Path
    network: nn.Module | None = field(default=None, repr=False, compare=False)

    def encoder(self) -> Encoder:
        """Load the trained encoder, in evaluation mode."""
        return load_encoder(self.folder, **({} if self.network is None else {"backbone": self.network}))

    def start(self) -> Encoder:
        """Load the trained encoder that the run started from."""
        encoder = load_start(self.folder)
        encoder.origin = self.recipe().parts["encoder"]
        return encoder

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


def describe_environment(
    data: DataLike, dataset: ImageDataset, batch_size: int, trainer: lightning.Trainer
) -> dict[str, Any]:
    """Return what environment.json holds: data, command, machine and versions."""
    return {
        "data": data_name(data),
        **({} if is_path(data) else {DATA_OBJECT: dataset.layout}),
        "working_directory": os.getcwd(),
        "dataset": describe(dataset),
        "images": len(dataset),
        "classes": len(dataset.classes),
        "batch_size": batch_size,
        "command": command_line(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "world_size": trainer.world_size,
        "precision": trainer.precision,
        "packages": {name: version(name) for name in ("mec-ssl", "torch", "timm", "lightning", "torchvision")},
    }


def _read_environment(out: Path) -> dict[str, Any]:
    path = out / ENVIRONMENT_FILE
    environment: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return environment


def recorded_precision(out: Path) -> str | None:
    """Return the precision of the run in a folder; None without a run."""
    return _read_environment(out).get("precision")


def check_same_recipe(first: Recipe, recipe: Recipe) -> None:
    """Raise InputError if a recipe differs from that of the run so far in what may not change."""
    for part in sorted(first.parts.keys() | recipe.parts.keys()):
        if (expected := first.parts.get(part, "none")) != (got := recipe.parts.get(part, "none")):
            raise InputError(f"{part}: expected {expected} of the run so far, got {got}; pass it to mec.pretrain")
    if first.minutes is not None:  # then steps is the latest plan
        recipe = replace(recipe, steps=first.steps)
    check_same_settings(first.as_dict(), recipe.as_dict(), CHANGEABLE_ON_RESUME)


def check_resumable(out: Path, recipe: Recipe, environment: Mapping[str, Any]) -> None:
    """Raise InputError if a run is resumed with another recipe, other data, or another batch size or precision."""
    check_same_recipe(Run(out).recipe(), recipe)
    before = _read_environment(out)
    # a path may change, because a folder may move; an object has only its name and layout
    names = ("data", DATA_OBJECT) if DATA_OBJECT in before else ()
    for name in (*names, "images", "batch_size", "precision"):
        now = environment.get(name, "a path")
        if name in before and before[name] != now:
            raise InputError(f"resume: {name}: expected {before[name]} as in the run so far, got {now}")


def write_run_files(
    out: Path, recipe: Recipe, encoder: Encoder, start: Encoder | None, environment: Mapping[str, Any]
) -> None:
    """Write encoder.json, environment.json and recipe.yaml, before the first step, and the trained encoder ``start``,
    or the weights of an untrained one if they depend on the images. A resumed run keeps the environment that it was
    started in, and adds the present one to ``resumed``."""
    if contains_run(out):
        first = _read_environment(out)
        environment = first | {"resumed": [*first.get("resumed", []), environment]} if first else environment
    # the encoder's weights are written at the end; checkpoints need its description before
    write_spec(encoder, out / SPEC_FILE)
    if find_start(out) is None and start is not None:
        save_encoder(start, out, START_FILE)
    elif find_start(out) is None and recipe.setting("whiten_stem"):
        save_weights(encoder, out / UNTRAINED_FILE)
    with atomic_write(out / ENVIRONMENT_FILE) as path:
        path.write_text(json.dumps(environment, indent=2) + "\n")
    _write_recipe(out, recipe)  # last, because it marks the folder as a run


def write_steps(out: Path, recipe: Recipe, steps: int) -> None:
    """Write recipe.yaml with the number of steps that a training of some minutes is planned to have."""
    _write_recipe(out, replace(recipe, steps=max(1, steps)))


def _write_recipe(out: Path, recipe: Recipe) -> None:
    with atomic_write(out / RECIPE_FILE) as path:
        path.write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))


def check_settings(out: Path, recipe: Recipe) -> None:
    """Raise InputError if a folder holds a run with weights or checkpoints that another recipe would refuse to resume.
    What is determined at the start of a run, such as a number of channels that is null, is not compared."""
    if contains_run(out) and ((out / WEIGHTS_FILE).exists() or any((out / CHECKPOINTS_FOLDER).glob("*"))):
        first = Run(out).recipe()
        unknown = {"channels"} if recipe.channels is None else set()
        unknown |= {"whiten_stem"} if recipe.whiten_stem is None else set()
        unknown |= {"precision"} if recipe.precision == "auto" else set()
        unknown |= {"image_size"} if "view_transform" in recipe.parts else set()
        check_same_recipe(first, replace(recipe, **{name: getattr(first, name) for name in unknown}))


def run_exists_error(out: Path) -> InputError:
    return InputError(f"out: {out} already contains a run; choose another folder, or continue it with --resume")


def find_checkpoint(out: Path, recipe: Recipe, environment: dict[str, Any]) -> Path | None:
    """Return the checkpoint to resume from; None if there is none yet."""
    if not contains_run(out):
        logger.info(f"{out} contains no run yet: starting")
        return None
    try:
        check_resumable(out, recipe, environment)
    except InputError:
        if (out / WEIGHTS_FILE).exists() or any((out / CHECKPOINTS_FOLDER).glob("*")):
            raise
        logger.info(f"{out} contains no checkpoint yet: starting, with other settings than before")
        if is_rank_zero():
            (out / ENVIRONMENT_FILE).unlink(missing_ok=True)
            (out / IDS_FILE).unlink(missing_ok=True)
        return None
    checkpoint = latest_checkpoint(out)
    logger.info(f"resuming from {checkpoint}" if checkpoint else f"{out} contains no checkpoint yet: starting")
    return checkpoint
