"""Train a classifier on an encoder, frozen or not, as the published protocols do."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.optim.lars import Lars
from torch import Tensor, nn

from mec.data.corrupt import CorruptLog
from mec.data.dataset import ImageDataset, PathLike
from mec.data.loaders import evaluation_loader, training_loader, training_sampler
from mec.data.transforms.crop import Batch
from mec.data.transforms.multi_view import MultiView
from mec.embedding.extract import CROP, MAX_CORRUPT, apply_to_images, best_device, in_memory, labels_of, pixel_format_of
from mec.engine.checkpoints import PreemptionCheckpoint, latest_checkpoint
from mec.engine.progress import TrainingModule, TrainingProgress
from mec.engine.run_folder import lock_folder, write_or_compare_settings
from mec.engine.trainer import make_trainer, running, seeded
from mec.errors import InputError
from mec.evaluate.task import Task, accuracies, ranking
from mec.files import atomic_write
from mec.models.checkpoint_files import checkpoint_step
from mec.models.encoder import Encoder

logger = logging.getLogger("mec")

ACCURACIES_FILE = "accuracies.json"
LOG_EVERY_N_STEPS = 20  # reading the loss waits for the device
FROZEN_CHUNK = 256
"""Images in one forward pass of a frozen encoder: without a gradient a batch may be split, and 4,096 exceed caches."""


@dataclass(frozen=True)
class Settings:
    """Settings of a classifier trained on an encoder. Learning rates are for a batch of 256, scaled by batch / 256."""

    epochs: int
    batch_size: int  # at most the number of images
    head_lr: float
    backbone_lr: float = 0.0  # 0 freezes the encoder with its BatchNorm statistics
    schedule: Literal["cosine", "steps"] = "cosine"  # by epoch: to 0, or divided by 5 after 60 and 80 % of the epochs
    optimizer: Literal["sgd", "lars"] = "sgd"  # momentum 0.9; lars: layer-wise rates (trust 0.001, not clipped)
    standardize: bool = False  # BatchNorm without affine (eps 1e-6) before the linear layer
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


class Classifier(TrainingModule):
    """An encoder, trained unless ``settings.backbone_lr`` is 0, and a linear layer on its features, by cross-entropy.
    ``labels`` (n,) are by image index, ``batch`` scales the learning rates, ``seed`` is that of crops and dropout."""

    def __init__(self, encoder: Encoder, labels: Tensor, classes: int, settings: Settings, batch: int, seed: int):
        super().__init__()
        self.encoder, self.settings, self.labels = encoder, settings, labels
        self.batch_size, self.seed = batch, seed
        self.views = MultiView(encoder.image_size, [CROP], seed)
        linear = nn.Linear(encoder.num_features, classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        norm = [nn.BatchNorm1d(encoder.num_features, affine=False, eps=1e-6)] if settings.standardize else []
        self.head = nn.Sequential(*norm, linear)
        self.frozen = settings.backbone_lr == 0
        self.to(memory_format=encoder.memory_format)
        self.corrupt_log = CorruptLog(MAX_CORRUPT, len(labels))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, classes) of images (n, c, h, w), uint8 or in [0, 1]."""
        x = self.encoder.normalize(images).contiguous(memory_format=self.encoder.memory_format)
        if self.frozen:
            with torch.no_grad():
                x = torch.cat([self.encoder(chunk) for chunk in torch.split(x, FROZEN_CHUNK)])
        else:
            x = self.encoder(x)
        logits: Tensor = self.head(x)
        return logits

    def on_train_start(self) -> None:
        self.encoder.train(not self.frozen)
        self.head.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        factor = self.settings.factor(self.current_epoch) * self.batch_size / 256
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = factor * group["base_lr"]
        self.step_is_logged = self.global_step % LOG_EVERY_N_STEPS == 0
        # so that a resumed training has the same dropout
        torch.manual_seed(hash((self.seed, self.global_step)) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.corrupt_log.add(batch.corrupt, len(batch.indices))
        (x,) = self.views(batch.images, batch.indices, batch.epoch)
        labels = self.labels[torch.from_numpy(batch.source_indices)].to(x.device)
        loss = F.cross_entropy(self(x), labels)
        self.step_metrics = {"loss": loss.detach(), "lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        return loss

    def progress_text(self, metrics: Mapping[str, float], short: bool) -> str:
        loss = f"  loss {metrics['loss']:.3f}" if metrics else ""
        return f"epoch {self.current_epoch + 1}/{self.settings.epochs}{loss}"

    def divergence_message(self) -> str:
        return f"head_lr, backbone_lr: training diverged in epoch {self.current_epoch + 1}; lower them"

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
    task: Task, train: ImageDataset, encoder: Encoder, settings: Settings, seed: int, label: str, folder: Path | None
) -> dict[str, float]:
    """Train a classifier on ``train``, on a copy of the encoder unless frozen, and return its accuracies on the test
    images. Checkpoints and, at the end, the accuracies are written to ``folder``, and read there when resuming."""
    if task.group.world_size > 1:
        raise InputError(
            f"processes: expected one for training a classifier, got {task.group.world_size}; start it "
            "without torchrun or srun"
        )
    if folder is not None and (folder / ACCURACIES_FILE).exists():
        measured: dict[str, float] = json.loads((folder / ACCURACIES_FILE).read_text())
        return measured
    encoder = encoder if settings.backbone_lr == 0 else copy.deepcopy(encoder)
    classifier = fit(train, len(task.classes), encoder, settings, seed, task.workers, label, folder)
    device = best_device()
    classifier.eval().to(device)
    loader = evaluation_loader(task.test, task.pixel_format, encoder.image_size, workers=task.workers)
    ranked, indices = apply_to_images(
        task.test, loader, f"{label}, test", lambda x: ranking(classifier(x.to(device)).float())
    )
    result = accuracies(ranked, labels_of(task.test)[indices], len(task.classes))
    if folder is not None:
        with atomic_write(folder / ACCURACIES_FILE) as path:
            path.write_text(json.dumps(result))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def fit(
    dataset: ImageDataset,
    classes: int,
    encoder: Encoder,
    settings: Settings,
    seed: int,
    workers: int | None,
    label: str,
    folder: Path | None = None,
) -> Classifier:
    """Train a classifier on labeled images, from the latest checkpoint in ``folder`` if there is one. ``encoder`` is
    modified in place unless it is frozen."""
    pixel_format = pixel_format_of(encoder)
    dataset = in_memory(dataset, pixel_format)
    batch = min(settings.batch_size, len(dataset))
    if batch < 2:
        raise InputError(f"data: expected at least 2 labeled images, got {batch}")
    # BatchNorm cannot normalize a last batch of one image
    sampler = training_sampler(dataset, batch, seed, drop_last=len(dataset) % batch == 1)
    checkpoint = None if folder is None else latest_checkpoint(folder)
    if checkpoint is not None:
        logger.info(f"{label}: resuming from {checkpoint}")
        sampler.resume_at(*divmod(checkpoint_step(checkpoint), len(sampler)))
    device = best_device()
    with seeded(seed):
        module = Classifier(encoder, labels_of(dataset), classes, settings, batch, seed)
        loader = training_loader(dataset, module.views, sampler, pixel_format, device, workers)
        trainer = make_trainer(
            folder or ".",
            devices=1,
            nodes=1,
            precision="32-true",  # as in the published protocols
            accelerator=device.type,
            max_epochs=settings.epochs,
            logger=False,
            callbacks=[
                TrainingProgress(label, None),
                PreemptionCheckpoint(None if folder is None else folder / "checkpoints"),
            ],
        )
        with running(trainer):
            trainer.fit(module, loader, ckpt_path=checkpoint)
    return module


@contextmanager
def training_folder(out: PathLike | None, settings: Mapping[str, Any], resume: bool) -> Iterator[Path | None]:
    """Lock the folder of an evaluation's trainings, and delete it when the block has succeeded. ``settings`` are all
    that decide the result; with ``resume`` the folder must have the same."""
    if out is None:
        if resume:
            raise InputError("resume: expected a folder of checkpoints with it, given as out")
        yield None
        return
    folder = Path(out).expanduser()
    with lock_folder(folder):
        write_or_compare_settings(folder, settings, resume)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
