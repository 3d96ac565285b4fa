"""``pretrain``: train an encoder on images, into a run folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import Logger
from torch import Tensor

from mec.data.analysis import infer_pixel_format, load_into_memory
from mec.data.corrupt import CorruptLog
from mec.data.dataset import DataLike
from mec.data.datasets import open_dataset
from mec.data.loaders import training_loader
from mec.data.splits import log_splits
from mec.data.transforms.custom import ViewTransform
from mec.data.transforms.dry_run import create_custom_views
from mec.data.transforms.multi_view import Views
from mec.distributed import is_rank_zero
from mec.embedding.extract import check_channels
from mec.engine.fsdp import full_encoder
from mec.engine.loggers import LoggersLike, check_loggers, open_loggers
from mec.engine.progress import ProgressBar
from mec.engine.run_folder import lock_folder
from mec.engine.trainer import compiled, running, seeded
from mec.errors import InputError
from mec.models.baseline import START_FILE
from mec.models.checkpoint_files import CHECKPOINTS_FOLDER, checkpoint_step
from mec.models.encoder import Encoder
from mec.models.io import SPEC_FILE, WEIGHTS_FILE, save_encoder, write_spec
from mec.pretraining.advice import FEW_IMAGES, PRETRAINED
from mec.pretraining.assembly import create_module, create_sampler, create_trainer
from mec.pretraining.distillation import TARGETS_FILE, Distillation
from mec.pretraining.parts import Parts, resolve_parts
from mec.pretraining.precision import choose_precision
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import default_recipe, load_recipe
from mec.pretraining.run_folder import (
    RECIPE_FILE,
    Run,
    contains_run,
    describe_environment,
    find_checkpoint,
    run_exists_error,
    write_run_files,
    write_steps,
)
from mec.pretraining.start_encoder import (
    StartEncoder,
    check_same_network,
    copy_start,
    create_start_encoder,
    own_network,
    whiten_start,
    with_value_range,
)
from mec.pretraining.start_guard import BEST_FILE, StartGuard
from mec.pretraining.time_budget import limit_training

logger = logging.getLogger("mec")

CORRUPT_FILE = "corrupt.csv"
MIN_STEPS_TO_COMPILE = 2000
"""Shorter runs on a GPU do not repay the minute or two that compilation takes."""


def pretrain(
    data: DataLike,
    out: str | os.PathLike[str],
    recipe: Recipe | str | os.PathLike[str] | None = None,
    resume: bool = False,
    callbacks: Sequence[lightning.Callback] = (),
    *,
    encoder: StartEncoder | None = None,
    distill_from: Encoder | None = None,
    objective: Callable[..., Tensor] | None = None,
    view_transform: ViewTransform | None = None,
    loggers: LoggersLike = None,
) -> Run:
    """Pretrain an encoder on images, without labels.

    A run that is stopped at any moment and resumed ends with the same weights as one that was not stopped. SIGTERM and
    Ctrl-C save a checkpoint first. After SIGTERM rank 0 exits with status 75, so that a scheduler restarts the run.

    Args:
        data: a folder of images, shards, a table, a video, an .npz file, a built-in name, or an object such as a
            dataset of torchvision (see ``mec.open_dataset``). Its unlabeled split is used if there is one, else its
            train split, else every image.
        out: the run folder; it is created, and must not contain another run.
        recipe: a Recipe, the name of a packaged one or a path; None takes the one that fits the data.
        resume: continue from the newest intact checkpoint in ``out``, with the recipe of the run; if there is no
            checkpoint yet, start.
        callbacks: further lightning callbacks, such as ``mec.pretraining.OnlineProbe``.
        encoder: the network, in place of the recipe's. A timm name, also one that you registered with
            ``timm.models.register_model``; an ``Encoder``, trained from its weights, with its normalization and, if
            the recipe has none, its image size (for trained weights the default recipe is ``adapt``); or any
            ``nn.Module`` from normalized images (n, c, h, w) to features (n, d), or to maps (n, d, h, w), of which the
            average is taken. It is copied, and your object stays unchanged. Seed PyTorch before you create a network
            with random weights: ``seed`` of the recipe does not determine them.
        distill_from: a trained encoder of any size. Its features of the whole images, of which the first principal
            components are taken, are the targets that all codes are to predict, in place of those of the other views.
            They are computed once, before the first step. The objective is mec, or an own one of (codes, targets). The
            default recipe is ``distill``.
        objective: a loss of your own in place of the recipe's: any callable ``(codes) -> scalar``, where codes are a
            tuple with a tensor (m, d) per view; with ``teacher.enabled`` it is ``(codes, targets) -> scalar``. With
            several processes it gets the codes of all. Optional attributes: ``health`` (the same arguments, returns
            further columns of metrics.csv by name), ``schedule`` and ``warmup`` (called before each step with the
            fraction of the training, and of the warm-up, that is done), ``targets`` ("student" or "teacher": adds
            targets without gradient, the codes of the network itself or of a teacher, and a predictor unless
            ``predictor`` is false), ``batch_norm`` (false: none after the projector), ``joins_processes`` (true: it
            gets the codes of its process and joins those of all itself). Its parameters are trained with the network.
            It is copied. docs/your-loss.md has examples.
        view_transform: makes the views in place of the recipe's augmentations. An nn.Module is given batches
            (n, c, h, w) in [0, 1] on the device. Any other callable, torchvision's modules included, is given one PIL
            image (a tensor (c, h, w) for more than 8 bits or other channels) in a loader process. Both return a list
            of views of one size, or a single view, for which they are called twice. Their size replaces image_size.
        loggers: names (csv, tensorboard, wandb, mlflow), also as "csv,wandb", or lightning loggers; None is csv and
            tensorboard. metrics.csv is always written. W&B and MLflow runs have the name of the run folder, and their
            files are in it, unless environment variables (WANDB_PROJECT, MLFLOW_TRACKING_URI, ...) choose otherwise.

    Returns:
        The run. Its folder contains recipe.yaml, environment.json, metrics.csv, TensorBoard events in tensorboard/,
        checkpoints/, encoder.safetensors and encoder.json; start.safetensors, the weights at the start, if they were
        trained, or untrained.safetensors if the images determine them (``whiten_stem``); targets.npy with
        ``distill_from``; and corrupt.csv if images could not be read.

    Raises:
        InputError: an argument is invalid (before anything is written), another process trains into the folder, the
            disk is full, or training diverged.
        KeyboardInterrupt: after Ctrl-C.
        SystemExit: after SIGTERM.
    """
    started, out = time.monotonic(), Path(out).expanduser()
    recipe = _resolve_recipe(recipe, data, out, resume, encoder, distill_from)
    if resume and encoder is None and (out / START_FILE).exists():
        encoder = Run(out).start()
    has_teacher = recipe.teacher.enabled
    teacher: Encoder | str | None = distill_from
    if resume and distill_from is None and (out / TARGETS_FILE).exists():
        teacher = recipe.parts.get("distill_from")
    recipe, objective = resolve_parts(recipe, encoder, objective, view_transform, teacher)
    if recipe.teacher.enabled and not has_teacher:
        logger.info("teacher.enabled: true, because the objective compares codes with those of a teacher")
    parts = Parts(encoder, objective, view_transform, distill_from)
    with seeded(recipe.seed):
        return _pretrain(data, out, recipe, resume, callbacks, parts, check_loggers(loggers), started)


def _pretrain(
    data: DataLike,
    out: Path,
    recipe: Recipe,
    resume: bool,
    callbacks: Sequence[lightning.Callback],
    parts: Parts,
    loggers: Sequence[str | Logger],
    started: float,
) -> Run:
    with ProgressBar("opening the images"):
        dataset = open_dataset(data, "pretrain", subsample=recipe.subsample, frame_stride=recipe.frame_stride)
        log_splits(data, {"": dataset})
        pixel_format = with_value_range(infer_pixel_format(dataset, recipe.channels, recipe.background), parts.encoder)
        recipe = replace(recipe, channels=pixel_format.channels)
        corrupt_log = CorruptLog(recipe.max_corrupt, len(dataset), "max_corrupt")
        dataset, corrupt = load_into_memory(dataset, pixel_format)
        if corrupt:  # every image was read: corrupt ones are only returned with a dataset in memory
            corrupt_log.add(corrupt, corrupt_log.num_images)
        views: Views | None = None
        if (transform := parts.view_transform) is not None:
            views = create_custom_views(transform, dataset, pixel_format, recipe.global_size, recipe.seed)
            recipe = replace(recipe, image_size=views.size, resolution_schedule=None)
        statistics = None if views is None else views.statistics
        encoder = create_start_encoder(recipe, pixel_format, dataset, parts.encoder, statistics)
        recipe = whiten_start(recipe, encoder, dataset, pixel_format)
    if len(dataset) < 2:
        raise InputError(f"data: expected at least 2 images, got {len(dataset)}")
    precision = choose_precision(recipe, encoder, out, resume)
    if recipe.patience is not None and not encoder.is_trained:
        raise InputError(f"patience: expected null for an encoder without trained weights, got {recipe.patience}")
    start = guard = None
    if encoder.is_trained and isinstance(parts.encoder, Encoder):
        start = copy_start(parts.encoder, pixel_format, statistics).eval()
        guard = StartGuard(dataset, recipe.patience, start)
    callbacks = [*callbacks, *([] if guard is None else [guard])]
    if "distill_from" in recipe.parts:
        if parts.teacher is not None:
            check_channels(dataset, parts.teacher, data)
        callbacks.append(Distillation(dataset, parts.teacher, recipe.workers))
    trainer = create_trainer(recipe, precision, out, corrupt_log, callbacks)
    sampler = create_sampler(recipe, dataset, trainer)
    module = create_module(recipe, encoder, sampler, trainer, parts.objective, views)
    limit_training(trainer, module, started, partial(write_steps, out, recipe))
    device = trainer.strategy.root_device
    size_of = None if recipe.resolution_schedule is None else lambda n: recipe.view_size(n, trainer.max_epochs or 1)
    loader = training_loader(
        dataset, module.views, sampler, pixel_format, device, recipe.workers, trainer.num_devices, size_of
    )
    environment = describe_environment(data, dataset, module.batch_size, trainer)

    with lock_folder(out), ExitStack() as stack:
        checkpoint = find_checkpoint(out, recipe, environment) if resume else None
        if checkpoint is not None:
            check_same_network(checkpoint, parts.encoder)
            sampler.resume_at(*divmod(checkpoint_step(checkpoint), len(sampler)))
        if resume and (out / WEIGHTS_FILE).exists():  # its checkpoints may have been deleted
            logger.info(f"{out} is finished")
            return Run(out, own_network(parts.encoder))
        stack.enter_context(open_loggers(trainer, loggers, out, recipe.as_dict(), resume))
        if trainer.is_global_zero:
            if not resume and contains_run(out):
                raise run_exists_error(out)
            write_run_files(out, recipe, encoder, start, environment)
            corrupt_log.write_to(out / CORRUPT_FILE)
        parameters = f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.3g} M parameters"
        logger.info(
            f"{len(dataset):,} images -> {encoder.spec.backbone} ({parameters}), {recipe.length} of {len(sampler)} "
            f"steps of {module.batch_size} images at {recipe.image_size} px on {trainer.world_size} x {device.type}"
        )
        is_from_scratch = not {"encoder", "distill_from"} & recipe.parts.keys()
        if len(dataset) < FEW_IMAGES and pixel_format.channels == 3 and is_from_scratch:
            logger.info(
                f"fewer than {FEW_IMAGES:,} images: trained weights are usually a far better start than random ones: "
                f"add --init {PRETRAINED}, with another --out"
            )
        if start is not None and start.image_size != encoder.image_size:
            logger.info(
                f"the encoder to start from takes images of {start.image_size} px, the trained one will take "
                f"{encoder.image_size} px: they are compared at these sizes"
            )
        if module.head_steps:
            logger.info(f"the first {module.head_steps:,} of {module.total_steps:,} steps train only the projector")
        is_long = device.type == "cuda" and module.total_steps >= MIN_STEPS_TO_COMPILE
        is_compiled = is_long if recipe.speed.compile is None else recipe.speed.compile
        with running(trainer), compiled(module.network.encoder) if is_compiled else nullcontext():
            trainer.fit(module, loader, ckpt_path=checkpoint)
        trained_encoder = full_encoder(module.network.encoder)
        if trainer.is_global_zero:
            best = trained_encoder if guard is None else guard.finish(trained_encoder, out)
            if best.spec != trained_encoder.spec:  # the start, of another image size: that of checkpoints is kept
                write_spec(trained_encoder, out / CHECKPOINTS_FOLDER / SPEC_FILE)
            save_encoder(best, out)
            (out / BEST_FILE).unlink(missing_ok=True)
            if len(corrupt_log):
                logger.warning(f"skipped corrupt images: {len(corrupt_log):,} (listed in {out / CORRUPT_FILE})")
        logger.info(f"encoder written to {out}")
        trainer.strategy.barrier()
    return Run(out, own_network(parts.encoder))


def _resolve_recipe(
    recipe: Recipe | str | os.PathLike[str] | None, data: DataLike, out: Path, resume: bool, *trained: Any
) -> Recipe:
    # only rank 0 checks: it may have written files of this run before another rank checks
    if not resume and contains_run(out) and is_rank_zero():
        raise run_exists_error(out)
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is None:
        recipe = out / RECIPE_FILE if resume and contains_run(out) else default_recipe(data, *trained)
    return load_recipe(recipe)
