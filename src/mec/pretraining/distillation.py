"""Distillation: the features that a trained encoder has of whole images are the targets of a smaller one."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from mec.data.dataset import ImageDataset
from mec.distributed import process_group
from mec.embedding.extract import BATCH, extract, feature_table
from mec.errors import InputError
from mec.files import atomic_write
from mec.models.encoder import Encoder
from mec.objectives import Objective
from mec.pretraining.recipe import Recipe

logger = logging.getLogger("mec")

TARGETS_FILE = "targets.npy"
"""Targets of all images, (n, d) float32: a resumed run needs no teacher."""


def with_teacher(recipe: Recipe, teacher: Encoder, objective: object) -> Recipe:
    """Return the recipe with codes of at most the dimension of the teacher's features.

    Raises:
        InputError: the objective has no targets, or targets of its own, or the teacher is not trained.
    """
    if not teacher.is_trained and not teacher.spec.is_module:  # the weights of own networks have no known origin
        raise InputError(f"distill_from: expected trained weights, got {teacher.description}")
    if recipe.teacher.enabled:
        raise InputError("teacher.enabled: expected false with distill_from, whose targets replace it, got true")
    if isinstance(objective, Objective) or getattr(objective, "targets", None) is not None:
        name = type(objective).__name__
        raise InputError(f"objective: expected mec, or one of (codes, targets), with distill_from, got {name}")
    output_dim = min(recipe.projector.output_dim, teacher.num_features)
    return replace(recipe, projector=replace(recipe.projector, output_dim=output_dim))


class Distillation(lightning.Callback):
    """Gives a run its targets: the first principal components of the teacher's features of the whole images.

    The components are rotated at random, so that the variances of all dimensions of the targets are similar: BatchNorm
    after the projector gives the codes the same variance in each dimension. They are computed once, before the first
    step, by all processes together. The cost is that of one forward pass of the teacher for each image, however long
    the training is. A large feature table is mapped from the disk.

    Args:
        dataset: the images of the run.
        teacher: the trained encoder; None: the targets are in the run folder already.
        workers: loader processes.
    """

    def __init__(self, dataset: ImageDataset, teacher: Encoder | None, workers: int | None) -> None:
        self.dataset, self.teacher, self.workers = dataset, teacher, workers

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        path = Path(trainer.default_root_dir) / TARGETS_FILE
        if not path.exists():
            assert self.teacher is not None
            self._write(path, self.teacher, pl_module.recipe.projector.output_dim, trainer.strategy.root_device)
        self.teacher = None
        pl_module.given_targets = torch.from_numpy(np.load(path, mmap_mode="c"))

    def _write(self, path: Path, teacher: Encoder, dim: int, device: torch.device) -> None:
        count = len(self.dataset)
        with process_group() as group:
            own = group.slice(count, BATCH)
            part = self.dataset if group.world_size == 1 else self.dataset.subset(np.arange(count)[own])
            features, indices = extract(part, teacher, self.workers, "features of the teacher", device, group)
            features = group.gather_rows(features, lambda n, d: feature_table(n, d, torch.float32))
            rows = group.gather_rows(indices[:, None] + own.start, lambda n, d: torch.empty(n, d, dtype=torch.int64))
            if group.rank == 0:
                components, explained = principal_components(features, dim)
                targets = np.zeros((count, components.shape[1]), dtype=np.float32)  # zeros for images without features
                targets[rows[:, 0].numpy()] = (components @ random_rotation(components.shape[1])).numpy()
                with atomic_write(path) as temporary, temporary.open("wb") as file:
                    np.save(file, targets)
                logger.info(
                    f"targets: {components.shape[1]} principal components of the {teacher.num_features} features of "
                    f"{teacher.description}, {explained:.0%} of their variance"
                )


def principal_components(features: Tensor, dim: int) -> tuple[Tensor, float]:
    """Return the first ``dim`` principal components of features (n, d), (n, dim), and the fraction of the variance that
    they explain."""
    blocks = torch.split(features, BATCH)  # a large table is mapped from the disk
    mean = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0) / len(features)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for block in blocks:
        centered = block.double() - mean
        covariance += centered.T @ centered
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    chosen = directions[:, -dim:].flip(1).float()
    explained = float(variances[-dim:].sum() / variances.sum()) if variances.sum() > 0 else 1.0
    return torch.cat([(block - mean.float()) @ chosen for block in blocks]), explained


def random_rotation(dim: int) -> Tensor:
    """Return a random orthogonal matrix (dim, dim), always the same one."""
    matrix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation: Tensor = torch.linalg.qr(matrix).Q
    return rotation.float()
