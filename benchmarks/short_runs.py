"""Pretrain a small encoder for a number of FLOPs, and evaluate it: the runs of the benchmarks of learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mec
from mec.data import PixelFormat
from mec.data.dataset import read_image
from mec.data.transforms import ViewSettings
from mec.data.transforms.multi_view import MultiView
from mec.evaluate.few_shot import class_mean_scores
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import fast_probe_accuracies
from mec.evaluate.task import Features, accuracies
from mec.models.encoder import create_encoder
from mec.models.siamese import Predictor, Projector, Siamese

EncoderName = Literal["compact", "resnet18"]
METRICS = ("kNN", "linear", "5 shots", "1 shot")


class CompactResNet(nn.Module):
    """A ResNet of three stages with one basic block each, for images of 24 to 64 px: (n, c, h, w) -> (n, 256)."""

    def __init__(self, channels: int, widths: Sequence[int] = (64, 128, 256)) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(channels, widths[0], 4, 2), nn.ReLU())
        inputs = (widths[0], *widths[:-1])
        strides = (1,) + (2,) * (len(widths) - 1)
        self.blocks = nn.Sequential(*map(_Block, inputs, widths, strides))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(x)).mean((2, 3))
        return features


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(_conv(inputs, outputs, 3, stride), nn.ReLU(), _conv(outputs, outputs, 3, 1))
        self.shortcut = nn.Sequential() if stride == 1 else nn.Sequential(nn.AvgPool2d(2), _conv(inputs, outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


NARROW = {"layers": [1, 1, 1, 1], "channels": [64, 128, 192, 256], "zero_init_last": False}


@dataclass(frozen=True)
class Dataset:
    """A dataset and the settings that all objectives share.

    Attributes:
        side: side of the stored images, which are cropped to a square.
        view: side of the views.
        whole: side of the whole images of evaluation.
        tflop: budget of a run.
        held_out: number of train images for the choice of trials.
        bank: number of train images that kNN and the linear probe use.
    """

    channels: int
    side: int
    view: int
    whole: int
    tflop: float
    held_out: int
    bank: int
    views: ViewSettings
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-2
    head: tuple[int, int] = (1024, 512)


CROPS = ViewSettings(crop_scale=(0.2, 1.0), blur=0.0, solarize=0.0)
ROTATED = ViewSettings((0.5, 1.0), flip=0.0, rotation=20, color_jitter=1.0, blur=0.0, solarize=0.0)
DATASETS = {
    "cifar10": Dataset(3, 32, 24, 32, 8, 5000, 10_000, CROPS),
    "caltech101": Dataset(3, 64, 32, 48, 8, 794, 3200, CROPS),
    "fashion-mnist": Dataset(1, 28, 24, 32, 4, 5000, 10_000, CROPS),
    "digits": Dataset(1, 8, 16, 16, 4, 300, 1400, ROTATED, 256, 5e-3, 1e-4, (256, 128)),
}


def load_images(source: str, dataset: Dataset) -> dict[str, Tensor]:
    """Return images (n, c, side, side), uint8, and labels (n,) of both splits; without a test split, a fifth is one."""
    arrays = {}
    has_splits = not Path(source).is_dir() or (Path(source) / "test").is_dir()
    for split in ("train", "test") if has_splits else ("all",):
        images = mec.open_dataset(source, split)
        squares = []
        for i in range(len(images)):
            image = Image.fromarray(read_image(images, i, PixelFormat(dataset.channels)).squeeze())
            square = ImageOps.fit(image, (dataset.side, dataset.side), Image.Resampling.LANCZOS)
            squares.append(np.asarray(square).reshape(dataset.side, dataset.side, dataset.channels))
        name = "train" if split == "all" else split
        arrays[name] = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()
        arrays[f"{name}_labels"] = torch.as_tensor(np.asarray(images.labels), dtype=torch.long)
    if not has_splits:
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(arrays["train"])))
        for name in ("train", "train_labels"):
            train, test = order.tensor_split([4 * len(order) // 5])
            arrays[name], arrays[name.replace("train", "test")] = arrays[name][train], arrays[name][test]
    return arrays


def split_images(arrays: dict[str, Tensor], held_out: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and labels for training, then those for evaluation: the test images, or held-out train images."""
    x, labels = arrays["train"], arrays["train_labels"]
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    x, labels = x[order], labels[order]  # folders are sorted by class
    if not held_out:
        return x, labels, arrays["test"], arrays["test_labels"]
    return x[held_out:], labels[held_out:], x[:held_out], labels[:held_out]


@dataclass(frozen=True)
class Run:
    """Settings of a run besides its dataset. ``momentum`` is that of the teacher of objectives that have one."""

    encoder: EncoderName
    num_views: int
    tflop: float
    seed: int
    momentum: float = 0.99
    lr_factor: float = 1.0


