"""The training step."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mec.coding import Health, MECLoss, health
from mec.coding.gram import all_processes
from mec.data.rng import uniforms
from mec.data.transforms.crop import Batch
from mec.data.transforms.multi_view import TwoViews
from mec.data.transforms.torchvision_reference import ReferenceViews
from mec.engine.fsdp import Sharded, shard, whole_encoder
from mec.models.encoder import Encoder
from mec.models.heads import Predictor, Projector
from mec.models.siamese import Pair, Siamese
from mec.pretraining.chunks import loss_in_chunks, running_statistics_kept
from mec.pretraining.recipe import Recipe
from mec.pretraining.schedules import distortion_at, lr_factor, teacher_momentum
from mec.pretraining.step_guard import StepGuard

NETWORK = 12
"""Stream of random numbers."""
FUSED_ON = ("cpu", "cuda")
"""Devices whose fused optimizers leave a step out when they are told to."""


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

    ``batch`` is the number of images in a step over all processes, ``steps`` the length of the run and
    ``warmup`` that of its warm-up. After each step ``measured`` holds its loss, and every ``recipe.log_every``
    steps the label-free health of its codes too.

    A step depends on the weights, the images and its number alone, not on what ran before it in the same process:
    whatever the network draws (drop path, dropout) is drawn from a generator that is seeded anew at each step.
    """

    def __init__(self, recipe: Recipe, encoder: Encoder, batch: int, steps: int, warmup: int) -> None:
        super().__init__()
        self.recipe, self.batch, self.steps, self.warmup = recipe, batch, steps, warmup
        self.lr = recipe.optimizer.lr * batch / 256
        self.views = views_of(recipe, encoder.image_size)
        self.normalize = encoder.normalize
        self.network = build_network(recipe, encoder)
        self.memory_format = torch.channels_last if recipe.speed.channels_last else torch.contiguous_format
        self.network.to(memory_format=self.memory_format)
        self.objective = MECLoss(
            recipe.objective.distortion, recipe.objective.order, recipe.objective.form, check=False
        )
        self.guard = StepGuard()
        self.measured: dict[str, Tensor | float] = {}

    @property
    def distortion(self) -> float:
        objective = self.recipe.objective
        return distortion_at(self.global_step, objective.distortion, objective.warmup_factor, self.warmup)

    @property
    def measures(self) -> bool:
        """Whether this step's figures are read, which waits for the device."""
        return self.global_step % self.recipe.log_every == 0

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, Sharded) and not isinstance(self.network.projector, FSDPModule):
            shard(self.network, strategy.device_mesh["data_parallel"])

    def whole_encoder(self) -> Encoder:
        """As it is now; all processes must ask for it."""
        return whole_encoder(self.network.encoder)

    def on_train_start(self) -> None:
        self.guard.watch(self.network)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        (optimizer,) = self.trainer.optimizers
        optimizer.zero_grad()
        rate = self.lr * lr_factor(self.global_step, self.steps, self.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.measured = {"lr": rate}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = len(batch.indices)
        parts = -(-images // (self.recipe.chunk or images))
        bounds = [images * part // parts for part in range(parts + 1)]  # of nearly equal size
        chunks = [partial(self._views, batch, slice(*rows)) for rows in pairwise(bounds)]
        if parts == 1:
            loss = self._loss(*self.network(*chunks[0]()))
        else:
            loss = loss_in_chunks(self.network, chunks, self._loss, self._backward_of_chunk, self._scale())
        self.measured |= {"loss": loss.detach(), "distortion": self.distortion}
        return loss

    def _views(self, batch: Batch, rows: slice) -> Pair:
        """Of some images of the batch, as the network takes them, whose random numbers are then those of the step."""
        place = np.array([self.global_rank * 2**32 + rows.start])
        torch.manual_seed(int(uniforms(self.recipe.seed, self.global_step, place, 1, NETWORK)[0, 0] * 2**53))
        x1, x2 = self.views(batch.images[rows], batch.indices[rows], batch.epoch)
        return self._prepared(x1), self._prepared(x2)

    def _prepared(self, x: Tensor) -> Tensor:
        return self.normalize(x).contiguous(memory_format=self.memory_format)

    def _loss(self, codes: Pair, targets: Pair | None) -> Tensor:
        loss: Tensor = self.objective(codes, targets, self.distortion)
        if self.measures and math.isfinite(loss.detach()):
            self.measured |= self.health_of(codes, targets) | {"skipped": self.guard.skipped}
        return loss

    def optimizer_zero_grad(self, *arguments: Any, **named: Any) -> None:
        """Not at lightning's moment, after ``training_step``: chunks have added their gradients by then."""

    def backward(self, loss: Tensor, *arguments: Any, **named: Any) -> None:
        again = self.recipe.gradient_checkpointing  # what is computed once more is no new batch to BatchNorm
        with running_statistics_kept(self.network.encoder) if again else nullcontext():
            loss.backward(*arguments, **named)  # type: ignore[no-untyped-call]

    def _backward_of_chunk(self, share: Tensor) -> None:
        """Gradients add up here, and are exchanged with other processes in the step's last pass."""
        self.backward(self.trainer.precision_plugin.pre_backward(share, self))

    def _scale(self) -> float:
        """Of the gradient in float16; else 1."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def health_of(self, codes: Pair, targets: Pair | None) -> dict[str, float]:
        p, z = codes[0], codes[1] if targets is None else targets[1]
        measured: Health = health(p, z, self.distortion, all_processes())
        return dataclasses.asdict(measured)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # float16 overflows while its scale settles: lightning's scaler leaves such steps out by itself
        scaled = self.trainer.precision == "16-mixed"
        loss = self.measured["loss"]
        assert isinstance(loss, Tensor)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        self.guard.judge(loss, [] if scaled else gradients, optimizer)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.network.update_teacher(teacher_momentum(self.global_step, self.steps, self.recipe.teacher.momentum))

    @property
    def fused(self) -> bool:
        strategy = self.trainer.strategy
        # PyTorch has no fused SGD for sharded weights
        offered = self.recipe.optimizer.name != "sgd" or not isinstance(strategy, Sharded)
        return self.recipe.speed.fused and offered and strategy.root_device.type in FUSED_ON

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # it holds the setting of where it was saved
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group["fused"] = self.fused

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings, fused = self.recipe.optimizer, self.fused
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        if settings.name == "adamw":
            return torch.optim.AdamW(parameters, self.lr, weight_decay=settings.weight_decay, fused=fused)
        optimizer = torch.optim.SGD(
            parameters, self.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=fused
        )
        if settings.momentum:
            # PyTorch leaves them unwritten when the very first fused step is left out
            for p in parameters:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
