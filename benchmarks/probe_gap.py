"""Why do the fast and the paper's probe differ on a briefly trained encoder? Solver, steps, or crops.

python benchmarks/probe_gap.py DATA ENCODER   (CIFAR-10, and an encoder trained on it)
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import nn

import mec
from machine import write
from mec import evaluate
from mec.evaluate.supervised import PAPER_PROBE, Classifier, overridden
from mec.evaluate.task import Features, accuracies, features_of, open_task, ranking
from mec.models import Encoder
from mec.results import Stopwatch


def main(data: str, encoder: str, head_lrs: tuple[float, ...] = (0.03, 0.3)) -> None:
    """Fit both probes' classifiers on cached features of one encoder, of central and of random crops.

    Args:
        data: cifar10, or a folder with train and test.
        encoder: a run folder, a file of weights or a timm name.
        head_lrs: learning rates of the paper's classifier.
    """
    loaded = mec.load_encoder(encoder)
    (central,) = features_of(open_task(data, loaded, baselines=False))
    classes = len(central.train_labels.unique())
    rows = []
    for crops in ("central", "random"):
        result = evaluate.linear(data, loaded, baselines=False, crops=crops)
        rows.append(("logistic regression (fast)", crops, result.metric("top-1").value, result.seconds))
    for head_lr in head_lrs:
        clock = Stopwatch()
        top_1 = lars_top_1(central, loaded, classes, head_lr)
        rows.append((f"BatchNorm, linear, LARS at {head_lr:g} (paper)", "central", top_1, clock()))
    table = Table(title="linear probes on cached features")
    for column in ("classifier", "train crops", "top-1 %", "seconds"):
        table.add_column(column)
    for name, crops, accuracy, seconds in rows:
        table.add_row(name, crops, f"{100 * accuracy:.2f}", f"{seconds:.0f}")
    Console().print(table)
    path = write(
        "probe_gap",
        "difference between the fast and the paper's probe, on the encoder of linear_probe.py",
        data="CIFAR-10, 50,000 train and 10,000 test",
        rows=[{"classifier": n, "train crops": c, "top-1": a, "seconds": s} for n, c, a, s in rows],
    )
    print(path)


def lars_top_1(f: Features, encoder: Encoder, classes: int, head_lr: float) -> float:
    """Return the accuracy of the paper's classifier and schedule on cached features: its probe without new crops."""
    torch.manual_seed(0)
    settings = overridden(PAPER_PROBE, head_lr=head_lr)
    classifier = Classifier(copy.deepcopy(encoder), f.train_labels, classes, settings, settings.batch_size, 0)
    head: nn.Module = classifier.head.train()
    optimizer = classifier.configure_optimizers()
    for epoch in range(settings.epochs):
        for group in optimizer.param_groups:
            group["lr"] = settings.factor(epoch) * settings.batch_size / 256 * head_lr
        for indices in torch.randperm(len(f.train)).split(settings.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(head(f.train[indices]), f.train_labels[indices]).backward()
            optimizer.step()
    with torch.no_grad():
        return accuracies(ranking(head.eval()(f.test)), f.test_labels, classes)["top-1"]


if __name__ == "__main__":
    auto_cli(main)
