"""MEC against SimCLR, SimSiam, BYOL, Barlow Twins and VICReg on CIFAR-10: same encoder, views, epochs and loop.

python benchmarks/cifar10.py --device cuda --minutes 9    (repeat until all rows are complete)
python benchmarks/cifar10.py --device cpu --quick         (a narrow ResNet, a fifth of the images, one seed)

Images (uint8), views and networks are on the device, and all methods share one loop. Methods differ by loss, heads, lr
and weight decay, each as published (methods.py lists the sources). lightly comes with the extra ``bench``.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mec
from cells import Cells, Clock, Deadline, until_deadline
from mec.data import PixelFormat
from mec.data.analysis import load_into_memory
from mec.data.datasets.arrays import data_home
from mec.data.transforms.multi_view import TwoViews
from mec.embedding.extract import feature_function
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import fast_probe_accuracies
from mec.evaluate.task import Features, accuracies
from mec.files import atomic_write
from mec.models.encoder import Encoder, create_encoder
from mec.pretraining.module import lr_factor
from methods import METHODS, Method, Network, apply_lars

CHECKPOINT_INTERVAL = 60
"""Seconds between two checkpoints, which are written at the ends of epochs."""
FEATURE_BATCH = 1000
"""Images in one forward pass of feature extraction."""
VIEWS = "mec's recipe cifar10-resnet18: crops and colors of the paper, without blur, solarize 0.2 in the second"


@dataclass(frozen=True)
class Settings:
    """Settings that all methods share.

    Attributes:
        epochs: epochs of pretraining.
        batch_size: images in a step.
        subsample: use every n-th train image.
        max_width: maximum width of the heads' layers.
        small_stem: use a stem for small images.
        backbone_options: options of the ResNet-18.
        momentum: momentum of SGD.
    """

    epochs: int = 200
    batch_size: int = 512
    subsample: int = 1
    max_width: int = 2048
    small_stem: bool = True
    backbone_options: dict[str, Any] = field(default_factory=dict)
    momentum: float = 0.9

    @property
    def warmup_epochs(self) -> float:
        return min(10, self.epochs / 4)

    def as_dict(self) -> dict[str, Any]:
        optimizer = "SGD, linear warm-up, half cosine to 0, weight decay on all parameters"
        return asdict(self) | {"warmup_epochs": self.warmup_epochs, "optimizer": optimizer, "views": VIEWS}


NARROW = {"layers": [1, 1, 1, 1], "channels": [64, 128, 192, 256], "zero_init_last": False}
QUICK = Settings(epochs=20, batch_size=256, subsample=5, max_width=512, small_stem=False, backbone_options=NARROW)


@dataclass
class Data:
    """uint8 images (n, c, h, w) on the device, labels (n,) on the CPU."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


def open_data(data: str, subsample: int, device: torch.device) -> Data:
    tensors: list[Tensor] = []
    for split, step in (("train", subsample), ("test", 1)):
        dataset = load_into_memory(mec.open_dataset(data, split), PixelFormat())[0]
        images = torch.from_numpy(np.ascontiguousarray(dataset.images[::step].transpose(0, 3, 1, 2)))
        tensors += [images.to(device), torch.from_numpy(dataset.labels[::step])]
    return Data(*tensors, classes=len(dataset.classes))


def new_encoder(settings: Settings, seed: int) -> Encoder:
    torch.manual_seed(seed)
    return create_encoder("resnet18", 32, 3, settings.small_stem, options=settings.backbone_options)


