"""Settings of the components of a pretraining run: objective, projector, teacher, optimizer and speed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from mec.errors import InputError
from mec.objectives import create_objective
from mec.pretraining.optimizers import check_optimizer

ObjectiveName = Literal[
    "mec", "simclr", "barlow-twins", "vicreg", "simsiam", "byol", "intl", "emp-ssl", "simdino", "sigreg"
]
MEC_SETTINGS = ("form", "distortion", "order", "warmup_factor", "rate_weight")
"""Settings of the objective that only mec has."""


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise InputError for a setting that does not fulfill a condition."""
    if not condition:
        raise InputError(f"{name}: expected {expected}, got {got!r}")


@dataclass(frozen=True)
class ObjectiveSettings:
    """The loss.

    Attributes:
        name: mec, or another method to compare it with; its defaults are the published ones (docs/objective.md).
        form: of mec: reduction, pooled (both always stable) or cross (the paper's); see MECLoss.
        distortion: of mec: the paper's eps_d^2, for codes of length 1; smaller values require finer codes. Two numbers
            are the first and last value of a sweep over the training. null: such a sweep for the reduction, 1/32 for
            the other forms.
        order: of mec: number of terms of the Taylor series; null: the exact log det.
        warmup_factor: of mec: factor of the distortion at the first step; falls linearly to 1 over the warm-up.
        rate_weight: of mec: factor of the coding rate in the pooled form; larger values spread the codes more.
        options: arguments of another objective than mec, such as {temperature: 0.1}.
    """

    name: ObjectiveName = field(default="mec", kw_only=True)
    form: Literal["reduction", "pooled", "cross"] = "reduction"
    distortion: float | tuple[float, float] | None = None
    order: int | None = None
    warmup_factor: float = 1.0
    rate_weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.order is None or self.order >= 1, "objective.order", "at least 1, or null", self.order)
        require(1 <= self.warmup_factor < math.inf, "objective.warmup_factor", "at least 1", self.warmup_factor)
        require(0 < self.rate_weight < math.inf, "objective.rate_weight", "a positive number", self.rate_weight)
        for name in self.unused_settings:
            value = getattr(self, name)
            is_default = not value if name == "options" else value == getattr(ObjectiveSettings, name)
            require(is_default, f"objective.{name}", f"none with objective.name {self.name}", value)
        self.create()

    @property
    def unused_settings(self) -> tuple[str, ...]:
        """Settings without effect for the objective of this name."""
        return ("options",) if self.name == "mec" else MEC_SETTINGS

    def create(self, global_views: int | None = None) -> nn.Module:
        """Return the objective (mec.objectives). Other objectives than mec have no roles of views."""
        own: dict[str, Any] = {}
        if self.name == "mec":
            own = {name: getattr(self, name) for name in MEC_SETTINGS} | {"global_views": global_views}
        return create_objective(self.name, own | self.options)


@dataclass(frozen=True)
class ProjectorSettings:
    """The head that maps features to codes; it is discarded after training.

    Attributes:
        hidden_dim: width of the two hidden layers.
        output_dim: dimension d of the codes.
        batch_norm: BatchNorm after the last layer; null: as published for the objective.
    """

    hidden_dim: int = 2048
    output_dim: int = 2048
    batch_norm: bool | None = None

    def __post_init__(self) -> None:
        require(self.hidden_dim >= 1, "projector.hidden_dim", "at least 1", self.hidden_dim)
        require(self.output_dim >= 2, "projector.output_dim", "at least 2", self.output_dim)


@dataclass(frozen=True)
class TeacherSettings:
    """The paper's asymmetric form: a predictor on the student, and its exponential moving average as the target.

    Attributes:
        enabled: false trains the symmetric form, with gradient through all views and half the forward passes; byol
            always has a teacher.
        momentum: momentum of the moving average at the first step; rises to 1 along half a cosine.
        predictor_hidden_dim: width of the predictor's hidden layer, a bottleneck.
    """

    enabled: bool = False
    momentum: float = 0.996
    predictor_hidden_dim: int = 512

    def __post_init__(self) -> None:
        require(0 <= self.momentum <= 1, "teacher.momentum", "a number in [0, 1]", self.momentum)
        width = self.predictor_hidden_dim
        require(width >= 1, "teacher.predictor_hidden_dim", "at least 1", width)


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its per-step schedule: linear warm-up from 0, then half a cosine to 0.

    Attributes:
        name: adamw, sgd with classical momentum (the paper's), lars, muon, or any of timm.optim.list_optimizers().
        lr: learning rate for a batch size of 256; it is multiplied by batch_size / 256.
        weight_decay: weight decay.
        momentum: momentum of optimizers that have one, such as sgd, lars and muon.
        warmup_epochs: length of the warm-up of lr and distortion, in epochs; at most a quarter of the run.
        options: further arguments of the optimizer, such as betas, eps, nesterov or ns_steps.
        decay_norms_and_biases: false: no weight decay, and with lars no adaptation, of norms, biases and what the
            backbone excludes (timm's no_weight_decay); true: of all parameters, as in the paper's code.
        layer_decay: factor of the backbone's lr from one layer to the layer before it; null: 1.
        backbone_lr: learning rate of the backbone, for a batch size of 256 as lr is; null: lr.
        heads_first: fraction of the training, at its start, in which the backbone keeps its weights, because the
            gradients of random heads would spoil those of a trained one.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    warmup_epochs: float = 10.0
    options: dict[str, Any] = field(default_factory=dict)
    decay_norms_and_biases: bool = True
    layer_decay: float | None = None
    backbone_lr: float | None = None
    heads_first: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "optimizer.lr", "a positive number", self.lr)
        require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", "at least 0", self.weight_decay)
        require(0 <= self.momentum < 1, "optimizer.momentum", "a number in [0, 1)", self.momentum)
        require(0 <= self.warmup_epochs < math.inf, "optimizer.warmup_epochs", "at least 0", self.warmup_epochs)
        backbone_lr, decay = self.backbone_lr, self.layer_decay
        in_range = backbone_lr is None or 0 < backbone_lr < math.inf
        require(in_range, "optimizer.backbone_lr", "a positive number, or null", backbone_lr)
        require(0 <= self.heads_first < 1, "optimizer.heads_first", "a fraction in [0, 1)", self.heads_first)
        require(decay is None or 0 < decay <= 1, "optimizer.layer_decay", "a number in (0, 1], or null", decay)
        check_optimizer(self)


@dataclass(frozen=True)
class SpeedSettings:
    """Faster implementations of the same mathematics.

    Attributes:
        channels_last: channels-last memory format, in which convolutions are faster on CPUs and GPUs.
        fused: a fused optimizer, on devices that support it.
        compile: torch.compile for the encoder; null: on a GPU, for runs of at least 2,000 steps.
    """

    channels_last: bool = True
    fused: bool = True
    compile: bool | None = None
