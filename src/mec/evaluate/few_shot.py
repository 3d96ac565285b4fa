"""Classification with a few labels per class: nearest class mean on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mec.data.dataset import DataLike
from mec.distributed import process_group
from mec.embedding.extract import labels_of
from mec.errors import InputError
from mec.evaluate.task import Features, accuracies, features_of, open_task, ranking
from mec.models.encoder import EncoderLike
from mec.results import Metric, Protocol, Result

DEFAULT_SHOTS = (1, 5, 10)


def few_shot(
    data: DataLike,
    encoder: EncoderLike,
    shots: Sequence[int] | None = None,
    trials: int = 20,
    seed: int = 0,
    baselines: bool | None = None,
    workers: int | None = None,
    labels_csv: str | None = None,
) -> Result:
    """Classify test images with a few labels per class: mean and standard deviation over trials.

    A test image gets the class whose mean labeled feature is nearest, after features are centered on the mean of all
    (unlabeled) train images and L2-normalized (Wang et al. 2019, SimpleShot, CL2N). Every row of the table sees the
    same choices of labels.

    Args:
        data: labeled dataset (see ``mec.open_dataset``).
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        shots: labels per class; null: those of 1, 5 and 10 that the smallest class has.
        trials: random choices of the labels.
        seed: seed of the choices.
        baselines: also measure the untrained encoder and raw pixels; null: only if there are at most
            100,000 train images.
        workers: loader processes; null: one per core.
        labels_csv: .csv with columns path and label for the images of a folder, in place of its sub-folders.
    """
    if shots is not None and (not shots or min(shots) < 1):
        raise InputError(f"shots: expected numbers of at least 1, got {list(shots)}")
    if trials < 1:
        raise InputError(f"trials: expected at least 1, got {trials}")
    with process_group() as group:
        task = open_task(data, encoder, baselines, workers, labels_csv, group)
        classes = len(task.classes)
        smallest = int(labels_of(task.train).bincount(minlength=classes).min())
        shots = [n for n in DEFAULT_SHOTS if n <= smallest] if shots is None else shots
        if max(shots) > smallest:
            raise InputError(
                f"shots: expected at most {smallest}, the train images of the smallest class ({task.train.layout}), "
                f"got {list(shots)}"
            )
        rows = {f.name: few_shot_metrics(f, classes, shots, trials, seed) for f in features_of(task)}
        protocol = Protocol("few-shot", {"classifier": "nearest class mean", "features": "CL2N", "trials": trials})
        return task.result("few-shot", protocol, rows)


def few_shot_metrics(features: Features, classes: int, shots: Sequence[int], trials: int, seed: int) -> list[Metric]:
    """Top-1 accuracy with its standard deviation over trials, for each number of labels per class; top-5 where there
    are more than five classes."""
    metrics = []
    for n in shots:
        scores = class_mean_scores(features, classes, n, trials, seed)
        name = f"{n} shot{'s' if n > 1 else ''}"
        std = float(scores["top-1"].std()) if trials > 1 else None
        metrics.append(Metric(name, float(scores["top-1"].mean()), std=std, n=trials))
        if "top-5" in scores:
            metrics.append(Metric(f"{name} top-5", float(scores["top-5"].mean()), n=trials))
    return metrics


def class_mean_scores(
    features: Features, classes: int, shots: int, trials: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Test accuracies (see ``accuracies``) of each trial, (trials,) fractions, with ``shots`` images of each class."""
    center = features.train.mean(dim=0)
    test = F.normalize(features.test - center, dim=1)
    members = [np.flatnonzero(features.train_labels.numpy() == c) for c in range(classes)]
    smallest = min(len(m) for m in members)
    if shots > smallest:
        raise InputError(f"shots: expected at most {smallest}, the readable images of the smallest class, got {shots}")
    random = np.random.default_rng([seed, shots])
    accuracy = []
    for _ in range(trials):
        chosen = torch.from_numpy(np.stack([random.choice(m, shots, replace=False) for m in members]))
        means = F.normalize(F.normalize(features.train[chosen] - center, dim=2).mean(dim=1), dim=1)
        accuracy.append(accuracies(ranking(test @ means.T), features.test_labels, classes))
    return {name: np.array([trial[name] for trial in accuracy]) for name in accuracy[0]}