def train(
    method: Method, data: Data, settings: Settings, seed: int, checkpoint: Path, clock: Clock
) -> tuple[Network, float, float]:
    """Train a method, resuming from ``checkpoint`` if it exists. A loss that is not finite ends the training early.

    Returns:
        The network after the last epoch, the seconds of training over all calls, and the mean loss of the last epoch.

    Raises:
        Deadline: there is no time for another epoch; the checkpoint is written.
    """
    network = method.build(new_encoder(settings, seed), settings.max_width)
    device, recipe = data.train.device, mec.load_recipe("cifar10-resnet18")
    views = TwoViews(32, recipe.view_1, recipe.view_2, seed)
    network.to(device, memory_format=torch.channels_last).train()
    trained = [p for p in network.parameters() if p.requires_grad]
    lars = method.trust_coefficient
    weights = [] if lars is None else [p for p in trained if p.ndim > 1]
    weight_decay = method.weight_decay if lars is None else 0.0
    optimizer = torch.optim.SGD(trained, momentum=settings.momentum, weight_decay=weight_decay)
    first_epoch, previous_seconds, mean_loss = 0, 0.0, float("nan")
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, previous_seconds, mean_loss = state["epochs"], state["seconds"], state["loss"]
    steps_per_epoch = len(data.train) // settings.batch_size
    max_lr = method.lr * settings.batch_size / 256
    steps, warmup = settings.epochs * steps_per_epoch, round(settings.warmup_epochs * steps_per_epoch)
    saved = started = time.perf_counter()
    for epoch in range(first_epoch, settings.epochs):
        epoch_started = time.perf_counter()
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        total = torch.zeros((), device=device)
        for i in range(steps_per_epoch):
            indices = order[i * settings.batch_size : (i + 1) * settings.batch_size]
            network.update_teacher()
            network.schedule((epoch * steps_per_epoch + i) / max(1, steps - 1))
            loss = two_view_loss(network, views(data.train[indices.to(device)], indices, epoch))
            optimizer.zero_grad()
            loss.backward()
            lr = max_lr * lr_factor(epoch * steps_per_epoch + i, steps, warmup)
            optimizer.param_groups[0]["lr"] = lr
            if lars is not None:
                apply_lars(weights, lr, method.weight_decay, lars)
            optimizer.step()
            total += loss.detach()
        mean_loss = float(total) / steps_per_epoch
        if not math.isfinite(mean_loss):
            break
        now = time.perf_counter()
        is_last = now - clock.started + 1.2 * (now - epoch_started) > clock.limit
        if now - saved > CHECKPOINT_INTERVAL or is_last or epoch + 1 == settings.epochs:
            saved = now
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic_write(checkpoint) as path:
                seconds = previous_seconds + now - started
                torch.save(state | {"epochs": epoch + 1, "seconds": seconds, "loss": mean_loss}, path)
        if is_last and epoch + 1 < settings.epochs:
            raise Deadline
    return network, previous_seconds + time.perf_counter() - started, mean_loss


def two_view_loss(network: Network, views: tuple[Tensor, ...]) -> Tensor:
    x1, x2 = (network.encoder.normalize(x).contiguous(memory_format=torch.channels_last) for x in views)
    with torch.autocast(x1.device.type, torch.bfloat16):
        pairs = network(x1, x2)
    return network.loss(pairs)


