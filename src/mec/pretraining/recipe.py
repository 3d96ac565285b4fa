"""The recipe: every setting of a pretraining run, one dataclass a component, from YAML and the command line."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from mec.data.transforms.view_settings import VIEW_1, VIEW_2, ViewSettings
from mec.errors import InputError


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise InputError(f"{name}: expected {expected}, got {got!r}")


@dataclass(frozen=True)
class ObjectiveSettings:
    """The loss.

    Attributes:
        form: pooled (stable anywhere) or cross (the paper's); see MECLoss.
        distortion: the paper's eps_d^2, of codes of length 1; smaller asks for finer codes.
        order: terms of the Taylor series; null for the exact log det.
        warmup_factor: distortion starts this many times larger and falls linearly over the warm-up.
    """

    form: Literal["pooled", "cross"] = "pooled"
    distortion: float = 1 / 32
    order: int | None = None
    warmup_factor: float = 1.0

    def __post_init__(self) -> None:
        _require(0 < self.distortion < math.inf, "objective.distortion", "a positive number", self.distortion)
        _require(self.order is None or self.order >= 1, "objective.order", "at least 1, or null", self.order)
        _require(1 <= self.warmup_factor < math.inf, "objective.warmup_factor", "at least 1", self.warmup_factor)


@dataclass(frozen=True)
class ProjectorSettings:
    """The head whose codes the objective sees; it is thrown away after training.

    Attributes:
        hidden: width of its two hidden layers, in neurons.
        outputs: dimension d of the codes.
    """

    hidden: int = 2048
    outputs: int = 2048

    def __post_init__(self) -> None:
        _require(self.hidden >= 1, "projector.hidden", "at least 1", self.hidden)
        _require(self.outputs >= 2, "projector.outputs", "at least 2", self.outputs)


@dataclass(frozen=True)
class TeacherSettings:
    """The paper's asymmetric form: a predictor on the student, a moving average of it as the target.

    Attributes:
        enabled: false trains the symmetric form, both views with gradient, at half the forward passes.
        momentum: of the moving average at the start, a share; it rises to 1 along a half cosine.
        predictor_hidden: bottleneck width of the predictor, in neurons.
    """

    enabled: bool = False
    momentum: float = 0.996
    predictor_hidden: int = 512

    def __post_init__(self) -> None:
        _require(0 <= self.momentum <= 1, "teacher.momentum", "a number in [0, 1]", self.momentum)
        _require(self.predictor_hidden >= 1, "teacher.predictor_hidden", "at least 1", self.predictor_hidden)


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its schedule: linear warm-up from 0, then a half cosine to 0, step by step.

    Attributes:
        name: adamw, or sgd with momentum (the paper's).
        lr: for a batch of 256; it is scaled by batch / 256.
        weight_decay: on all parameters, as in the paper's code.
        momentum: of sgd.
        warmup_epochs: length of the warm-up in epochs, of the distortion too; at most a quarter of a short run.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    warmup_epochs: float = 10

    def __post_init__(self) -> None:
        _require(0 < self.lr < math.inf, "optimizer.lr", "a positive number", self.lr)
        _require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", "at least 0", self.weight_decay)
        _require(0 <= self.momentum < 1, "optimizer.momentum", "a number in [0, 1)", self.momentum)
        _require(0 <= self.warmup_epochs < math.inf, "optimizer.warmup_epochs", "at least 0", self.warmup_epochs)


@dataclass(frozen=True)
class SpeedSettings:
    """What makes a step faster and leaves its mathematics alone; each is used where the device gains by it.

    Attributes:
        channels_last: convolutions on channels-last memory, faster on CPUs and GPUs.
        fused: the optimizer's update in one kernel.
        compile: the encoder through torch.compile; null: on a GPU, in runs of at least 2,000 steps, which pay for it.
    """

    channels_last: bool = True
    fused: bool = True
    compile: bool | None = None


@dataclass(frozen=True)
class Recipe:
    """A pretraining run.

    Attributes:
        backbone: a timm architecture: resnet18, resnet50, vit_small_patch16_224, ...
        backbone_options: further arguments of that architecture, as timm.create_model takes them.
        image_size: side of a view in pixels.
        channels: number of them in an image; null takes 1 for gray images, 3 for color, else what they have.
        background: color behind transparent images, by name or as #rrggbb.
        every: take each n-th image or frame; null: all images, one frame a second of a video.
        max_corrupt: share of images that may be unreadable before the run stops; others take their places.
        views: fast, or reference: torchvision's transforms on PIL images, to the letter, several times slower.
        small_stem: 3x3 stem without max-pool, small patches; null: for views under 96 px.
        epochs: passes over the images.
        batch_size: images in a step, over all devices; at most the number of images.
        chunk: images of each device that pass the encoder with gradient at a time: memory for a chunk, the loss of
            the whole batch, for a second forward pass; null: all at once.
        gradient_checkpointing: recompute activations on the way back: less memory, for a second forward pass.
        seed: of weights, order and views.
        workers: loader processes of each training process; null: one per core.
        precision: 32-true, bf16-mixed, 16-mixed; auto is bf16-mixed on GPUs and CPUs that have it, else 32-true.
        accelerator: auto, cpu, gpu, mps.
        devices: processes on each machine, one a GPU; auto: as started by torchrun or SLURM, else all GPUs, or one
            process on a CPU, which uses all its cores.
        nodes: machines; auto: as started by torchrun or SLURM, else one.
        strategy: ddp: each device holds the network; fsdp: its weights are spread over them, for those too large;
            auto: ddp.
        log_every: steps between two rows of metrics.csv.
        objective: the objective (the loss).
        projector: the projector (the head whose codes the objective sees).
        teacher: the teacher (the paper's asymmetric form, or none).
        optimizer: the optimizer and its schedule.
        speed: speed (what makes a step faster).
        view_1: the augmentations of the first view.
        view_2: the augmentations of the second view.
    """

    backbone: str = "resnet18"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 96
    channels: int | None = None
    background: str = "white"
    every: int | None = None
    max_corrupt: float = 0.05
    views: Literal["fast", "reference"] = "fast"
    small_stem: bool | None = None
    epochs: int = 100
    batch_size: int = 256
    chunk: int | None = None
    gradient_checkpointing: bool = False
    seed: int = 0
    workers: int | None = None
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int | Literal["auto"] = "auto"
    nodes: int | Literal["auto"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    log_every: int = 20
    objective: ObjectiveSettings = ObjectiveSettings()
    projector: ProjectorSettings = ProjectorSettings()
    teacher: TeacherSettings = TeacherSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    speed: SpeedSettings = SpeedSettings()
    view_1: ViewSettings = VIEW_1
    view_2: ViewSettings = VIEW_2

    def __post_init__(self) -> None:
        _require(self.image_size >= 8, "image_size", "at least 8 pixels", self.image_size)
        _require(self.channels is None or self.channels >= 1, "channels", "at least 1, or null", self.channels)
        _require(self.every is None or self.every >= 1, "every", "at least 1, or null", self.every)
        _require(0 <= self.max_corrupt <= 1, "max_corrupt", "a share in [0, 1]", self.max_corrupt)
        _require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        _require(self.batch_size >= 2, "batch_size", "at least 2", self.batch_size)
        _require(self.chunk is None or self.chunk >= 1, "chunk", "at least 1, or null", self.chunk)
        _require(0 <= self.seed < 2**32, "seed", "a number in [0, 2^32)", self.seed)
        _require(self.workers is None or self.workers >= 0, "workers", "at least 0, or null", self.workers)
        _require(self.devices == "auto" or int(self.devices) >= 1, "devices", "at least 1, or auto", self.devices)
        _require(self.nodes == "auto" or int(self.nodes) >= 1, "nodes", "at least 1, or auto", self.nodes)
        possible = self.strategy != "fsdp" or self.precision != "16-mixed"
        _require(possible, "precision", "32-true or bf16-mixed with strategy fsdp", self.precision)
        _require(self.log_every >= 1, "log_every", "at least 1", self.log_every)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries and lists, as in YAML."""
        plain: dict[str, Any] = dataclasses.asdict(self, dict_factory=_plain)
        return plain


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}
