"""``pretrain``: from images to a run folder with an encoder in it."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from mec.data.analysis import channel_statistics, infer_pixel_format, load_into_memory
from mec.data.corrupt import CorruptLog
from mec.data.dataset import ImageDataset, describe
from mec.data.datasets import open_dataset
from mec.data.loaders import training_loader, training_sampler
from mec.data.pixels import PixelFormat
from mec.data.samplers import EpochSampler, StepSampler
from mec.distributed import is_rank_zero
from mec.engine.checkpoints import latest_checkpoint, step_of
from mec.engine.trainer import make_trainer, native_bfloat16
from mec.errors import InputError
from mec.models.encoder import Encoder, create_encoder, enable_gradient_checkpointing
from mec.models.io import save_encoder
from mec.models.sync_batch_norm import convert_sync_batch_norm
from mec.pretraining.checkpointing import PREEMPTED, PreemptionCheckpoint, StoppedError
from mec.pretraining.corrupt_images import CorruptImageCallback
from mec.pretraining.health_warnings import HealthWarnings
from mec.pretraining.module import Pretraining
from mec.pretraining.progress import RunProgress
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import load_recipe
from mec.pretraining.run_folder import RECIPE, Run, begin, check_same, environment_of, held, holds_run

SKIPPED = "skipped.csv"
POINT_SIZE = 16
"""Views of up to so many pixels a side are a single one before the last strided convolution. Of such a convolution
PyTorch's CPU gradient in bfloat16 is partly memory that nobody wrote (oneDNN, torch 2.11 to 2.15)."""
COMPILED_STEPS = 2000
"""Fewest steps of a run on a GPU that pay for the minute or two of compiling."""


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
    """Learn an encoder from images, without labels.

    A run that is stopped at any moment and resumed ends with the weights of one that was not. SIGTERM and Ctrl-C save
    first; after SIGTERM the process ends with status 75, for a scheduler to start it again.

    Args:
        data: a folder of images, shards, a table, a video, an .npz file or a named set (see ``mec.open_dataset``).
            Its unlabeled part is used where there is one, else its training part, else every image.
        out: the run folder; it is made, and must not hold another run.
        recipe: a Recipe, the name of a packaged one or a path; None takes the one that fits the data.
        resume: go on from the newest sound checkpoint in ``out``, with the recipe it was started with; where there is
            none yet, begin.
        console: where progress goes; None is standard error.
        callbacks: more of lightning's, such as ``mec.pretraining.OnlineProbe``.

    Returns:
        The run: its folder holds recipe.yaml, environment.json, metrics.csv, TensorBoard events, checkpoints/,
        encoder.safetensors and encoder.json; and skipped.csv where images could not be read.

    Raises:
        InputError: what is wrong with the data, the folder or the recipe, before anything is written; that another
            process trains into the folder, that the disk is full, or that training diverged.
        KeyboardInterrupt: after Ctrl-C.
        SystemExit: after SIGTERM.
    """
    console = console or Console(stderr=True)
    out = Path(out).expanduser()
    recipe = _resolve(recipe, data, out, resume)
    with console.status("looking for images"):
        dataset = open_dataset(data, "pretrain", subsample=recipe.subsample, frame_stride=recipe.frame_stride)
        reading = infer_pixel_format(dataset, recipe.channels, recipe.background)
    recipe = replace(recipe, channels=reading.channels)
    lightning.seed_everything(recipe.seed, verbose=False)
    skipped = CorruptLog(recipe.max_corrupt, len(dataset), "max_corrupt")
    with console.status("reading the images"):
        found = describe(dataset)
        dataset, lost = load_into_memory(dataset, reading)
        if lost:  # it was taken into memory, so all of it was tried
            skipped.add(lost, skipped.images)
        encoder = _new_encoder(recipe, reading, dataset)
    if len(dataset) < 2:
        raise InputError(f"data: expected at least 2 images, got {len(dataset)}")
    trainer = _trainer(recipe, out, console, skipped, callbacks)
    sampler = _sampler(recipe, dataset, trainer)
    steps = len(sampler) * recipe.epochs
    module = _module(recipe, encoder, sampler, steps, trainer)
    device = trainer.strategy.root_device
    loader = training_loader(dataset, module.views, sampler, reading, device, recipe.workers, trainer.num_devices)
    environment = environment_of(data, dataset, module.batch, trainer)

    with held(out):
        checkpoint = _go_on(out, recipe, environment, console) if resume else None
        if checkpoint is not None:
            sampler.resume_at(*divmod(step_of(checkpoint), len(sampler)))
        if trainer.is_global_zero:
            if not resume and holds_run(out):
                raise _taken(out)
            begin(out, recipe, encoder, environment)
            skipped.list_in(out / SKIPPED)
            size = f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M parameters"
            say(
                console,
                f"{found} -> {recipe.backbone} ({size}), {recipe.epochs} epochs of {len(sampler)} steps of "
                f"{module.batch} images at {recipe.image_size} px on {trainer.world_size} x {device.type}",
            )
        _fit(trainer, module, loader, checkpoint, console)
        trained = module.whole_encoder()
        if trainer.is_global_zero:
            save_encoder(trained, out)
            if len(skipped):
                say(
                    console,
                    f"skipped {len(skipped):,} that could not be read; others took their places: {out / SKIPPED}",
                )
            say(console, f"encoder written to {out}")
        trainer.strategy.barrier()
    return Run(out)


