"""The training step, and the schedules of learning rate and teacher momentum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mec.coding import loss_in_chunks
from mec.coding.chunks import freeze_running_statistics
from mec.data.rng import Stream, uniforms
from mec.data.transforms.crop import Batch
from mec.data.transforms.multi_view import MultiView, Views
from mec.data.transforms.reference import ReferenceViews
from mec.engine.fsdp import FSDP2Strategy, apply_fsdp, check_equal_weights
from mec.engine.progress import TrainingModule
from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.models.siamese import PerView, Predictor, Projector, Siamese
from mec.pretraining.adaptation import fix_statistics, freeze_backbone
from mec.pretraining.advice import sentence, stabilize
from mec.pretraining.objective import Objective
from mec.pretraining.optimizers import TORCH_OPTIMIZERS, check_layers, create_optimizer
from mec.pretraining.recipe import Recipe
from mec.pretraining.step_guard import MAX_CONSECUTIVE_SKIPS, StepGuard

FUSED_DEVICES = ("cpu", "cuda")
"""Device types whose fused optimizers skip a step when ``found_inf`` is set."""


def create_network(
    recipe: Recipe, encoder: Encoder, objective: Objective | None = None, num_global: int | None = None
) -> Siamese:
    """Add the recipe's projector to an encoder, and predictor and teacher if the recipe or the objective has them."""
    settings = recipe.projector
    batch_norm = settings.batch_norm
    if batch_norm is None:
        batch_norm = objective is None or objective.batch_norm
    projector = Projector(encoder.num_features, settings.hidden_dim, settings.output_dim, batch_norm)
    targets = "teacher" if recipe.teacher.enabled else None if objective is None else objective.targets
    predictor = None
    if targets and (objective is None or objective.predictor):
        predictor = Predictor(settings.output_dim, recipe.teacher.predictor_hidden_dim)
    return Siamese(encoder, projector, predictor, targets, num_global)


def create_views(recipe: Recipe) -> Views:
    """Return the module that makes the recipe's views."""
    if recipe.views == "reference":
        return ReferenceViews(recipe.global_size, recipe.view_1, recipe.view_2, recipe.seed)
    extra = recipe.extra_views
    settings = [recipe.view_1, recipe.view_2] + [extra] * extra.count
    return MultiView(recipe.global_size, settings, recipe.seed, [recipe.local_size] * recipe.num_local)


