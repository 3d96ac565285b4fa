"""The recipe: every setting of a pretraining run, set by YAML and command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from mec.data.transforms import VIEW_1, VIEW_2, ExtraViewSettings, ViewSettings
from mec.errors import join_with_or
from mec.objectives.mec import default_distortion
from mec.pretraining.optimizers import SHARDED_OPTIMIZERS
from mec.pretraining.settings import (
    ObjectiveSettings,
    OptimizerSettings,
    ProjectorSettings,
    SpeedSettings,
    TeacherSettings,
    require,
)

REPLACED_SETTINGS: dict[str, tuple[str, ...]] = {
    "encoder": ("whiten_stem",),  # backbone names it
    "objective": ("objective",),
    "view_transform": ("views", "view_1", "view_2", "extra_views", "resolution_schedule"),
    "distill_from": ("teacher",),
}
"""Settings that objects passed to ``pretrain`` replace, by the name of the argument."""
DEFAULT_IMAGE_SIZE = 96


@dataclass(frozen=True)
class Recipe:
    """A pretraining run.

    Attributes:
        backbone: a timm architecture: resnet18, resnet50, vit_small_patch16_224, ...
        backbone_options: further arguments of the architecture, as timm.create_model takes them.
        image_size: side of a view in pixels; null: that of the encoder to start from over evaluation_scale, else 96.
        evaluation_scale: side of the images that the trained encoder takes, as a multiple of image_size. Objects are
            larger in crops than in whole images, so 1.2 to 1.5 is often better than 1, at the cost of slower
            evaluations (Touvron et al. 2019, arXiv 1906.06423).
        resolution_schedule: sides of the views in equal parts of the training, such as [16, 24]: small views first are
            cheap. The last one is image_size. null: image_size throughout.
        channels: number of image channels; null: 1 for grayscale images, 3 for color, else that of the images.
        background: color behind transparent pixels, by name or as #rrggbb.
        subsample: keep every n-th image of the dataset; null: all.
        frame_stride: keep every n-th frame of a video; null: one frame per second.
        max_corrupt: largest fraction of images that may be corrupt before the run stops; other images replace them.
        views: fast, or reference: torchvision's transforms on PIL images, exactly, but several times slower.
        small_stem: 3x3 stem without max-pool (ResNet), small patches (ViT); null: for views under 96 px.
        whiten_stem: initialize the first convolution as a whitening of patches of the images, which trainings find only
            slowly; null: if its patches overlap, as in ResNets.
        freeze: number of stages (ResNets) or blocks (vision transformers) of the backbone, from the first on, that keep
            their weights, together with the stem; 0: all are trained.
        batch_norm: of the backbone. train: statistics of the batch, as usual; affine-only: the statistics that it
            starts with, which small or unusual batches cannot spoil; frozen: also scale and shift keep their values.
        epochs: passes over the images.
        steps: optimizer steps of the run, in place of epochs; the last epoch may be incomplete. null: epochs.
        minutes: duration of the run, in place of epochs: the number of steps follows from the measured speed, and the
            schedules end with it. Warm-up keeps its fraction of the epochs. null: epochs or steps.
        patience: with trained weights to start from: checks in a row with an encoder worse than the best one after
            which the run stops, of at most six; null: it does not stop. The best encoder is kept in any case.
        batch_size: images per step, over all devices; at most the number of images.
        chunk_size: images per device that pass through the encoder at a time: memory for one chunk, the loss of the
            whole batch, at the cost of a second forward pass; null: the whole batch.
        gradient_checkpointing: recompute activations in the backward pass: less memory, at the cost of a second
            forward pass.
        seed: seed of weights, order and views.
        workers: loader processes per training process; null: one per core.
        precision: 32-true, bf16-mixed or 16-mixed; auto: bf16-mixed on GPUs that support it, on a CPU the
            faster of 32-true and bf16-mixed, which is measured, else 32-true.
        accelerator: auto, cpu, gpu or mps.
        devices: training processes per machine, one per GPU; auto: as started by torchrun or SLURM, else all GPUs, or
            one process on a CPU, which uses all cores.
        nodes: number of machines; auto: as started by torchrun or SLURM, else one.
        strategy: ddp: every device holds the network; fsdp: its weights are sharded, for networks too large for one
            device; auto: ddp.
        log_every: steps between two rows of metrics.csv.
        objective: the objective (the loss).
        projector: the projector (the head that maps features to codes).
        teacher: the teacher (the paper's asymmetric form, or none).
        optimizer: the optimizer and its schedule.
        speed: speed (faster implementations of the same mathematics).
        view_1: the augmentations of the first view.
        view_2: the augmentations of the second view.
        extra_views: further views of each image (multi-crop).
        parts: names of the objects passed to ``pretrain``: encoder, objective, view_transform, distill_from; set by it.
    """

    backbone: str = "resnet18"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    evaluation_scale: float = 1.0
    resolution_schedule: tuple[int, ...] | None = None
    channels: int | None = None
    background: str = "white"
    subsample: int | None = None
    frame_stride: int | None = None
    max_corrupt: float = 0.05
    views: Literal["fast", "reference"] = "fast"
    small_stem: bool | None = None
    whiten_stem: bool | None = None
    freeze: int = 0
    batch_norm: Literal["train", "affine-only", "frozen"] = "train"
    epochs: int = 100
    steps: int | None = None
    minutes: float | None = None
    patience: int | None = None
    batch_size: int = 256
    chunk_size: int | None = None
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
    extra_views: ExtraViewSettings = ExtraViewSettings()
    parts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.image_size
        require(size is None or size >= 8, "image_size", "at least 8 pixels, or null", size)
        scale = self.evaluation_scale
        require(0.5 <= scale <= 4, "evaluation_scale", "a number in [0.5, 4]", scale)
        require(self.channels is None or self.channels >= 1, "channels", "at least 1, or null", self.channels)
        require(self.subsample is None or self.subsample >= 1, "subsample", "at least 1, or null", self.subsample)
        stride = self.frame_stride
        require(stride is None or stride >= 1, "frame_stride", "at least 1, or null", stride)
        require(0 <= self.max_corrupt <= 1, "max_corrupt", "a fraction in [0, 1]", self.max_corrupt)
        require(self.freeze >= 0, "freeze", "at least 0", self.freeze)
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        require(self.steps is None or self.steps >= 1, "steps", "at least 1, or null", self.steps)
        require(self.minutes is None or 0 < self.minutes < math.inf, "minutes", "above 0, or null", self.minutes)
        require(self.patience is None or self.patience >= 1, "patience", "at least 1, or null", self.patience)
        require(self.batch_size >= 2, "batch_size", "at least 2", self.batch_size)
        require(self.chunk_size is None or self.chunk_size >= 1, "chunk_size", "at least 1, or null", self.chunk_size)
        require(0 <= self.seed < 2**32, "seed", "a number in [0, 2^32)", self.seed)
        require(self.workers is None or self.workers >= 0, "workers", "at least 0, or null", self.workers)
        require(self.devices == "auto" or int(self.devices) >= 1, "devices", "at least 1, or auto", self.devices)
        require(self.nodes == "auto" or int(self.nodes) >= 1, "nodes", "at least 1, or auto", self.nodes)
        supported = self.strategy != "fsdp" or self.precision != "16-mixed"
        require(supported, "precision", "32-true or bf16-mixed with strategy fsdp", self.precision)
        sharded = self.strategy != "fsdp" or self.optimizer.name in SHARDED_OPTIMIZERS
        names = join_with_or(list(SHARDED_OPTIMIZERS))
        require(sharded, "optimizer.name", f"{names} with strategy fsdp", self.optimizer.name)
        extra = self.extra_views
        expected = f"at most the image_size of {self.global_size}, or null"
        require(self.local_size <= self.global_size, "extra_views.image_size", expected, extra.image_size)
        require(not extra.count or self.views == "fast", "views", "fast with extra_views", self.views)
        self._check_resolution_schedule()
        require(self.log_every >= 1, "log_every", "at least 1", self.log_every)
        unknown = sorted(self.parts.keys() - REPLACED_SETTINGS.keys())
        require(not unknown, "parts", f"the keys {', '.join(REPLACED_SETTINGS)}", unknown)

    def _check_resolution_schedule(self) -> None:
        sizes = self.resolution_schedule
        if sizes is None:
            return
        smallest, largest = self.local_size if self.num_local else 8, self.global_size
        fits = bool(sizes) and smallest <= min(sizes) and max(sizes) == sizes[-1] == largest
        expected = f"sides from {smallest} to {largest}, the last {largest} (image_size), or null"
        require(fits, "resolution_schedule", expected, list(sizes))
        require(self.views == "fast", "views", "fast with resolution_schedule", self.views)

    def view_size(self, epoch: int, epochs: int) -> int:
        """Return the side of the global views in an epoch, from 0, of a training of ``epochs``."""
        sizes = self.resolution_schedule or (self.global_size,)
        return sizes[-1 - max(0, epochs - 1 - epoch) * len(sizes) // epochs]

    @property
    def global_size(self) -> int:
        """Side of the views in pixels, except extra ones."""
        return self.image_size or DEFAULT_IMAGE_SIZE

    @property
    def evaluation_size(self) -> int:
        """Side of the images that the trained encoder takes, in pixels."""
        return round(self.global_size * self.evaluation_scale)

    @property
    def local_size(self) -> int:
        """Side of the extra views in pixels."""
        return self.extra_views.image_size or self.global_size

    @property
    def smallest_view(self) -> int:
        """Side of the smallest views in pixels."""
        smallest = min(self.resolution_schedule or (self.global_size,))
        return min(smallest, self.local_size) if self.extra_views.count else smallest

    @property
    def num_local(self) -> int:
        """Number of local views: extra views that are smaller than the others."""
        return self.extra_views.count if self.local_size < self.global_size else 0

    def create_objective(self) -> nn.Module:
        """Return the objective of the recipe, for its views."""
        return self.objective.create(2 if self.num_local else None)

    @property
    def length(self) -> str:
        """Length of the run, as the log states it."""
        if self.minutes is not None:
            return f"{self.minutes:g} minutes of epochs"
        return f"{self.epochs:,} epochs" if self.steps is None else f"{self.steps:,} steps in epochs"

    def as_dict(self) -> dict[str, Any]:
        """Return nested dictionaries and lists, as in YAML, without settings that have no effect: those of mec with
        another objective, those of extra views if there are none, and those that objects passed to ``pretrain``
        replace. The default distortion has its value, so that a run records it."""
        settings: dict[str, Any] = dataclasses.asdict(self, dict_factory=_tuples_to_lists)
        if self.objective.distortion is None:
            settings["objective"] |= _tuples_to_lists([("distortion", default_distortion(self.objective.form))])
        for name in self.objective.unused_settings:
            del settings["objective"][name]
        replaced = {name for part in self.parts for name in REPLACED_SETTINGS[part]}
        replaced |= set() if self.parts else {"parts"}
        replaced |= set() if self.extra_views.count else {"extra_views"}
        return {name: value for name, value in settings.items() if name not in replaced}

    def setting(self, name: str) -> Any:
        """Return the value of a setting by its dotted name, such as "optimizer.lr"; None if it has no effect."""
        value: Any = self.as_dict()
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def _tuples_to_lists(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}
