"""Classification with a few labels per class: nearest class mean on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mec.distributed import broadcast_object
from mec.errors import InputError
from mec.evaluate.accuracy import accuracies, ranking
from mec.evaluate.features import Features, features_of, labels_of
from mec.evaluate.task import EncoderLike, Source, open_task
from mec.results import Result, Stopwatch

USUAL = (1, 5, 10)


def few_shot(
    data: Source,
    encoder: EncoderLike,
    labels: Sequence[int] | None = None,
    draws: int = 20,
    seed: int = 0,
    baselines: bool | None = None,
    workers: int | None = None,
) -> Result:
    """Accuracy when only a few train images of each class have a label: mean and spread over draws.

    A test image gets the class whose mean labeled feature is nearest, after features are centered on the mean of
    the (unlabeled) train images and L2-normalized (Wang et al. 2019, SimpleShot, CL2N). Every row of the
    table sees the same draws.

    Args:
        data: a labeled source (see ``mec.data.open_dataset``).
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        labels: labeled images per class; null: those of 1, 5 and 10 that the smallest class has.
        draws: random choices of them.
        seed: of the draws.
        baselines: measure the untrained encoder and raw pixels too; null: up to 100,000 train images.
        workers: loader processes; null is one per core.
    """
    if labels is not None and (not labels or min(labels) < 1):
        raise InputError(f"labels: expected numbers of at least 1, got {list(labels)}")
    if draws < 1:
        raise InputError(f"draws: expected at least 1, got {draws}")
    clock = Stopwatch()
    task = open_task(data, encoder, baselines, workers)
    classes = len(task.classes)
    fewest = int(labels_of(task.train).bincount(minlength=classes).min())
    labels = [n for n in USUAL if n <= fewest] if labels is None else labels
    if max(labels) > fewest:
        raise InputError(f"labels: expected at most {fewest}, the images of the smallest class, got {list(labels)}")
    figures: dict[str, dict[str, float]] = {}
    for f in features_of(task):
        row = figures[f.name] = {}
        for n in labels:
            scores = class_mean_scores(f, classes, n, draws, seed)
            top_1 = scores["top-1"]
            row[f"{n} per class"], row[f"{n} per class std"] = float(top_1.mean()), float(top_1.std())
            if "top-5" in scores:
                row[f"{n} per class top-5"] = float(scores["top-5"].mean())
    return Result(
        task="few-label",
        protocol=f"nearest class mean, centered and normalized features, mean ± std of {draws} draws, top-1 / top-5 %",
        data=task.data,
        encoder=task.encoder,
        figures=broadcast_object(figures),
        seconds=clock(),
    )


def class_mean_scores(
    features: Features, classes: int, labels: int, draws: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Test accuracies (see ``accuracies``) of each draw (draws,), with ``labels`` images of each class, as shares."""
    center = features.train.mean(dim=0)
    test = F.normalize(features.test - center, dim=1)
    members = [np.flatnonzero(features.train_labels.numpy() == c) for c in range(classes)]
    fewest = min(len(m) for m in members)
    if labels > fewest:
        raise InputError(f"labels: expected at most {fewest}, the readable images of the smallest class, got {labels}")
    random = np.random.default_rng([seed, labels])
    found = []
    for _ in range(draws):
        chosen = torch.from_numpy(np.stack([random.choice(m, labels, replace=False) for m in members]))
        means = F.normalize(F.normalize(features.train[chosen] - center, dim=2).mean(dim=1), dim=1)
        found.append(accuracies(ranking(test @ means.T), features.test_labels, classes))
    return {name: np.array([row[name] for row in found]) for name in found[0]}