def pretrain(run: Run, objective: nn.Module, dataset: Dataset, x: Tensor) -> tuple[mec.Encoder, dict[str, float]]:
    """Train on images (n, c, side, side), uint8. Return the encoder, and "steps", "tflop" and "final_loss" of the run.

    The FLOPs of the run are those of its forward and backward passes, counted on one batch.
    """
    torch.manual_seed(run.seed)
    encoder = create(run.encoder, dataset, x)
    targets = getattr(objective, "targets", None)
    hidden, dim = dataset.head
    projector = Projector(encoder.num_features, hidden, dim, getattr(objective, "batch_norm", True))
    network = Siamese(encoder, projector, Predictor(dim, dim // 4) if targets else None, targets)
    network.to(memory_format=torch.channels_last)
    views = MultiView(dataset.view, [dataset.views] * run.num_views, run.seed)
    lr = dataset.lr * run.lr_factor
    weights = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": dataset.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr, betas=(0.9, 0.99))
    random = torch.Generator().manual_seed(run.seed)

    def loss_of(indices: Tensor, epoch: int) -> Tensor:
        crops = [encoder.normalize(v) for v in views(x[indices], indices.numpy(), epoch)]
        codes, targets = network(*(v.contiguous(memory_format=torch.channels_last) for v in crops))
        loss: Tensor = objective(codes) if targets is None else objective(codes, targets)
        return loss

    batch = min(dataset.batch, len(x))
    with FlopCounterMode(display=False) as counter:
        loss_of(torch.arange(batch), 0).backward()
    steps = max(1, round(run.tflop * 1e12 / counter.get_total_flops()))
    warmup = max(1, round(0.1 * steps))
    network.train()
    order, epoch = torch.empty(0, dtype=torch.long), 0
    for step in range(steps):
        if len(order) < batch:
            order, epoch = torch.randperm(len(x), generator=random), epoch + 1
        indices, order = order[:batch], order[batch:]
        after_warmup = max(0, step - warmup) / max(1, steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / warmup) * (1 + math.cos(math.pi * after_warmup)) / 2
        if hasattr(objective, "schedule"):
            objective.schedule(step / max(1, steps - 1))
        if hasattr(objective, "warmup"):
            objective.warmup(min(1, step / warmup))
        loss = loss_of(indices, epoch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.update_teacher(1 - (1 - run.momentum) * (1 + math.cos(math.pi * step / steps)) / 2)
    return encoder, {
        "steps": steps, "tflop": counter.get_total_flops() * steps / 1e12, "final_loss": loss.item()
    }  # fmt: skip


def create(name: EncoderName, dataset: Dataset, x: Tensor) -> mec.Encoder:
    """Return an untrained encoder with the mean and standard deviation of the images."""
    pixels = x[:10_000].float() / 255
    statistics = pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).tolist()
    if name == "compact":
        return create_encoder(CompactResNet(dataset.channels), dataset.view, dataset.channels, None, *statistics)
    return create_encoder("resnet18", dataset.view, dataset.channels, False, *statistics, NARROW)


@torch.no_grad()
def evaluate(
    encoder: mec.Encoder, dataset: Dataset, x: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor
) -> dict[str, float]:
    """Return accuracies in percent of the frozen features of whole images."""

    def features_of(images: Tensor) -> Tensor:
        blocks = []
        for block in images.split(500):
            size = (dataset.whole, dataset.whole)
            whole = F.interpolate(block.float() / 255, size, mode="bilinear", antialias=True).clamp(0, 1)
            blocks.append(encoder(encoder.normalize(whole).contiguous(memory_format=torch.channels_last)))
        return torch.cat(blocks)

    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:  # statistics of whole images instead of crops
        norm.reset_running_stats()
        norm.momentum = None
    encoder.train()
    features_of(x[:2000])
    encoder.eval()
    bank, bank_labels = features_of(x[: dataset.bank]), labels[: dataset.bank]
    features = Features("encoder", bank, bank_labels, features_of(queries), query_labels)
    classes = int(labels.max()) + 1
    ranked = knn_ranking(bank, bank_labels, features.test, [20], classes)[20]
    with torch.enable_grad():
        linear = fast_probe_accuracies(features, classes)["top-1"]
    scores = {
        "kNN": accuracies(ranked, query_labels, classes)["top-1"],
        "linear": linear,
        "5 shots": float(class_mean_scores(features, classes, 5, 20, 0)["top-1"].mean()),
        "1 shot": float(class_mean_scores(features, classes, 1, 20, 0)["top-1"].mean()),
    }
    return {name: 100 * value for name, value in scores.items()}
