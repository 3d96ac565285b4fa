"""Why do the fast probe and the paper's differ on an encoder that learned little? Solver, steps, or crops.

python benchmarks/probe_gap.py --data FOLDER --encoder RUN   (CIFAR-10, and an encoder of it)
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
from mec.evaluate.accuracy import accuracies, ranking
from mec.evaluate.features import Features, features_of
from mec.evaluate.supervised import PAPER_PROBE, Classifier, overridden
from mec.evaluate.task import open_task
from mec.models import Encoder
from mec.results import Stopwatch


def main(data: str, encoder: str, rates: tuple[float, ...] = (0.03, 0.3)) -> None:
    """The same frozen encoder under both probes' classifiers, on central crops and on random ones, all cached.

    Args:
        data: CIFAR-10: its name, or a folder with train and test.
        encoder: what to probe.
        rates: learning rates of the paper's classifier.
    """
    of = mec.load_encoder(encoder)
    (central,) = features_of(open_task(data, of, baselines=False))
    classes = len(central.train_labels.unique())
    rows = []
    for crops in ("central", "random"):
        result = evaluate.linear(data, of, baselines=False, crops=crops)
        rows.append(("logistic regression (fast)", crops, result.figures["encoder"]["top-1"], result.seconds))
    for rate in rates:
        clock = Stopwatch()
        top_1 = by_lars(central, of, classes, rate)
        rows.append((f"BatchNorm, linear, LARS at {rate:g} (paper)", "central", top_1, clock()))
    table = Table(title="linear probes on cached features")
    for column in ("classifier", "train crops", "top-1 %", "seconds"):
        table.add_column(column)
    for name, crops, accuracy, seconds in rows:
        table.add_row(name, crops, f"{100 * accuracy:.2f}", f"{seconds:.0f}")
    Console().print(table)
    path = write(
        "probe_gap",
        "what makes the fast probe and the paper's differ, on the encoder of linear_probe.py",
        data="CIFAR-10, 50,000 train and 10,000 test",
        rows=[{"classifier": n, "train crops": c, "top-1": a, "seconds": s} for n, c, a, s in rows],
    )
    print(path)


def by_lars(f: Features, encoder: Encoder, classes: int, rate: float) -> float:
    """The paper's classifier and schedule on cached features: its probe without new crops."""
    torch.manual_seed(0)
    settings = overridden(PAPER_PROBE, head_lr=rate)
    classifier = Classifier(copy.deepcopy(encoder), f.train_labels, classes, settings, settings.batch_size, 0)
    head: nn.Module = classifier.head.train()
    optimizer = classifier.configure_optimizers()
    for epoch in range(settings.epochs):
        for group in optimizer.param_groups:
            group["lr"] = settings.factor(epoch) * settings.batch_size / 256 * rate
        for chosen in torch.randperm(len(f.train)).split(settings.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(head(f.train[chosen]), f.train_labels[chosen]).backward()
            optimizer.step()
    with torch.no_grad():
        return accuracies(ranking(head.eval()(f.test)), f.test_labels, classes)["top-1"]


if __name__ == "__main__":
    auto_cli(main)
