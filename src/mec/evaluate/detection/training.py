"""Training a detector and looking for objects with it, on one device or many."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from mec.data.corrupt import CorruptImage, CorruptLog
from mec.data.dataset import ImageDataset
from mec.data.pixels import PixelFormat
from mec.engine.progress import ProgressBar
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections
from mec.evaluate.detection.loaders import Order, TestingBatch, TrainingBatch, testing_batches, training_batches
from mec.evaluate.detection.masks import pasted
from mec.evaluate.detection.network import Detector
from mec.evaluate.detection.schedules import Schedule
from mec.evaluate.detection.trainer import period
from mec.evaluate.task import MAX_CORRUPT, log_corrupt
from mec.models.sync_batch_norm import convert_sync_batch_norm

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4


class Detection(lightning.LightningModule):
    """A detector as lightning trains it, by a schedule."""

    def __init__(self, detector: Detector, schedule: Schedule, seed: int, images: int) -> None:
        super().__init__()
        self.detector, self.schedule, self.seed = detector, schedule, seed
        self.skipped = CorruptLog(MAX_CORRUPT, images)
        self.measured: dict[str, Tensor] = {}
        self.found: list[tuple[int, Detections]] = []
        self.lost: list[CorruptImage] = []

    def on_train_start(self) -> None:
        self.detector.train()

    def on_train_batch_start(self, batch: TrainingBatch, batch_idx: int) -> int | None:
        return -1 if self.global_step == self.schedule.max_steps else None  # the last stretch may be shorter

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        self.skipped.add(batch.lost, len(batch.images))
        # anchors and regions are drawn as torchvision draws them: the same at this step in a resumed training
        torch.manual_seed(hash((self.seed, self.global_step, self.global_rank)) % 2**63)
        losses: dict[str, Tensor] = self.detector(batch.images, batch.targets)
        loss = torch.stack(list(losses.values())).sum()
        self.measured = {name: value.detach() for name, value in losses.items()} | {"loss": loss.detach()}
        return loss

    def configure_optimizers(self) -> Any:
        norms = [m for m in self.detector.modules() if isinstance(m, _BatchNorm | nn.LayerNorm | nn.GroupNorm)]
        of_norms = {id(p) for m in norms for p in m.parameters(recurse=False)}
        parameters = list(self.detector.parameters())
        groups = [
            {"params": [p for p in parameters if id(p) not in of_norms], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if id(p) in of_norms], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD([g for g in groups if g["params"]], self.schedule.lr, momentum=MOMENTUM)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def test_step(self, batch: TestingBatch, batch_idx: int) -> None:
        self.lost += batch.lost
        if not batch.images:
            return
        for found, number, size, image in zip(
            self.detector(batch.images), batch.numbers, batch.sizes, batch.images, strict=True
        ):
            self.found.append((number, in_file(found, size, (image.shape[1], image.shape[2]))))


def in_file(found: dict[str, Tensor], size: tuple[int, int], seen: tuple[int, int]) -> Detections:
    """torchvision's detections in an image resized to ``seen`` -> in the image of ``size`` as it is in its file."""
    found = {name: value.cpu() for name, value in found.items()}
    (height, width), (seen_height, seen_width) = size, seen
    boxes = (found["boxes"] * torch.tensor([width / seen_width, height / seen_height]).repeat(2)).numpy()
    masks = pasted(found["masks"][:, 0], boxes, size) if "masks" in found else None
    return Detections(boxes, found["labels"].numpy() - 1, found["scores"].numpy(), masks)


def train(
    detector: Detector,
    annotated: AnnotatedDataset,
    reading: PixelFormat,
    schedule: Schedule,
    trainer: lightning.Trainer,
    seed: int,
    workers: int | None,
    checkpoint: Path | None,
) -> None:
    """Train by the schedule, on what has objects.

    Raises:
        InputError: divergence, or too many broken images.
    """
    processes = trainer.world_size
    having = np.array([i for i in range(len(annotated)) if annotated.usable[slice(*annotated.starts[i : i + 2])].any()])
    annotated = annotated.subset(having)
    order = Order(
        annotated.sizes[:, 1] > annotated.sizes[:, 0], schedule.batch_size, period(schedule), seed,
        trainer.global_rank, processes,
    )  # fmt: skip
    module = Detection(detector, schedule, seed, len(annotated))
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if on_gpu and processes > 1:
        convert_sync_batch_norm(module.detector, "cuda")
    loader = training_batches(annotated, order, reading, schedule, on_gpu, workers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # it advises what is decided here
        try:
            trainer.fit(module, loader, ckpt_path=checkpoint)
        except SystemExit as error:  # lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from error
    measure_norms(module, loader, trainer)
    if trainer.is_global_zero:
        log_corrupt(module.skipped)


@torch.no_grad()
def measure_norms(module: Detection, loader: DataLoader[TrainingBatch], trainer: lightning.Trainer) -> None:
    """BatchNorm's statistics over many batches of the final weights: those kept in training trail behind them.

    Precise BN (Wu and Johnson 2021), part of MoCo's protocol.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    batches = module.schedule.precise
    if not norms or not batches:
        return
    kept = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    module.to(trainer.strategy.root_device).train()
    with ProgressBar("statistics of BatchNorm" if trainer.is_global_zero else "", batches, unit="batches") as shown:
        for number, batch in enumerate(islice(_from_the_first(loader), batches)):
            batch = trainer.strategy.batch_to_device(batch)
            torch.manual_seed(hash((module.seed, -1 - number, trainer.global_rank)) % 2**63)
            with trainer.precision_plugin.forward_context():
                module.detector(batch.images, batch.targets)
            shown.advance(1)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        for measured in (norm.running_mean, norm.running_var):
            if trainer.world_size > 1 and measured is not None:
                torch.distributed.all_reduce(measured)
                measured /= trainer.world_size


def _from_the_first(loader: DataLoader[TrainingBatch]) -> Iterator[TrainingBatch]:
    """The batches of a training on and on, wherever this one ended: the same after a resumed one."""
    for stretch in count():
        loader.sampler.set_epoch(stretch)  # type: ignore[attr-defined]
        yield from loader


def look(
    detector: Detector,
    dataset: ImageDataset,
    reading: PixelFormat,
    schedule: Schedule,
    trainer: lightning.Trainer,
    workers: int | None,
) -> dict[int, Detections]:
    """What is found in each image that can be read, by its number; on all processes, each of which looks at some."""
    module = Detection(detector, schedule, 0, len(dataset))
    loader = testing_batches(dataset, reading, schedule, trainer.global_rank, trainer.world_size, workers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            trainer.test(module, loader, verbose=False)
        except SystemExit as error:
            raise KeyboardInterrupt from error
    parts = [(module.found, module.lost)]
    if trainer.world_size > 1:
        parts = parts * trainer.world_size
        torch.distributed.all_gather_object(parts, (module.found, module.lost))
    module.skipped.add([one for _, lost in parts for one in lost], len(dataset))
    if trainer.is_global_zero:
        log_corrupt(module.skipped)
    return {number: one for found, _ in parts for number, one in found}