def _resolve(recipe: Recipe | str | os.PathLike[str] | None, data: Any, out: Path, resume: bool) -> Recipe:
    # another process of the same run may come when the first has begun it
    if not resume and holds_run(out) and is_rank_zero():
        raise _taken(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {out} is a file, expected a folder")
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is None:
        recipe = out / RECIPE if resume and holds_run(out) else default_recipe(data)
    return load_recipe(recipe)


def _taken(out: Path) -> InputError:
    return InputError(f"out: {out} already holds a run; take another folder, or --resume")


def _go_on(out: Path, recipe: Recipe, environment: dict[str, Any], console: Console) -> Path | None:
    """The checkpoint to go on from; None where the run begins."""
    if not holds_run(out):
        say(console, f"{out} holds no run yet: it begins")
        return None
    check_same(out, recipe, environment)
    checkpoint = latest_checkpoint(out, partial(say, console))
    say(console, f"going on from {checkpoint}" if checkpoint else f"{out} holds no checkpoint yet: from the beginning")
    return checkpoint


def _sampler(recipe: Recipe, dataset: ImageDataset, trainer: lightning.Trainer) -> EpochSampler | StepSampler:
    processes = trainer.world_size
    batch = min(recipe.batch_size, len(dataset)) // processes
    if batch < 2:
        asked = f"{recipe.batch_size} of {len(dataset)} images over {processes} processes"
        raise InputError(f"batch_size: {asked} leaves {batch} for each, expected at least 2")
    return training_sampler(dataset, batch, recipe.seed, trainer.global_rank, processes)


def _module(
    recipe: Recipe, encoder: Encoder, sampler: EpochSampler | StepSampler, steps: int, trainer: lightning.Trainer
) -> Pretraining:
    warmup = min(round(recipe.optimizer.warmup_epochs * len(sampler)), steps // 4)
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(encoder)
    module = Pretraining(recipe, encoder, sampler.batch * trainer.world_size, steps, warmup)
    kind = trainer.strategy.root_device.type
    if trainer.world_size > 1:
        convert_sync_batch_norm(module.network, kind)
    wanted = recipe.speed.compile
    if wanted or (wanted is None and kind == "cuda" and steps >= COMPILED_STEPS):
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
        module.network.encoder.compile()
    return module


def _new_encoder(recipe: Recipe, reading: PixelFormat, dataset: ImageDataset) -> Encoder:
    ordinary = reading.channels == 3 and reading.value_range is None
    mean, std = (None, None) if ordinary else channel_statistics(dataset, reading)
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
    recipe: Recipe, out: Path, console: Console, skipped: CorruptLog, callbacks: Sequence[lightning.Callback]
) -> lightning.Trainer:
    gpu_there = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = recipe.accelerator == "cpu" or (recipe.accelerator == "auto" and not gpu_there)
    small = on_cpu and recipe.image_size <= POINT_SIZE
    if small and recipe.precision == "bf16-mixed":
        raise InputError(f"precision: expected 32-true for views of up to {POINT_SIZE} px on a CPU, got bf16-mixed")
    halved = recipe.precision == "auto" and on_cpu and native_bfloat16() and not small
    return make_trainer(
        out,
        recipe.devices,
        recipe.nodes,
        "bf16-mixed" if halved else recipe.precision,
        recipe.accelerator,
        recipe.strategy,
        max_epochs=recipe.epochs,
        logger=TensorBoardLogger(out, name="", version="tensorboard"),
        callbacks=[
            CorruptImageCallback(skipped),
            RunProgress(out, console),
            HealthWarnings(console),
            *callbacks,
            PreemptionCheckpoint(out / "checkpoints"),
        ],
    )


def _fit(
    trainer: lightning.Trainer, module: Pretraining, loader: Any, checkpoint: Path | None, console: Console
) -> None:
    with warnings.catch_warnings():
        # lightning advises more workers, fewer log steps ...: what it warns of here is decided above
        warnings.filterwarnings("ignore", module="lightning")
        # of sharded encoders, whose output nobody changes in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        try:
            trainer.fit(module, loader, ckpt_path=checkpoint)
        except StoppedError as stop:
            say(console, f"saved at step {trainer.global_step:,}; --resume goes on")
            if stop.signal == signal.SIGINT:
                raise KeyboardInterrupt from stop
            # one process reports it: of processes that end with an error lightning and torchrun kill the others
            raise SystemExit(PREEMPTED if trainer.is_global_zero else 0) from stop
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"workers: a loader process ended ({' '.join(str(error).split())}). Most often memory ran out: take "
                "fewer workers; --resume goes on from the last checkpoint"
            ) from error
        except SIGTERMException as error:  # before the first step
            raise SystemExit(PREEMPTED) from error
        except SystemExit as error:  # lightning turns a second Ctrl-C into an exit
            raise KeyboardInterrupt from error


def say(console: Console, line: str) -> None:
    if is_rank_zero():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
