"""Which objective learns most from the same compute, tuned and with its published settings?

Every run has the same encoder, projector, views, optimizer and number of FLOPs; only the objective differs. ``tune``
compares the trials of each objective on held-out train images. ``test`` trains on all train images with the published
settings and with the best trial, and looks at the test images. A run whose row is in the json already is not repeated.

python benchmarks/objectives.py tune --cifar10 FOLDER --caltech101 FOLDER --fashion_mnist FILE.npz
python benchmarks/objectives.py test --cifar10 FOLDER ... --seeds [0,1,2] --scale 3
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mec
from machine import RESULTS, write
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
from mec.objectives import create_objective

Stage = Literal["tune", "test"]
Encoder = Literal["compact", "resnet18"]


NAME = "objectives"
QUESTION = "which objective learns most from the same compute, with published settings and tuned"
KEYS = ("dataset", "method", "trial", "stage", "encoder", "views", "scale", "seed")
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


@dataclass(frozen=True)
class Trial:
    """An objective with its options. ``momentum`` is that of the teacher of objectives that have one."""

    objective: str
    options: dict[str, Any] = field(default_factory=dict)
    momentum: float = 0.99
    lr_factor: float = 1.0

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name, value in self.options.items()]
        parts += [f"momentum {self.momentum}"] * (self.objective == "byol")
        return ", ".join(parts + [f"lr x {self.lr_factor:g}"] * (self.lr_factor != 1)) or "default"


# The first trial of each objective has its published settings; all have four. MEC is listed three times: its default,
# whose distortion sweeps, its best constant distortion, and the pooled form, whose weight of the rate was fixed at 1.
TRIALS = {
    "MEC": [
        Trial("mec", {"distortion": ends})
        for ends in ([1 / 2048, 1 / 8], [1 / 2048, 1.0], [1 / 16384, 1 / 8], [1 / 128, 1.0])
    ],
    "MEC, constant": [Trial("mec", {"distortion": d}) for d in (1 / 32, 1 / 128, 1 / 512, 1 / 2048)],
    "MEC, pooled": [
        Trial("mec", {"form": "pooled", "distortion": 1 / 32, "rate_weight": w}) for w in (1.0, 0.7, 2.0, 3.0)
    ],
    "SimCLR": [Trial("simclr", {"temperature": t}) for t in (0.1, 0.05, 0.2, 0.5)],
    "VICReg": [
        Trial("vicreg", {"invariance": i, "variance": v, "covariance": c})
        for i, v, c in ((25.0, 25.0, 1.0), (25.0, 25.0, 5.0), (10.0, 25.0, 1.0), (10.0, 25.0, 5.0))
    ],
    "Barlow Twins": [Trial("barlow-twins", {"redundancy": r}) for r in (0.005, 0.00125, 0.02, 0.08)],
    "SIGReg": [Trial("sigreg", {"weight": w}) for w in (0.05, 0.02, 0.1, 0.2)],
    "BYOL": [Trial("byol", momentum=m) for m in (0.99, 0.9, 0.95, 0.98)],
    "SimSiam": [Trial("simsiam", lr_factor=f) for f in (1.0, 0.5, 2.0, 4.0)],
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A run. ``scale`` multiplies the budget of the dataset."""

    dataset: str
    method: str
    trial: Trial
    stage: Stage
    encoder: Encoder
    views: int
    scale: float
    seed: int

    def as_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"trial": str(self.trial)}


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


