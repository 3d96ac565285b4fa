"""The training step."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning
import torch
from torch import Tensor

from mec.coding import Health, MECLoss, health
from mec.coding.gram import all_processes
from mec.data.crops import Batch
from mec.data.reference import ReferenceViews
from mec.data.views import TwoViews
from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.models.heads import Predictor, Projector
from mec.models.siamese import Siamese
from mec.training.recipe import Recipe
from mec.training.schedules import distortion_at, learning_rate_factor, teacher_momentum


def build_network(recipe: Recipe, encoder: Encoder) -> Siamese:
    """Projector, and with a teacher the predictor, around an encoder."""
    projector = Projector(encoder.num_features, recipe.projector.hidden, recipe.projector.outputs)
    predictor = None
    if recipe.teacher.enabled:
        predictor = Predictor(recipe.projector.outputs, recipe.teacher.predictor_hidden)
    return Siamese(encoder, projector, predictor)


def views_of(recipe: Recipe, size: int) -> TwoViews:
    """The module that makes the recipe's two views, of ``size`` pixels a side."""
    kind = ReferenceViews if recipe.views == "reference" else TwoViews
    return kind(size, recipe.view_1, recipe.view_2, recipe.seed)


class Pretraining(lightning.LightningModule):
    """Two views, network, objective, teacher: the paper's training step.

    ``batch`` is the number of pictures in a step over all processes, ``steps`` the length of the run and
    ``warmup`` that of its warm-up. After each step ``measured`` holds its loss, and every ``recipe.log_every``
    steps the label-free health of its codes too.
    """

    def __init__(self, recipe: Recipe, encoder: Encoder, batch: int, steps: int, warmup: int) -> None:
        super().__init__()
        self.recipe, self.batch, self.steps, self.warmup = recipe, batch, steps, warmup
        self.learning_rate = recipe.optimiser.learning_rate * batch / 256
        self.views = views_of(recipe, encoder.image_size)
        self.normalise = encoder.normalise
        self.network = build_network(recipe, encoder)
        # convolutions are faster with channels last, on CPUs and GPUs alike
        self.network.to(memory_format=torch.channels_last)
        self.objective = MECLoss(recipe.objective.distortion, recipe.objective.order, recipe.objective.form)
        self.measured: dict[str, Tensor | float] = {}

    @property
    def distortion(self) -> float:
        objective = self.recipe.objective
        return distortion_at(self.global_step, objective.distortion, objective.warmup_factor, self.warmup)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        rate = self.learning_rate * learning_rate_factor(self.global_step, self.steps, self.warmup)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        self.measured = {"learning_rate": rate}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x1, x2 = self.views(batch.pictures, batch.indices, batch.epoch)
        codes, targets = self.network(self._prepared(x1), self._prepared(x2))
        distortion = self.distortion
        try:
            loss: Tensor = self.objective(codes, targets, distortion)
        except ValueError as error:
            raise InputError(
                f"training diverged at step {self.global_step} ({error}). Lower optimiser.learning_rate or lengthen "
                "optimiser.warmup_epochs; with objective.form cross raise objective.distortion, or take form pooled"
            ) from error
        self.measured |= {"loss": loss.detach(), "distortion": distortion}
        if self.global_step % self.recipe.log_every == 0:
            self.measured |= self.health_of(codes, targets)
        return loss

    def _prepared(self, x: Tensor) -> Tensor:
        return self.normalise(x).contiguous(memory_format=torch.channels_last)

    def health_of(self, codes: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor] | None) -> dict[str, float]:
        p, z = codes[0], codes[1] if targets is None else targets[1]
        measured: Health = health(p, z, self.distortion, all_processes())
        return dataclasses.asdict(measured)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # global_step has moved on: the teacher follows with the momentum of the step that was taken
        momentum = teacher_momentum(self.global_step - 1, self.steps, self.recipe.teacher.momentum)
        self.network.update_teacher(momentum)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.recipe.optimiser
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        if settings.name == "sgd":
            return torch.optim.SGD(
                parameters, self.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
            )
        return torch.optim.AdamW(parameters, self.learning_rate, weight_decay=settings.weight_decay)
