"""``pretrain``: from pictures to a run folder with an encoder in it."""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from mec.checkpoints import KeepLatest, newest_checkpoint
from mec.data.images import Images, summary
from mec.data.loading import training_loader, training_sampler
from mec.data.pixels import Reading
from mec.data.skipped import Skipped
from mec.data.sources import open_images
from mec.data.survey import measure_colours, settle, survey
from mec.errors import InputError
from mec.files import is_first_process, replacing
from mec.models.encoder import Encoder, create_encoder
from mec.models.files import SPEC, load_encoder, save_encoder
from mec.trainer import make_trainer
from mec.training.module import Pretraining
from mec.training.progress import RunProgress
from mec.training.recipe import Recipe
from mec.training.recipe_files import differences, load_recipe, make_recipe, read_recipe
from mec.training.skipping import SkipBroken
from mec.training.warnings import HealthWarnings

SKIPPED = "skipped.csv"
CHECKPOINT_STEPS = 200
"""Fewest steps between two checkpoints; they are written at the ends of epochs."""


@dataclass(frozen=True)
class Run:
    """A run folder and what can be read from it."""

    folder: Path

    def encoder(self) -> Encoder:
        """The trained encoder, in evaluation mode."""
        return load_encoder(self.folder)

    def recipe(self) -> Recipe:
        """The recipe as it was resolved."""
        return make_recipe(read_recipe(self.folder / "recipe.yaml"))

    def metrics(self) -> list[dict[str, float]]:
        """Rows of metrics.csv."""
        with (self.folder / "metrics.csv").open(newline="") as file:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]

    def __fspath__(self) -> str:
        return str(self.folder)


def default_recipe(data: str | os.PathLike[str]) -> str:
    """The packaged recipe that fits a source: one made for it, else ``small``."""
    return {"digits": "digits", "cifar10": "cifar10-resnet18"}.get(str(data).lower(), "small")


