"""Training and inference of a detector, on one device or many."""

from __future__ import annotations

from collections.abc import Mapping
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
from mec.embedding.extract import MAX_CORRUPT, log_corrupt
from mec.engine.checkpoints import PreemptionCheckpoint
from mec.engine.progress import ProgressBar, TrainingModule, TrainingProgress
from mec.engine.trainer import make_trainer, running
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections
from mec.evaluate.detection.detectors import Detector, paste_masks
from mec.evaluate.detection.loaders import (
    AspectRatioBatchSampler,
    TestBatch,
    TrainBatch,
    make_test_loader,
    make_train_loader,
)
from mec.models.checkpoint_files import checkpoint_step
from mec.models.sync_batch_norm import convert_sync_batch_norm

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
LOG_EVERY_N_STEPS = 20  # between two rows of metrics.csv: reading a loss waits for the device
LOSSES = {
    "loss_classifier": "class", "loss_box_reg": "box", "loss_mask": "mask", "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
}  # fmt: skip
"""torchvision's name of each loss -> its name in the progress bar."""


def detection_trainer(
    folder: Path, label: str, devices: int | str, nodes: int | str, precision: str
) -> lightning.Trainer:
    """Create a trainer that writes checkpoints and metrics.csv to ``folder``."""
    return make_trainer(
        folder,
        devices,
        nodes,
        precision,
        max_epochs=1,  # all batches of the sampler
        logger=False,
        callbacks=[TrainingProgress(label, folder), PreemptionCheckpoint(folder / "checkpoints")],
    )


class DetectionModule(TrainingModule):
    """A detector, trained or run on test images; ``seed`` is that of the sampling of anchors and proposals."""

    def __init__(self, detector: Detector, seed: int, num_images: int) -> None:
        super().__init__()
        self.detector, self.schedule, self.seed = detector, detector.schedule, seed
        self.batch_size = self.schedule.batch_size
        loss_names = [name for name in LOSSES if detector.roi_heads.mask_predictor is not None or name != "loss_mask"]
        self.metric_names = ("lr", "loss", *loss_names)
        self.corrupt_log = CorruptLog(MAX_CORRUPT, num_images)
        self.detections: list[tuple[int, Detections]] = []
        self.corrupt_test_images: list[CorruptImage] = []
        self.test_progress: ProgressBar | None = None

    def on_train_start(self) -> None:
        self.detector.train()

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        self.corrupt_log.add(batch.corrupt, len(batch.images))
        # torchvision samples anchors and proposals with the global generator: reseed it per step, so that a resumed run
        # draws the same samples
        torch.manual_seed(hash((self.seed, self.global_step, self.global_rank)) % 2**63)
        losses: dict[str, Tensor] = self.detector(batch.images, batch.targets)
        loss = torch.stack(list(losses.values())).sum()
        lr = self.schedule.lr * self.schedule.lr_factor(self.global_step)
        self.step_metrics = {"lr": lr, **{name: value.detach() for name, value in [("loss", loss), *losses.items()]}}
        is_last = self.global_step + 1 == self.schedule.max_steps
        self.step_is_logged = self.global_step % LOG_EVERY_N_STEPS == 0 or is_last
        return loss

    def progress_text(self, metrics: Mapping[str, float], short: bool) -> str:
        if not metrics:
            return ""
        values = {short_name: metrics[name] for name, short_name in LOSSES.items() if name in metrics}
        if short:
            values["rpn"] = values.pop("objectness") + values.pop("proposals")
            return " ".join(f"{name} {f'{value:.2f}'.lstrip('0')[:3]}" for name, value in values.items())
        total = f"{self.global_step:,}/{self.schedule.max_steps:,}  loss {metrics['loss']:.2f}"
        return f"{total} ({'  '.join(f'{name} {value:.2f}' for name, value in values.items())})"

    def configure_optimizers(self) -> Any:
        norms = [m for m in self.detector.modules() if isinstance(m, _BatchNorm | nn.LayerNorm | nn.GroupNorm)]
        in_norms = {p: None for m in norms for p in m.parameters(recurse=False)}
        others = [p for p in self.detector.parameters() if p not in in_norms]
        groups = [{"params": others, "weight_decay": WEIGHT_DECAY}, {"params": [*in_norms], "weight_decay": 0.0}]
        optimizer = torch.optim.SGD([g for g in groups if g["params"]], self.schedule.lr, momentum=MOMENTUM)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def test_step(self, batch: TestBatch, batch_idx: int) -> None:
        self.corrupt_test_images += batch.corrupt
        if self.test_progress is not None:
            self.test_progress.advance(self.trainer.world_size)
        outputs = self.detector(batch.images) if batch.images else []
        for output, index, size, image in zip(outputs, batch.indices, batch.sizes, batch.images, strict=True):
            self.detections.append((index, to_original_size(output, size, (image.shape[1], image.shape[2]))))


