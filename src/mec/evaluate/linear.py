"""Linear probes of a frozen encoder, after pretraining: a quick one on cached features, and the published ones."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from mec.distributed import broadcast_object
from mec.errors import InputError
from mec.evaluate.accuracy import accuracies, ranking
from mec.evaluate.features import Features, features_of
from mec.evaluate.logistic import LogisticFit
from mec.evaluate.supervised import PAPER_PROBE, SIMSIAM_PROBE, overridden, protocol_settings, train_and_test
from mec.evaluate.task import EncoderLike, Source, log_encoder, open_task, with_images_in_memory
from mec.results import Protocol, Result, Stopwatch, to_metrics

STRENGTHS = tuple(10.0**e for e in np.arange(-4, 1.1, 0.5))
CHOOSING_LIMIT = 10_000
"""The penalty is chosen on at most this many train images, or 20 of each class: it moves little with more."""
PROTOCOLS = {"paper": PAPER_PROBE, "simsiam": SIMSIAM_PROBE}


def linear(
    data: Source,
    encoder: EncoderLike,
    protocol: Literal["fast", "paper", "simsiam"] = "fast",
    baselines: bool | None = None,
    crops: Literal["central", "random"] = "central",
    max_iter: int = 200,
    epochs: int | None = None,
    batch_size: int | None = None,
    head_lr: float | None = None,
    seed: int = 0,
    workers: int | None = None,
    labels_csv: str | None = None,
) -> Result:
    """Fit a linear classifier on frozen features, after pretraining (an offline probe).

    fast: multinomial logistic regression on standardized features of crops that are extracted once. The L2 penalty is
    the best of eleven on a fifth of the train split that is held out, then the classifier is fitted again on all of it.

    paper: the probe of the paper's code. Each epoch sees new crops (RandomResizedCrop) and flips; BatchNorm without
    affine, then a linear layer, SGD with layer-wise rates (LARS), learning rate 0.03 for a batch of 256, batch 4096,
    cosine by epoch, 100 epochs; the last epoch counts. simsiam: without the BatchNorm, 0.02, 90 epochs. Both are made
    for a million images: on a few thousand they take too few steps to learn.

    The test split is looked at once.

    Args:
        data: a labeled source (see ``mec.data.open_dataset``).
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        protocol: fast (minutes), or paper or simsiam (hours).
        baselines: measure the untrained encoder too, and in the fast protocol raw pixels; null: up to 100,000
            train images.
        crops: of the train images: central, or one random crop and flip of each, as the paper's probe trains;
            fast only. For an encoder that learned little from crops, the figures differ by some points.
        max_iter: most iterations of L-BFGS; fast only.
        epochs: in place of the protocol's; paper and simsiam only.
        batch_size: in place of the protocol's, the learning rate scaled with it; paper and simsiam only.
        head_lr: learning rate for a batch of 256, in place of the protocol's; paper and simsiam only.
        seed: of random crops, and of the classifier and the order of paper and simsiam.
        workers: loader processes; null is one per core.
        labels_csv: .csv with columns path and label for the images of a folder, in place of its sub-folders.
    """
    if max_iter < 1:
        raise InputError(f"max_iter: expected at least 1, got {max_iter}")
    if protocol not in ("fast", *PROTOCOLS):
        raise InputError(f"protocol: expected fast, {' or '.join(PROTOCOLS)}, got {protocol!r}")
    changes = {"epochs": epochs, "batch_size": batch_size, "head_lr": head_lr}
    if protocol == "fast" and any(value is not None for value in changes.values()):
        raise InputError(f"{', '.join(changes)}: the fast protocol has none; take --protocol paper or simsiam")
    if crops not in ("central", "random"):
        raise InputError(f"crops: expected central or random, got {crops!r}")
    if protocol != "fast" and crops != "central":
        raise InputError(f"crops: the {protocol} protocol has its own, new ones each epoch; fast has central or random")
    settings = overridden(PROTOCOLS.get(protocol, PAPER_PROBE), **changes)
    clock = Stopwatch()
    task = open_task(data, encoder, baselines, workers, labels_csv)
    if protocol == "fast":
        details: dict[str, Any] = {"classifier": "logistic regression", "crops": crops, "penalty": "chosen on held-out train images"}
        all_features = features_of(task, seed if crops == "random" else None)
        rows = {f.name: to_metrics(probe(f, len(task.classes), max_iter)) for f in all_features}
    else:
        side = next(iter(task.encoders.values())).image_size
        details = {**protocol_settings(settings, len(task.train)), "image_size": side}
        log_encoder(task)
        task = with_images_in_memory(task)
        rows = {
            name: to_metrics(train_and_test(task, task.train, row, settings, seed, f"{protocol} probe, {name}"))
            for name, row in task.encoders.items()
        }
    return Result(
        task="linear",
        protocol=Protocol(f"linear-{protocol}", details),
        dataset=task.dataset,
        encoder=task.encoder,
        rows=broadcast_object(rows),
        seconds=clock(),
    )


def probe(features: Features, classes: int, max_iter: int = 200) -> dict[str, float]:
    """Test accuracies of the fast probe, as shares (see ``mec.evaluate.accuracy``)."""
    strength = choose_strength(features.train, features.train_labels, classes, max_iter)
    classifier = LogisticFit(features.train, features.train_labels, classes)(strength, max_iter)
    return accuracies(ranking(classifier.scores(features.test)), features.test_labels, classes)


def choose_strength(x: Tensor, y: Tensor, classes: int, max_iter: int) -> float:
    """The inverse penalty C of STRENGTHS that is best on a held-out fifth; the smaller one when equal. A class of one
    cannot be divided: then 1.0 is taken."""
    if int(y.bincount()[y].min()) < 2:
        return 1.0
    some = np.random.default_rng(0).permutation(len(y))[: max(CHOOSING_LIMIT, 20 * classes)]
    rows = torch.from_numpy(np.sort(some))
    rows = rows[y[rows].bincount(minlength=classes)[y[rows]] > 1]
    held_out = max(int((y[rows].bincount() > 0).sum()), round(len(rows) * 0.2))
    kept, held = train_test_split(rows, test_size=held_out, stratify=y[rows], random_state=0)
    fit, held_x, held_y = LogisticFit(x[kept], y[kept], classes), x[held], y[held]
    # from the strongest penalty on: each fit begins near its end
    right = [int((fit(c, max_iter).scores(held_x).argmax(dim=1) == held_y).sum()) for c in STRENGTHS]
    return float(STRENGTHS[int(np.argmax(right))])
