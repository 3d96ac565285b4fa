"""MEC against SimCLR, SimSiam, BYOL, Barlow Twins and VICReg on CIFAR-10: same encoder, views, epochs and loop.

python benchmarks/cifar10.py --device cuda --minutes 9    (again, until it says that all is done)
python benchmarks/cifar10.py --device cpu --quick         (a narrow ResNet, a fifth of the images, one seed)

Everything is on the device: the images as bytes, the views, one plain loop. Methods differ by loss, heads, learning
rate and weight decay, each as published (methods.py names the sources). lightly comes with the extra ``bench``.
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
from cells import Cells, Clock, Deadline, until_time_is_out
from mec.data import PixelFormat
from mec.data.analysis import load_into_memory
from mec.data.datasets.builtin import data_home
from mec.data.transforms.multi_view import TwoViews
from mec.embedding.extract import feature_function
from mec.evaluate.accuracy import accuracies
from mec.evaluate.features import Features
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import probe
from mec.files import atomic_write
from mec.models.encoder import Encoder, create_encoder
from mec.pretraining.schedules import lr_factor
from methods import METHODS, Method, Network, shorten

CHECKPOINT_EVERY = 60
"""Seconds between two checkpoints, at the ends of epochs."""
ROWS = 1000
"""Images of which features are taken at once."""
PUBLISHED = "mec's recipe cifar10-resnet18: crops and colors of the paper, without blur, solarize 0.2 in the second"


@dataclass(frozen=True)
class Setting:
    """What all methods share. ``every``: take each n-th train image; ``widest``: of the heads' layers."""

    epochs: int = 200
    batch: int = 512
    every: int = 1
    widest: int = 2048
    small_stem: bool = True
    encoder: dict[str, Any] = field(default_factory=dict)
    momentum: float = 0.9

    @property
    def warmup_epochs(self) -> float:
        return min(10, self.epochs / 4)

    def words(self) -> dict[str, Any]:
        optimizer = "SGD, linear warm-up, half cosine to 0, weight decay on all parameters"
        return asdict(self) | {"warmup_epochs": self.warmup_epochs, "optimizer": optimizer, "views": PUBLISHED}


NARROW = {"layers": [1, 1, 1, 1], "channels": [64, 128, 192, 256], "zero_init_last": False}
QUICK = Setting(epochs=20, batch=256, every=5, widest=512, small_stem=False, encoder=NARROW)