def to_original_size(
    output: dict[str, Tensor], original_size: tuple[int, int], resized_size: tuple[int, int]
) -> Detections:
    """Convert torchvision's output for a resized image to detections in pixels of the original image."""
    output = {name: value.cpu() for name, value in output.items()}
    (height, width), (resized_height, resized_width) = original_size, resized_size
    boxes = (output["boxes"] * torch.tensor([width / resized_width, height / resized_height]).repeat(2)).numpy()
    masks = paste_masks(output["masks"][:, 0], boxes, original_size) if "masks" in output else None
    # torchvision's class 0 is background
    return Detections(boxes, output["labels"].numpy() - 1, output["scores"].numpy(), masks)


def train(
    detector: Detector,
    dataset: AnnotatedDataset,
    trainer: lightning.Trainer,
    seed: int,
    workers: int | None,
    checkpoint: Path | None,
) -> None:
    """Train according to the detector's schedule, on the images that have targets."""
    schedule = detector.schedule
    has_targets = [dataset.is_target[slice(*dataset.offsets[i : i + 2])].any() for i in range(len(dataset))]
    dataset = dataset.subset(np.flatnonzero(has_targets))
    sampler = AspectRatioBatchSampler(
        is_landscape=dataset.sizes[:, 1] > dataset.sizes[:, 0],
        batch_size=schedule.batch_size,
        num_batches=schedule.max_steps,
        seed=seed,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    if checkpoint is not None:
        sampler.resume_at(checkpoint_step(checkpoint))
    module = DetectionModule(detector, seed, len(dataset))
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if on_gpu and trainer.world_size > 1:
        convert_sync_batch_norm(module.detector, "cuda")
    loader = make_train_loader(dataset, sampler, detector.pixel_format, schedule, on_gpu, workers)
    with running(trainer):
        trainer.fit(module, loader, ckpt_path=checkpoint)
    update_bn_stats(module, loader, trainer)
    log_corrupt(module.corrupt_log)


@torch.no_grad()
def update_bn_stats(module: DetectionModule, loader: DataLoader[TrainBatch], trainer: lightning.Trainer) -> None:
    """Recompute BatchNorm's running statistics with the final weights: the moving averages of training lag behind
    (precise BN, Wu and Johnson 2021, part of MoCo's protocol)."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    num_batches = module.schedule.precise_bn_batches
    if not norms or not num_batches:
        return
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    module.to(trainer.strategy.root_device).train()
    # the first batches of the sequence, whether or not the training was resumed
    sampler: Any = loader.sampler
    sampler.resume_at(0)
    sampler.num_batches = num_batches
    with ProgressBar("BatchNorm statistics", num_batches, unit="batches") as progress:
        for number, batch in enumerate(loader):
            batch = trainer.strategy.batch_to_device(batch)
            torch.manual_seed(hash((module.seed, -1 - number, trainer.global_rank)) % 2**63)
            with trainer.precision_plugin.forward_context():
                module.detector(batch.images, batch.targets)
            progress.advance(1)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.running_mean, norm.running_var):
            if trainer.world_size > 1 and statistic is not None:  # each process has averaged over its own batches
                torch.distributed.all_reduce(statistic)
                statistic /= trainer.world_size


def run_detector(
    detector: Detector,
    dataset: ImageDataset | AnnotatedDataset,
    trainer: lightning.Trainer,
    workers: int | None,
    label: str = "detections",
) -> dict[int, Detections]:
    """Return image index -> detections of every readable image, in every process; the processes share the images. Those
    of an AnnotatedDataset must have the annotated sizes."""
    module = DetectionModule(detector, 0, len(dataset))
    rank, world_size = trainer.global_rank, trainer.world_size
    loader = make_test_loader(dataset, detector.pixel_format, detector.schedule, rank, world_size, workers)
    with running(trainer), ProgressBar(label, len(loader) * world_size) as module.test_progress:
        trainer.test(module, loader, verbose=False)
    gathered = [(module.detections, module.corrupt_test_images)]
    if world_size > 1:
        gathered = gathered * world_size
        torch.distributed.all_gather_object(gathered, (module.detections, module.corrupt_test_images))
    module.corrupt_log.add([image for _, corrupt in gathered for image in corrupt], len(dataset))
    log_corrupt(module.corrupt_log)
    return {index: image_detections for detections, _ in gathered for index, image_detections in detections}
