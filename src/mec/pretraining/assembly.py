"""The parts of a run that Lightning needs: sampler, module and trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning
from torch import Tensor

from mec.data.corrupt import CorruptLog
from mec.data.dataset import ImageDataset
from mec.data.loaders import training_sampler
from mec.data.order import EpochSampler, StepSampler
from mec.data.transforms.multi_view import Views
from mec.engine.checkpoints import PreemptionCheckpoint
from mec.engine.progress import TrainingProgress
from mec.engine.trainer import CorruptImageCallback, make_trainer
from mec.errors import InputError
from mec.models.checkpoint_files import CHECKPOINTS_FOLDER
from mec.models.encoder import Encoder, enable_gradient_checkpointing
from mec.models.sync_batch_norm import convert_sync_batch_norm
from mec.pretraining.health import HealthWarnings
from mec.pretraining.module import Pretraining
from mec.pretraining.recipe import Recipe
from mec.pretraining.start_encoder import check_all_trained

logger = logging.getLogger("mec")


def create_sampler(recipe: Recipe, dataset: ImageDataset, trainer: lightning.Trainer) -> EpochSampler | StepSampler:
    """Return the order of the images, in batches over all processes. Raise InputError if one has fewer than 2."""
    processes = trainer.world_size
    batch_size = min(recipe.batch_size, len(dataset))
    if batch_size < recipe.batch_size:
        logger.info(f"batch_size: {batch_size:,}, all images, in place of {recipe.batch_size:,}")
    per_process = batch_size // processes
    if per_process < 2:
        raise InputError(
            f"batch_size: expected at least 2 images per process, got {per_process}: {recipe.batch_size} of "
            f"{len(dataset)} images over {processes} processes"
        )
    return training_sampler(dataset, per_process, recipe.seed, trainer.global_rank, processes)


def create_module(
    recipe: Recipe,
    encoder: Encoder,
    sampler: EpochSampler | StepSampler,
    trainer: lightning.Trainer,
    objective: Callable[..., Tensor],
    views: Views | None,
) -> Pretraining:
    """Return network, objective and training step, prepared for the number of processes and the strategy."""
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(encoder)
    device = trainer.strategy.root_device
    module = Pretraining(recipe, encoder, sampler.global_batch, len(sampler), objective, views, device)
    if recipe.strategy == "fsdp" and any(p.requires_grad for p in module.objective.parameters()):
        raise InputError("strategy: expected ddp for an objective with parameters, which fsdp does not shard, got fsdp")
    if trainer.world_size > 1:
        check_all_trained(encoder)
        convert_sync_batch_norm(module.network, device.type)
    return module


def create_trainer(
    recipe: Recipe, precision: str, out: Path, corrupt_log: CorruptLog, callbacks: Sequence[lightning.Callback]
) -> lightning.Trainer:
    """Return the trainer of a run, with the callbacks that every run has and the given ones."""
    return make_trainer(
        out,
        recipe.devices,
        recipe.nodes,
        precision,
        recipe.accelerator,
        recipe.strategy,
        max_epochs=recipe.epochs,
        logger=False,  # see open_loggers
        callbacks=[
            CorruptImageCallback(corrupt_log),
            TrainingProgress("training", out, recipe.minutes is None),
            HealthWarnings(out),
            *callbacks,
            PreemptionCheckpoint(out / CHECKPOINTS_FOLDER),
        ],
    )