def measure(data: Data, features: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Return the top-1 accuracies of kNN and the fast linear probe on features of uncropped images, in percent."""
    train, test = (
        torch.cat([features(x).cpu() for x in x_all.split(FEATURE_BATCH)]) for x_all in (data.train, data.test)
    )
    ranked = knn_ranking(train, data.train_labels, test, [20, 200], data.classes)
    metrics = {f"kNN, k={k}": accuracies(r, data.test_labels, data.classes)["top-1"] for k, r in ranked.items()}
    cached = Features("", train, data.train_labels, test, data.test_labels)
    metrics["linear"] = fast_probe_accuracies(cached, data.classes)["top-1"]
    return {name: 100 * float(value) for name, value in metrics.items()}


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    torch.backends.cudnn.benchmark = True
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def measure_baselines(cells: Cells, data: Data, settings: Settings, clock: Clock) -> None:
    baselines: dict[str, Callable[[Tensor], Tensor]] = {
        "raw pixels": lambda x: x.flatten(1).float() / 255,
        "untrained encoder": feature_function(new_encoder(settings, 0), data.train.device),
    }
    for name, features in baselines.items():
        if not cells.has(method=name):
            clock.require(0)
            started = time.perf_counter()
            metrics = measure(data, features)
            cells.add({"method": name, "seed": 0} | metrics | {"evaluation_seconds": time.perf_counter() - started})


def cell(
    name: str, seed: int, data: Data, settings: Settings, checkpoint: Path, clock: Clock, evaluation_seconds: float
) -> dict[str, Any]:
    """Train and evaluate one method with one seed; ``evaluation_seconds`` are reserved for the evaluation."""
    if data.train.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    network, seconds, loss = train(METHODS[name], data, settings, seed, checkpoint, clock)
    row: dict[str, Any] = {"method": name, "seed": seed, "training_seconds": seconds}
    if not math.isfinite(loss):
        return row | {"diverged": True}
    if data.train.is_cuda:
        row["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    clock.require(evaluation_seconds)  # the next call starts from the last checkpoint
    started = time.perf_counter()
    row |= {"loss": loss} | measure(data, feature_function(network.encoder, data.train.device))
    return row | {"evaluation_seconds": time.perf_counter() - started}


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for column in ("method", "trials", "kNN, k=20", "kNN, k=200", "linear", "training, min"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name in dict.fromkeys(row["method"] for row in rows):
        trials = [row for row in rows if row["method"] == name]
        means = [_mean([row.get(m, float("nan")) for row in trials]) for m in ("kNN, k=20", "kNN, k=200", "linear")]
        minutes = np.mean([row.get("training_seconds", 0) for row in trials]) / 60
        table.add_row(name, str(len(trials)), *means, f"{minutes:.1f}" if minutes else "")
    Console().print(table)


def _mean(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def main(
    data: str = "cifar10",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    epochs: int | None = None,
    trials: int | None = None,
    methods: list[str] | None = None,
    quick: bool = False,
    minutes: float | None = None,
    work: Path | None = None,
    threads: int | None = None,
) -> None:
    """Train and evaluate every method, all with seed 0 before the next seed. A repeated call continues.

    Args:
        data: cifar10, or a folder with train and test.
        device: device of images and networks.
        epochs: epochs of pretraining; null: 200, or 20 with quick.
        trials: trainings of each method; null: 3, or 1 with quick.
        methods: names of methods; null: all.
        quick: run the version for a CPU.
        minutes: time limit of this call; a later call continues.
        work: folder for checkpoints; null: benchmarks/ in the folder of the built-in datasets.
        threads: CPU threads; null: PyTorch's default.
    """
    clock = Clock(minutes)
    if threads is not None:
        torch.set_num_threads(threads)
    default = QUICK if quick else Settings()
    settings = Settings(**asdict(default) | {"epochs": epochs or default.epochs})
    name = "cifar10_quick" if quick else "cifar10"
    methods_dict = {n: {k: v for k, v in asdict(m).items() if k != "build"} for n, m in METHODS.items()}
    question = "MEC against other methods on CIFAR-10: same encoder, views, epochs and loop; last epoch, top-1 %"
    cells = Cells(name, question, settings.as_dict() | {"methods": methods_dict})
    folder = work or data_home() / "benchmarks"
    with until_deadline():
        tensors = open_data(data, settings.subsample, resolve_device(device))
        measure_baselines(cells, tensors, settings, clock)
        for seed, method in itertools.product(range(trials or (1 if quick else 3)), methods or METHODS):
            if not cells.has(method=method, seed=seed):
                checkpoint = folder / f"{name}-{method}-{seed}-{settings.epochs}.pt".replace(" ", "-").lower()
                evaluation_seconds = max(row.get("evaluation_seconds", 0.0) for row in cells.rows)
                cells.add(cell(method, seed, tensors, settings, checkpoint, clock, evaluation_seconds))
                checkpoint.unlink(missing_ok=True)
    title = f"CIFAR-10, {settings.epochs} epochs of {50_000 // settings.subsample:,} images, top-1 %"
    print_table(cells.rows, title)


if __name__ == "__main__":
    auto_cli(main, args=["--quick=true" if a == "--quick" else a for a in sys.argv[1:]])