def split_images(arrays: dict[str, Tensor], dataset: Dataset, stage: Stage) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and labels for training, then those for evaluation: held-out train images, or test images."""
    x, labels = arrays["train"], arrays["train_labels"]
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    x, labels = x[order], labels[order]  # folders are sorted by class
    if stage == "test":
        return x, labels, arrays["test"], arrays["test_labels"]
    n = dataset.held_out
    return x[n:], labels[n:], x[:n], labels[:n]


def train(job: Job, images: Path) -> dict[str, Any]:
    """Train and evaluate. Return the row of the job."""
    dataset = DATASETS[job.dataset]
    torch.manual_seed(job.seed)
    x, labels, queries, query_labels = split_images(torch.load(images), dataset, job.stage)
    pixels = x[:10_000].float() / 255
    statistics = pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).tolist()
    if job.encoder == "compact":
        encoder = create_encoder(CompactResNet(dataset.channels), dataset.view, dataset.channels, None, *statistics)
    else:
        encoder = create_encoder("resnet18", dataset.view, dataset.channels, False, *statistics, NARROW)
    objective = create_objective(job.trial.objective, job.trial.options)
    targets = getattr(objective, "targets", None)
    hidden, dim = dataset.head
    projector = Projector(encoder.num_features, hidden, dim, getattr(objective, "batch_norm", True))
    network = Siamese(encoder, projector, Predictor(dim, dim // 4) if targets else None, targets)
    network.to(memory_format=torch.channels_last)
    views = MultiView(dataset.view, [dataset.views] * job.views, job.seed)
    lr = dataset.lr * job.trial.lr_factor
    weights = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": dataset.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr, betas=(0.9, 0.99))
    random = torch.Generator().manual_seed(job.seed)

    def loss_of(indices: Tensor, epoch: int) -> Tensor:
        crops = [encoder.normalize(v) for v in views(x[indices], indices.numpy(), epoch)]
        codes, targets = network(*(v.contiguous(memory_format=torch.channels_last) for v in crops))
        loss: Tensor = objective(codes) if targets is None else objective(codes, targets)
        return loss

    batch = min(dataset.batch, len(x))
    with FlopCounterMode(display=False) as counter:
        loss_of(torch.arange(batch), 0).backward()
    budget = dataset.tflop * job.scale * 1e12
    steps = max(1, round(budget / counter.get_total_flops()))
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
        loss = loss_of(indices, epoch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.update_teacher(1 - (1 - job.trial.momentum) * (1 + math.cos(math.pi * step / steps)) / 2)
    return job.as_dict() | {
        "steps": steps, "tflop": counter.get_total_flops() * steps / 1e12, "final_loss": loss.item(),
        **evaluate(encoder, dataset, x, labels, queries, query_labels),
    }  # fmt: skip


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


def read_rows() -> list[dict[str, Any]]:
    path = RESULTS / f"{NAME}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def score(row: dict[str, Any]) -> float:
    """Accuracy by which trials are chosen: the mean of kNN and linear."""
    return float(row["kNN"] + row["linear"]) / 2


def chosen_trials(method: str, dataset: str, encoder: Encoder, rows: list[dict[str, Any]]) -> list[Trial]:
    """Return the published settings of a method, and the trial that is best on the held-out images of a dataset."""
    trials = {str(trial): trial for trial in TRIALS[method]}
    scores: dict[str, list[float]] = {}
    for row in rows:
        if (row["stage"], row["dataset"], row["encoder"]) == ("tune", dataset, encoder) and row["trial"] in trials:
            scores.setdefault(row["trial"], []).append(score(row))
    best = max(scores, key=lambda trial: float(np.mean(scores[trial])), default=str(TRIALS[method][0]))
    return [TRIALS[method][0]] + [trials[best]] * (best != str(TRIALS[method][0]))


def main(
    stage: Stage,
    cifar10: str | None = None,
    caltech101: str | None = None,
    fashion_mnist: str | None = None,
    digits: str | None = "digits",
    methods: list[str] | None = None,
    seeds: list[int] = [0],  # noqa: B006
    scale: float = 1.0,
    encoder: Encoder = "compact",
    views: int = 2,
) -> None:
    """Run the trials that are not in the json yet, one on each core, and print the means over seeds.

    Args:
        stage: tune: all trials, on held-out train images; test: published settings and the best trial, on test images.
        cifar10: folder or name of the dataset; null leaves it out, as for the others.
        caltech101: folder of the dataset.
        fashion_mnist: folder, .npz file or name of the dataset.
        digits: name of the dataset.
        methods: names of the methods; null: all.
        seeds: seeds of weights, batches and views.
        scale: factor of the budget of each dataset.
        encoder: compact, or the narrow resnet18.
        views: number of views of each image.
    """
    sources = {"cifar10": cifar10, "caltech101": caltech101, "fashion-mnist": fashion_mnist, "digits": digits}
    rows = read_rows()
    done = [{key: row[key] for key in KEYS} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn, torch.set_num_threads, (1,)) as pool:
            futures = []
            for dataset, source in sources.items():
                if source is None:
                    continue
                images = Path(folder) / f"{dataset}.pt"
                for seed, method in itertools.product(seeds, methods or TRIALS):
                    trials = TRIALS[method] if stage == "tune" else chosen_trials(method, dataset, encoder, rows)
                    for trial in trials:
                        job = Job(dataset, method, trial, stage, encoder, views, scale, seed)
                        if job.as_dict() in done:
                            continue
                        if not images.exists():
                            torch.save(load_images(source, DATASETS[dataset]), images)
                        futures.append(pool.submit(train, job, images))
            for number, future in enumerate(as_completed(futures), 1):
                rows.append(future.result())
                print(f"{number}/{len(futures)}", rows[-1], flush=True)
                # written after every run, so that an interrupted benchmark keeps its rows
                path = write(NAME, QUESTION, rows=rows)
    print_table([row for row in rows if (row["stage"], row["encoder"], row["scale"]) == (stage, encoder, scale)])
    print(f"written: {path}" if futures else "nothing to run")


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(title="accuracy in percent, mean over seeds")
    for column in ("dataset", "method", "trial", "seeds", *METRICS):
        table.add_column(column)
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["method"], row["trial"]), []).append(row)
    for group in sorted(groups):
        means = (f"{np.mean([row[metric] for row in groups[group]]):.1f}" for metric in METRICS)
        table.add_row(*group, str(len(groups[group])), *means)
    Console().print(table)


if __name__ == "__main__":
    auto_cli(main)