def pretrain(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe | str | os.PathLike[str] | None = None,
    resume: bool = False,
    console: Console | None = None,
    callbacks: Sequence[lightning.Callback] = (),
) -> Run:
    """Learn an encoder from pictures, without labels.

    Args:
        data: a folder of pictures, shards, a table, a video, an .npz file or a named set (see ``mec.open_images``).
            Its unlabelled part is used where there is one, else its training part, else every picture.
        out: the run folder; it is made, and must not hold another run.
        recipe: a Recipe, the name of a packaged one or a path; None takes the one that fits the data.
        resume: go on from the newest checkpoint in ``out``, with the recipe it was started with.
        console: where progress goes; None is standard error.
        callbacks: more of lightning's, such as ``mec.evaluate.OnlineProbe``.

    Returns:
        The run: its folder holds recipe.yaml, environment.json, metrics.csv, TensorBoard events, checkpoints/,
        encoder.safetensors and encoder.json; and skipped.csv where pictures could not be read.

    Raises:
        InputError: what is wrong with the data, the folder or the recipe, before anything is written; or that
            training diverged.
    """
    console = console or Console(stderr=True)
    out = Path(out)
    recipe = _resolve(recipe, data, out, resume)
    with console.status("looking for pictures"):
        images = open_images(data, "pretrain", every=recipe.every)
        reading = survey(images, recipe.channels, recipe.background)
    recipe = replace(recipe, channels=reading.channels)
    checkpoint = newest_checkpoint(out) if resume else None
    if resume:
        before = make_recipe(read_recipe(out / "recipe.yaml"))
        if changed := differences(before, recipe):
            raise InputError(f"resume: the recipe differs from the run's: {'; '.join(changed)}")

    lightning.seed_everything(recipe.seed, verbose=False)
    skipped = Skipped(recipe.max_broken, len(images))
    with console.status("reading the pictures"):
        found = summary(images)
        images, lost = settle(images, reading)
        if lost:  # it was taken into memory, so all of it was tried
            skipped.add(lost, skipped.pictures)
        encoder = _new_encoder(recipe, reading, images)
    if len(images) < 2:
        raise InputError(f"data: expected at least 2 pictures, got {len(images)}")
    trainer = _trainer(recipe, out, console, skipped, callbacks)
    processes = trainer.world_size
    batch = min(recipe.batch_size, len(images)) // processes
    if batch < 2:
        asked = f"{recipe.batch_size} of {len(images)} pictures over {processes} processes"
        raise InputError(f"batch_size: {asked} leaves {batch} for each, expected at least 2")
    sampler = training_sampler(images, batch, recipe.seed, trainer.global_rank, processes)
    steps = len(sampler) * recipe.epochs
    warmup = min(round(recipe.optimiser.warmup_epochs * len(sampler)), steps // 4)
    module = Pretraining(recipe, encoder, batch * processes, steps, warmup)
    device = trainer.strategy.root_device
    loader = training_loader(images, module.views, sampler, reading, device, recipe.workers)
    if trainer.is_global_zero:
        _begin(out, recipe, data, images, encoder, trainer)
        skipped.list_in(out / SKIPPED)
        size = f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M parameters"
        console.print(
            f"{found} -> {recipe.backbone} ({size}), {recipe.epochs} epochs of "
            f"{len(sampler)} steps of {batch * processes} pictures at {recipe.image_size} px on "
            f"{trainer.num_devices * trainer.num_nodes} x {device.type}",
            highlight=False,
            soft_wrap=True,
        )
    _fit(trainer, module, loader, checkpoint)
    if trainer.is_global_zero:
        save_encoder(encoder, out)
        if len(skipped):
            console.print(
                f"skipped {len(skipped):,} that could not be read; others took their places: {out / SKIPPED}",
                highlight=False,
                soft_wrap=True,
            )
        console.print(f"encoder written to {out}", highlight=False, soft_wrap=True)
    trainer.strategy.barrier()
    return Run(out)


def _resolve(recipe: Recipe | str | os.PathLike[str] | None, data: Any, out: Path, resume: bool) -> Recipe:
    holds_run = (out / "recipe.yaml").exists()
    if resume and not holds_run:
        raise InputError(f"resume: {out} holds no run")
    if not resume and holds_run and is_first_process():  # another may come when the first has begun the run
        raise InputError(f"out: {out} already holds a run; take another folder, or --resume")
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {out} is a file, expected a folder")
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is None:
        recipe = out / "recipe.yaml" if resume else default_recipe(data)
    return load_recipe(recipe)


def _new_encoder(recipe: Recipe, reading: Reading, images: Images) -> Encoder:
    ordinary = reading.channels == 3 and reading.value_range is None
    mean, std = (None, None) if ordinary else measure_colours(images, reading)
    return create_encoder(
        recipe.backbone,
        recipe.image_size,
        reading.channels,
        recipe.small_stem,
        mean,
        std,
        recipe.backbone_options,
        reading.value_range,
        reading.background,
    )


def _trainer(
    recipe: Recipe, out: Path, console: Console, skipped: Skipped, callbacks: Sequence[lightning.Callback]
) -> lightning.Trainer:
    return make_trainer(
        out,
        recipe.devices,
        recipe.nodes,
        recipe.precision,
        recipe.accelerator,
        max_epochs=recipe.epochs,
        logger=TensorBoardLogger(out, name="", version="tensorboard"),
        callbacks=[
            SkipBroken(skipped),
            RunProgress(out, console),
            HealthWarnings(console),
            *callbacks,
            KeepLatest(out / "checkpoints", CHECKPOINT_STEPS),
        ],
        # PyTorch has it for GPUs only; alone it changes nothing
        sync_batchnorm=recipe.accelerator in ("auto", "gpu") and torch.cuda.is_available(),
    )


def _begin(out: Path, recipe: Recipe, data: Any, images: Images, encoder: Encoder, trainer: lightning.Trainer) -> None:
    # beside the weights at the end; the checkpoints need it before
    with replacing(out / SPEC) as path:
        path.write_text(json.dumps(encoder.spec.as_dict(), indent=2) + "\n")
    with replacing(out / "recipe.yaml") as path:
        path.write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
    environment = {
        "data": str(data),
        "pictures": len(images),
        "classes": len(images.classes),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": trainer.world_size,
        "precision": trainer.precision,
        "packages": {name: version(name) for name in ("mec-ssl", "torch", "timm", "lightning", "torchvision")},
    }
    with replacing(out / "environment.json") as path:
        path.write_text(json.dumps(environment, indent=2) + "\n")


def _fit(trainer: lightning.Trainer, module: Pretraining, loader: Any, checkpoint: Path | None) -> None:
    with warnings.catch_warnings():
        # lightning advises more workers, fewer log steps ...: what it warns of here is decided above
        warnings.filterwarnings("ignore", module="lightning")
        try:
            trainer.fit(module, loader, ckpt_path=checkpoint)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"workers: a loader process ended ({' '.join(str(error).split())}). Most often memory ran out: take "
                "fewer workers; --resume goes on from the last checkpoint"
            ) from error
        except SystemExit as error:  # lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from error