@dataclass
class Data:
    """uint8 images (n, c, h, w) on the device, labels (n,) on the CPU."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


def open_data(source: str, every: int, device: torch.device) -> Data:
    parts: list[Tensor] = []
    for part, step in (("train", every), ("test", 1)):
        dataset = load_into_memory(mec.open_dataset(source, part), PixelFormat())[0]
        images = torch.from_numpy(np.ascontiguousarray(dataset.images[::step].transpose(0, 3, 1, 2)))
        parts += [images.to(device), torch.from_numpy(dataset.labels[::step])]
    return Data(*parts, classes=len(dataset.classes))


def new_encoder(setting: Setting, seed: int) -> Encoder:
    torch.manual_seed(seed)
    return create_encoder("resnet18", 32, 3, setting.small_stem, options=setting.encoder)


def train(
    method: Method, data: Data, setting: Setting, seed: int, checkpoint: Path, clock: Clock
) -> tuple[Network, float, float]:
    """The network after the last epoch, seconds in all, and the last epoch's loss; NaN ends it early.

    Goes on from the checkpoint where there is one. Raises Deadline, with a checkpoint written, where time is out.
    """
    network = method.build(new_encoder(setting, seed), setting.widest)
    device, recipe = data.train.device, mec.load_recipe("cifar10-resnet18")
    views = TwoViews(32, recipe.view_1, recipe.view_2, seed)
    network.to(device, memory_format=torch.channels_last).train()
    moving = [p for p in network.parameters() if p.requires_grad]
    weights = [] if method.trust is None else [p for p in moving if p.ndim > 1]
    decay = method.weight_decay if method.trust is None else 0.0
    optimizer = torch.optim.SGD(moving, momentum=setting.momentum, weight_decay=decay)
    first, spent, mean = 0, 0.0, float("nan")
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent, mean = state["epochs"], state["seconds"], state["loss"]
    per_epoch = len(data.train) // setting.batch
    peak = method.lr * setting.batch / 256
    steps, warmup = setting.epochs * per_epoch, round(setting.warmup_epochs * per_epoch)
    saved = begun = time.perf_counter()
    for epoch in range(first, setting.epochs):
        started = time.perf_counter()
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        total = torch.zeros((), device=device)
        for i in range(per_epoch):
            numbers = order[i * setting.batch : (i + 1) * setting.batch]
            network.follow()
            loss = loss_of(network, views(data.train[numbers.to(device)], numbers, epoch))
            optimizer.zero_grad()
            loss.backward()
            rate = peak * lr_factor(epoch * per_epoch + i, steps, warmup)
            optimizer.param_groups[0]["lr"] = rate
            if method.trust is not None:
                shorten(weights, rate, method.weight_decay, method.trust)
            optimizer.step()
            total += loss.detach()
        mean = float(total) / per_epoch
        if not math.isfinite(mean):
            break
        now = time.perf_counter()
        late = now - clock.started + 1.2 * (now - started) > clock.limit
        if now - saved > CHECKPOINT_EVERY or late or epoch + 1 == setting.epochs:
            saved = now
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic_write(checkpoint) as path:
                torch.save(state | {"epochs": epoch + 1, "seconds": spent + now - begun, "loss": mean}, path)
        if late and epoch + 1 < setting.epochs:
            raise Deadline
    return network, spent + time.perf_counter() - begun, mean


def loss_of(network: Network, views: tuple[Tensor, ...]) -> Tensor:
    x1, x2 = (network.encoder.normalize(x).contiguous(memory_format=torch.channels_last) for x in views)
    with torch.autocast(x1.device.type, torch.bfloat16):
        pairs = network(x1, x2)
    return network.loss(pairs)


def measure(data: Data, of: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """kNN and the fast linear probe of features of whole images, top-1 in percent."""
    train, test = (torch.cat([of(x).cpu() for x in part.split(ROWS)]) for part in (data.train, data.test))
    ranked = knn_ranking(train, data.train_labels, test, [20, 200], data.classes)
    found = {f"kNN, k={k}": accuracies(r, data.test_labels, data.classes)["top-1"] for k, r in ranked.items()}
    found["linear"] = probe(Features("", train, data.train_labels, test, data.test_labels), data.classes)["top-1"]
    return {name: 100 * float(value) for name, value in found.items()}


def on(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    torch.backends.cudnn.benchmark = True
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def baselines(cells: Cells, data: Data, setting: Setting, clock: Clock) -> None:
    rows: dict[str, Callable[[Tensor], Tensor]] = {
        "raw pixels": lambda x: x.flatten(1).float() / 255,
        "untrained encoder": feature_function(new_encoder(setting, 0), data.train.device),
    }
    for name, of in rows.items():
        if not cells.has(method=name):
            clock.need(0)
            started = time.perf_counter()
            figures = measure(data, of)
            cells.add({"method": name, "seed": 0} | figures | {"evaluation_seconds": time.perf_counter() - started})


def cell(
    name: str, seed: int, data: Data, setting: Setting, work: Path, clock: Clock, evaluation: float
) -> dict[str, Any]:
    """Train and measure one method with one seed; ``evaluation``: the seconds that a measurement may take."""
    if data.train.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    network, seconds, loss = train(METHODS[name], data, setting, seed, work, clock)
    row: dict[str, Any] = {"method": name, "seed": seed, "training_seconds": seconds}
    if not math.isfinite(loss):
        return row | {"diverged": True}
    if data.train.is_cuda:
        row["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    clock.need(evaluation)  # the last checkpoint waits for the next call
    started = time.perf_counter()
    row |= {"loss": loss} | measure(data, feature_function(network.encoder, data.train.device))
    return row | {"evaluation_seconds": time.perf_counter() - started}


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for column in ("method", "seeds", "kNN, k=20", "kNN, k=200", "linear", "training, min"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        shown = [_mean([row.get(f, float("nan")) for row in mine]) for f in ("kNN, k=20", "kNN, k=200", "linear")]
        minutes = np.mean([row.get("training_seconds", 0) for row in mine]) / 60
        table.add_row(name, str(len(mine)), *shown, f"{minutes:.1f}" if minutes else "")
    Console().print(table)


def _mean(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def main(
    data: str = "cifar10",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    epochs: int | None = None,
    seeds: int | None = None,
    methods: list[str] | None = None,
    quick: bool = False,
    minutes: float | None = None,
    work: Path | None = None,
    threads: int | None = None,
) -> None:
    """Train and measure every method, seed 0 of all first; call again to go on where it stopped.

    Args:
        data: CIFAR-10: its name, or a folder with train and test.
        device: where everything is.
        epochs: of pretraining; None is 200, or 20 with quick.
        seeds: runs of each method; None is 3, or 1 with quick.
        methods: some of them; None is all.
        quick: the version for a CPU.
        minutes: stop, to go on in a later call, before so many have passed.
        work: folder of checkpoints; None is benchmarks/ in the folder of named data sets.
        threads: of the CPU; None takes PyTorch's.
    """
    clock = Clock(minutes)
    if threads is not None:
        torch.set_num_threads(threads)
    default = QUICK if quick else Setting()
    setting = Setting(**asdict(default) | {"epochs": epochs or default.epochs})
    name = "cifar10_quick" if quick else "cifar10"
    published = {n: {k: v for k, v in asdict(m).items() if k != "build"} for n, m in METHODS.items()}
    question = "MEC against other methods on CIFAR-10: same encoder, views, epochs and loop; last epoch, top-1 %"
    cells = Cells(name, question, setting.words() | {"methods": published})
    folder = work or data_home() / "benchmarks"
    with until_time_is_out():
        opened = open_data(data, setting.every, on(device))
        baselines(cells, opened, setting, clock)
        for seed, method in itertools.product(range(seeds or (1 if quick else 3)), methods or METHODS):
            if not cells.has(method=method, seed=seed):
                checkpoint = folder / f"{name}-{method}-{seed}-{setting.epochs}.pt".replace(" ", "-").lower()
                evaluation = max(row.get("evaluation_seconds", 0.0) for row in cells.rows)
                cells.add(cell(method, seed, opened, setting, checkpoint, clock, evaluation))
                checkpoint.unlink(missing_ok=True)
    show(cells.rows, f"CIFAR-10, {setting.epochs} epochs of {50_000 // setting.every:,} images, top-1 %")


if __name__ == "__main__":
    auto_cli(main, args=["--quick=true" if a == "--quick" else a for a in sys.argv[1:]])