class Pretraining(TrainingModule):
    """PerView, network, objective and teacher update: the paper's training step.

    A step depends only on the weights, the images and the step number, not on what ran before it in the same process:
    random numbers of the network (stochastic depth, dropout) come from a generator that is reseeded at every step, and
    so do those of the objective.
    ``given_targets`` (n, d), if not None, are the targets of the n images of the dataset; see ``Distillation``.
    ``step_metrics`` are loss and lr; every ``recipe.log_every`` steps also the health of the codes.
    """

    stays_finite = True

    def __init__(
        self,
        recipe: Recipe,
        encoder: Encoder,
        batch_size: int,
        steps_per_epoch: int,
        objective: Callable[..., Tensor] | None = None,
        views: Views | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.set_total_steps(recipe.steps or steps_per_epoch * recipe.epochs)
        self.lr = recipe.optimizer.lr * batch_size / 256
        self.views = views or create_views(recipe)
        self.normalize = encoder.normalize
        self.objective = Objective(recipe.create_objective() if objective is None else objective)
        self.fixed_norms = freeze_backbone(encoder.backbone, recipe)
        self.network = create_network(recipe, encoder, self.objective, self.views.num_global)
        self.memory_format = encoder.memory_format if recipe.speed.channels_last else torch.contiguous_format
        check_layers(encoder.backbone, recipe.optimizer)
        self.network.to(memory_format=self.memory_format)
        num_views, has_targets = self.views.num_views, bool(self.network.targets or "distill_from" in recipe.parts)
        num_targets = self.views.num_global if has_targets else 0
        health = self.objective.check(num_views, batch_size, recipe.projector.output_dim, num_targets, device)
        self.metric_names = ("loss", *health, "lr", "skipped_steps")
        self.guard = StepGuard()
        self.given_targets: Tensor | None = None

    def set_total_steps(self, total: int) -> None:
        """Set the length of the training, to which the schedules extend."""
        settings, recipe = self.recipe.optimizer, self.recipe
        # a short run has fewer warm-up steps than the recipe, at most a quarter of all
        if recipe.minutes is None:
            warmup_steps = round(settings.warmup_epochs * self.steps_per_epoch)
        else:
            warmup_steps = round(settings.warmup_epochs / recipe.epochs * total)
        self.total_steps, self.warmup_steps = total, min(warmup_steps, total // 4)
        self.head_steps = round(settings.heads_first * total)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        chunks = self._split_into_chunks(batch)
        loss_of = partial(self._loss, given=self._given_targets(batch))
        if len(chunks) == 1:
            loss = loss_of(*self.network(*chunks[0]()))
        else:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # of gradients in float16
            scale = 1.0 if scaler is None else float(scaler.get_scale())
            loss = chunked_loss(self.network, chunks, loss_of, self._backward_of_chunk, scale)
        self.step_metrics["loss"] = loss.detach()
        return loss

    def _split_into_chunks(self, batch: Batch) -> list[Callable[[], PerView]]:
        """Return functions that make the views of nearly equal chunks, of at most ``recipe.chunk_size`` images each."""
        size = len(batch.indices)
        count = -(-size // (self.recipe.chunk_size or size))
        bounds = [size * number // count for number in range(count + 1)]
        return [partial(self._make_views, batch, slice(start, stop)) for start, stop in pairwise(bounds)]

    def _make_views(self, batch: Batch, rows: slice) -> PerView:
        """Return the normalized views of a chunk, after seeding the generator of the network for it."""
        self._seed(Stream.NETWORK, self.global_rank * 2**32 + rows.start)
        views = self.views(batch.images[rows], batch.indices[rows], batch.epoch)
        return tuple(map(self._normalize, views))

    def _seed(self, stream: Stream, position: int) -> None:
        seed = uniforms(self.recipe.seed, self.global_step, np.array([position]), 1, stream)[0, 0]
        torch.manual_seed(int(seed * 2**53))

    def _normalize(self, x: Tensor) -> Tensor:
        normalized = self.normalize(x) if self.views.statistics is None else x
        return normalized.contiguous(memory_format=self.memory_format)

    def _given_targets(self, batch: Batch) -> PerView | None:
        """Return the given targets of the images of a batch, the same for each view; None without any."""
        if self.given_targets is None:
            return None
        rows = self.given_targets[torch.from_numpy(batch.source_indices)].to(self.device)
        return (rows,) * self.views.num_global

    def _loss(self, codes: PerView, targets: PerView | None, given: PerView | None = None) -> Tensor:
        targets = targets if given is None else given
        self._seed(Stream.OBJECTIVE, 0)  # equal in all processes
        loss: Tensor = self.objective(codes, targets)
        if self.step_is_logged and math.isfinite(loss.detach()):
            self.step_metrics |= self.objective.health(codes, targets)
            self.step_metrics["skipped_steps"] = self.guard.skipped_steps
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        momentum = teacher_momentum(self.global_step, self.total_steps, self.recipe.teacher.momentum)
        self.network.update_teacher(momentum)

    def progress_text(self, metrics: Mapping[str, float], short: bool) -> str:
        epoch = f"epoch {self.current_epoch + 1}/{self.trainer.max_epochs}"
        if not metrics:
            return epoch
        loss, rank, speed = metrics["loss"], metrics["effective_rank"], metrics["images_per_second"]
        wait = metrics["data_wait_fraction"]
        length = f"length {metrics['coding_length']:.0f} nats  " if "coding_length" in metrics else ""
        if short:
            return f"{epoch} loss {loss:.2f} rank {rank:.0f} {speed:.0f}/s wait {wait:.0%}"
        return (
            f"{epoch}  step {self.global_step:,}/{self.total_steps:,}  loss {loss:.3f}  "
            f"{length}rank {rank:.1f}  {speed:.0f} images/s  data wait {wait:.0%}"
        )

    def diverged(self) -> bool:
        return bool(self.guard.max_consecutive_skips >= MAX_CONSECUTIVE_SKIPS)

    def divergence_message(self) -> str:
        advice = sentence(*stabilize(self.recipe.setting))
        return (
            f"training diverged: loss or gradient was not finite in {MAX_CONSECUTIVE_SKIPS} steps in a row, up to step "
            f"{self.global_step} ({int(self.guard.skipped_steps)} steps skipped in the run). A checkpoint holds the "
            f"weights of the last finite step. {advice.removesuffix('.')}"
        )

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDP2Strategy) and not isinstance(self.network.projector, FSDPModule):
            check_equal_weights("objective", self.objective)
            apply_fsdp(self.network, strategy.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        self.guard.track_statistics(self.network)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.trainer.accumulate_grad_batches != 1:  # a callback has changed it
            raise InputError(
                "callbacks: expected no gradient accumulation, got accumulate_grad_batches = "
                f"{self.trainer.accumulate_grad_batches}: it would average the losses of small batches, which is not "
                "the loss of a large one; use batch_size with chunk_size"
            )
        (optimizer,) = self.trainer.optimizers
        optimizer.zero_grad()
        self.step_metrics = {"lr": self._set_lr(optimizer)}
        fix_statistics(self.network, self.fixed_norms)
        step, steps = self.global_step, (self.total_steps, self.warmup_steps)
        self.objective.schedule(*(step / max(1, n - 1) if step < n else 1.0 for n in steps))
        self.step_is_logged = self.global_step % self.recipe.log_every == 0

    def _set_lr(self, optimizer: torch.optim.Optimizer) -> float:
        """Set the learning rates of the step, and return that of the heads. That of the backbone rises when the steps
        of the heads alone are over."""
        step, steps, warmup = self.global_step, self.total_steps, self.warmup_steps
        lr = self.lr * lr_factor(step, steps, warmup)
        later = min(warmup, (steps - self.head_steps) // 4)
        backbone_lr = self.lr * lr_factor(step - self.head_steps, steps - self.head_steps, later)
        for group in optimizer.param_groups:
            group["lr"] = (backbone_lr if group.get("is_backbone") else lr) * group.get("lr_scale", 1.0)
        return lr

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: lightning calls this after ``training_step``, where chunks have accumulated gradients already."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # BatchNorm must not accumulate the statistics of a batch again when its activations are recomputed
        recomputes = self.recipe.gradient_checkpointing
        with freeze_running_statistics(self.network.encoder) if recomputes else nullcontext():
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _backward_of_chunk(self, surrogate: Tensor) -> None:
        """Accumulate gradients in this process; processes exchange them in the last backward pass of the step."""
        self.backward(self.trainer.precision_plugin.pre_backward(surrogate, self))

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step >= self.total_steps:  # the last epoch may be incomplete
            self.trainer.should_stop = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step < self.head_steps:  # all processes have exchanged gradients: none waits for one
            for p in self.network.encoder.parameters():
                p.grad = None
        # gradients in float16 overflow until their scale is found; lightning's gradient scaler skips those steps itself
        has_scaler = self.trainer.precision == "16-mixed"
        loss = self.step_metrics["loss"]
        assert isinstance(loss, Tensor)
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self.guard.skip_if_non_finite(loss, [] if has_scaler else gradients, optimizer)

    @property
    def fused(self) -> bool:
        """Whether the optimizer is fused, on the device of this run."""
        strategy = self.trainer.strategy
        # PyTorch has no fused SGD for sharded weights
        name = self.recipe.optimizer.name
        supported = name in TORCH_OPTIMIZERS and (name != "sgd" or not isinstance(strategy, FSDP2Strategy))
        return self.recipe.speed.fused and supported and strategy.root_device.type in FUSED_DEVICES

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # the checkpoint holds the value of the device where it was saved
        if self.recipe.optimizer.name in TORCH_OPTIMIZERS:
            for group in checkpoint["optimizer_states"][0]["param_groups"]:
                group["fused"] = self.fused

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return create_optimizer(self.network, self.recipe.optimizer, self.lr, self.fused, self.objective)


def chunked_loss(
    network: Siamese,
    chunks: Sequence[Callable[[], PerView]],
    loss: Callable[[PerView, PerView | None], Tensor],
    backward: Callable[[Tensor], None],
    scale: float = 1.0,
) -> Tensor:
    """Return ``loss(codes, targets)`` of the whole batch by ``loss_in_chunks``. The encoders see one chunk at a time;
    projector and predictor, BatchNorm included, see the whole batch."""
    teacher: list[PerView] = []

    def encode(*views: Tensor) -> PerView:
        features = network.features(*views)
        targets = None if torch.is_grad_enabled() else network.teacher_features(*views)  # in the first pass only
        if targets is not None:
            teacher.append(targets)
        return features

    def loss_of_features(features: PerView) -> Tensor:
        targets = tuple(map(torch.cat, zip(*teacher, strict=True))) if teacher else None
        return loss(*network.codes(features, targets))

    return loss_in_chunks(network.encoder, chunks, loss_of_features, encode=encode, backward=backward, scale=scale)


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Return the fraction of the base lr at ``step``: linear from 0 to 1 over ``warmup`` steps, then half a cosine to 0
    at ``steps``."""
    if step < warmup:
        return max(0, step) / max(1, warmup - 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def teacher_momentum(step: int, steps: int, base: float) -> float:
    """Return the momentum of the teacher at ``step``: half a cosine from ``base`` to 1 over ``steps``."""
    return 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * step / steps))
