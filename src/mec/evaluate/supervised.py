"""Train a classifier on an encoder, frozen or not, as the published protocols do."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning
import torch
import torch.nn.functional as F
from timm.optim.lars import Lars
from torch import Tensor, nn

from mec.data.corrupt import CorruptLog
from mec.data.dataset import ImageDataset
from mec.data.loaders import evaluation_loader, training_loader, training_sampler
from mec.data.transforms.crop import Batch
from mec.data.transforms.multi_view import MultiView
from mec.embedding.extract import CROP, apply_to_images, labels_of
from mec.embedding.images import MAX_CORRUPT, in_memory, pixel_format_of
from mec.embedding.neighbors import best_device
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.accuracy import accuracies, ranking
from mec.evaluate.task import Task
from mec.models.encoder import Encoder

# Lightning logs devices and advertisements at INFO level
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
FROZEN_CHUNK = 256
"""Images in one forward pass of a frozen encoder: without a gradient a batch may be split, and 4,096 exceed caches."""


@dataclass(frozen=True)
class Settings:
    """Settings of a classifier trained on an encoder.

    Attributes:
        epochs: passes over the labeled images.
        batch_size: images in a step; at most the number of images.
        head_lr: learning rate of the linear layer for a batch of 256; scaled by batch / 256.
        backbone_lr: learning rate of the encoder for a batch of 256; 0 freezes it with its BatchNorm statistics.
        schedule: learning rate by epoch: cosine to 0, or steps, divided by 5 after 60 and 80 % of the epochs.
        optimizer: sgd with momentum 0.9, or lars: the same with layer-wise rates (trust 0.001, not clipped).
        standardize: BatchNorm without affine (eps 1e-6) before the linear layer.
        weight_decay: weight decay of all trained parameters.
    """

    epochs: int
    batch_size: int
    head_lr: float
    backbone_lr: float = 0.0
    schedule: Literal["cosine", "steps"] = "cosine"
    optimizer: Literal["sgd", "lars"] = "sgd"
    standardize: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, minimum in (("epochs", 1), ("batch_size", 2)):
            if getattr(self, name) < minimum:
                raise InputError(f"{name}: expected at least {minimum}, got {getattr(self, name)}")
        for name in ("head_lr", "backbone_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}: expected a number of at least 0, got {getattr(self, name)}")

    def factor(self, epoch: int) -> float:
        """Return the factor of the learning rates in an epoch."""
        if self.schedule == "steps":
            return float(0.2 ** sum(epoch >= fraction * self.epochs for fraction in (0.6, 0.8)))
        return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


# the paper's code, benchmarks/linearprob; SimSiam's paper, appendix A
PAPER_PROBE = Settings(100, 4096, head_lr=0.03, optimizer="lars", standardize=True)
SIMSIAM_PROBE = Settings(90, 4096, head_lr=0.02, optimizer="lars")


def overridden(settings: Settings, **changes: Any) -> Settings:
    """Return the settings with the ``changes`` that are not None."""
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})


def protocol_settings(settings: Settings, num_images: int) -> dict[str, Any]:
    """Return the settings that must agree for two results to be comparable, for a training set of ``num_images``."""
    batch_size = min(settings.batch_size, num_images)
    return {
        "head": "BatchNorm and linear" if settings.standardize else "linear",
        "optimizer": settings.optimizer.upper(),
        "backbone_lr": settings.backbone_lr or None,
        "head_lr": settings.head_lr,
        "lr_batch": 256,
        "batch_size": batch_size,
        "schedule": settings.schedule,
        "epochs": settings.epochs,
        "steps": settings.epochs * math.ceil(num_images / batch_size),
        "augmentation": "crops and flips",
    }


class Classifier(lightning.LightningModule):
    """An encoder and a linear layer on its features, trained by cross-entropy.

    Args:
        encoder: trained too, unless ``settings.backbone_lr`` is 0.
        labels: (n,) labels of the dataset, by image index.
        classes: number of classes.
        settings: settings of the training.
        batch: images in a step, to scale the learning rates.
        seed: seed of the crops.
    """

    def __init__(self, encoder: Encoder, labels: Tensor, classes: int, settings: Settings, batch: int, seed: int):
        super().__init__()
        self.encoder, self.settings, self.labels = encoder, settings, labels
        self.scale = batch / 256
        self.views = MultiView(encoder.image_size, [CROP], seed)
        linear = nn.Linear(encoder.num_features, classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        norm = [nn.BatchNorm1d(encoder.num_features, affine=False, eps=1e-6)] if settings.standardize else []
        self.head = nn.Sequential(*norm, linear)
        self.frozen = settings.backbone_lr == 0
        self.to(memory_format=torch.channels_last)
        self.corrupt_log = CorruptLog(MAX_CORRUPT, len(labels))
        self.latest_loss = torch.tensor(math.nan)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, classes) of images (n, c, h, w), uint8 or in [0, 1]."""
        x = self.encoder.normalize(images).contiguous(memory_format=torch.channels_last)
        if self.frozen:
            with torch.no_grad():
                features = torch.cat([self.encoder(chunk) for chunk in torch.split(x, FROZEN_CHUNK)])
        else:
            features = self.encoder(x)
        logits: Tensor = self.head(features)
        return logits

    def on_train_epoch_start(self) -> None:
        self.encoder.train(not self.frozen)
        self.head.train()
        factor = self.settings.factor(self.current_epoch) * self.scale
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = factor * group["base_lr"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.corrupt_log.add(batch.corrupt, len(batch.indices))
        (x,) = self.views(batch.images, batch.indices, batch.epoch)
        labels = self.labels[torch.from_numpy(batch.source_indices)].to(x.device)
        loss = F.cross_entropy(self(x), labels)
        self.latest_loss = loss.detach()
        return loss

    def on_train_epoch_end(self) -> None:
        if not self.latest_loss.isfinite():
            raise InputError(f"head_lr, backbone_lr: training diverged in epoch {self.current_epoch}; lower them")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        s = self.settings
        groups = [{"params": list(self.head.parameters()), "base_lr": s.head_lr}]
        if not self.frozen:
            groups.append({"params": list(self.encoder.parameters()), "base_lr": s.backbone_lr})
        if s.optimizer == "lars":
            # always_adapt without clipping is apex's LARC(clip=False), which the protocols use
            return Lars(groups, lr=1.0, momentum=0.9, weight_decay=s.weight_decay, always_adapt=True)
        return torch.optim.SGD(groups, lr=1.0, momentum=0.9, weight_decay=s.weight_decay)


def train_and_test(
    task: Task, train: ImageDataset, encoder: Encoder, settings: Settings, seed: int, label: str
) -> dict[str, float]:
    """Train a classifier on ``train`` and return its accuracies on the test images of the task."""
    if task.group.world_size > 1:
        raise InputError(
            f"processes: expected one for training a classifier, got {task.group.world_size}; start it "
            "without torchrun or srun"
        )
    encoder = encoder if settings.backbone_lr == 0 else copy.deepcopy(encoder)
    classifier = fit(train, len(task.classes), encoder, settings, seed, task.workers, label)
    device = best_device()
    classifier.eval().to(device)
    loader = evaluation_loader(task.test, pixel_format_of(encoder), encoder.image_size, workers=task.workers)
    ranked, indices = apply_to_images(
        task.test, loader, f"{label}, test", lambda x: ranking(classifier(x.to(device)).float())
    )
    return accuracies(ranked, labels_of(task.test)[indices], len(task.classes))


def fit(
    dataset: ImageDataset,
    classes: int,
    encoder: Encoder,
    settings: Settings,
    seed: int,
    workers: int | None,
    label: str,
) -> Classifier:
    """Train a classifier on labeled images. ``encoder`` is modified in place unless it is frozen."""
    pixel_format = pixel_format_of(encoder)
    dataset = in_memory(dataset, pixel_format)
    batch = min(settings.batch_size, len(dataset))
    if batch < 2:
        raise InputError(f"data: expected at least 2 labeled images, got {batch}")
    # BatchNorm cannot normalize a last batch of one image
    sampler = training_sampler(dataset, batch, seed, drop_last=len(dataset) % batch == 1)
    device = best_device()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        module = Classifier(encoder, labels_of(dataset), classes, settings, batch, seed)
        loader = training_loader(dataset, module.views, sampler, pixel_format, device, workers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning advises against choices made on purpose
            trainer = lightning.Trainer(
                accelerator=device.type,
                devices=1,
                precision="32-true",  # as in the published protocols
                max_epochs=settings.epochs,
                logger=False,
                callbacks=[_Progress(label)],
                use_distributed_sampler=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            try:
                trainer.fit(module, loader)
            except SystemExit as error:  # Lightning turns Ctrl-C into SystemExit
                raise KeyboardInterrupt from error
    return module


class _Progress(lightning.Callback):
    def __init__(self, label: str) -> None:
        self.label = label
        self.progress: ProgressBar | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.progress = ProgressBar(self.label, int(trainer.estimated_stepping_batches), unit="steps").__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.progress is not None
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.progress.advance(1, lambda: f"{epoch}  loss {float(pl_module.latest_loss):.3f}")

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.__exit__()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop()
