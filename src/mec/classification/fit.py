"""Fit a classifier of features to a few labeled images, with probabilities that held-out images confirm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from mec.evaluate.linear import LogisticFit, select_penalty
from mec.models.head import ClassifierHead

Method = Literal["nearest-mean", "logistic"]

MAX_NEAREST_MEAN_LABELS = 5
"""Median number of labels per class up to which the nearest class mean is more accurate than logistic regression."""
MAX_LEAVE_ONE_OUT = 100
NUM_FOLDS = 10
MAX_ITERATIONS = 200
TEMPERATURES = (1e-3, 1e2)
UNCALIBRATED = 0.07
"""Temperature of cosines without held-out images, as that of the votes of kNN."""
Z_95 = 1.959964


@dataclass(frozen=True)
class Fit:
    """A classifier, and its predictions for labeled images that it was not fitted to.

    Attributes:
        head: fitted to all labeled images.
        method: how it was fitted.
        protocol: how images were held out: "leave-one-out" or "10-fold cross-validation".
        held_out: rows (m,) of the labeled images with a prediction: those whose class has another image.
        probabilities: of the held-out images (m, k).
    """

    head: ClassifierHead
    method: Method
    protocol: str
    held_out: Tensor
    probabilities: Tensor


def choose_method(labels: Tensor) -> Method:
    """Return the method for labels (n,): the nearest class mean for up to 5 per class, else logistic regression."""
    counts = labels.bincount()
    return "nearest-mean" if float(counts[counts > 0].double().median()) <= MAX_NEAREST_MEAN_LABELS else "logistic"


def fit_classifier(
    features: Tensor, labels: Tensor, classes: Sequence[str], unlabeled: Tensor, method: Method | None = None
) -> Fit:
    """Fit a classifier to features (n, d) and labels (n,).

    The nearest class mean centers features on the mean of all images, labeled or not, and scales them to length 1
    (Wang et al. 2019, SimpleShot, CL2N). Logistic regression has the penalty that is best on a held-out fifth. The
    temperature of the probabilities minimizes the cross-entropy of held-out images, whose targets are smoothed by
    1 / (m + 2) (Platt 1999), so that a few correct predictions do not give certainty.

    Args:
        features: of the labeled images.
        labels: class numbers.
        classes: names of the k classes; each has an image.
        unlabeled: features (u, d) of the other images.
        method: None chooses by the number of labels; see ``choose_method``.
    """
    method, k = method or choose_method(labels), len(classes)
    folds = assign_folds(labels)
    held_out = (folds >= 0).nonzero()[:, 0]
    if method == "nearest-mean":
        center = torch.cat([features, unlabeled]).mean(dim=0)
        unit = F.normalize(features - center, dim=1)

        def scores_of(rows: Tensor, queries: Tensor) -> Tensor:
            return queries @ _class_means(unit[rows], labels[rows], k)

        head = ClassifierHead(classes, _class_means(unit, labels, k), torch.zeros(k), center, UNCALIBRATED)
        scores = _cross_validate(unit, folds, k, scores_of)
    else:
        penalty = select_penalty(features, labels, k, MAX_ITERATIONS)

        def scores_of(rows: Tensor, queries: Tensor) -> Tensor:
            return LogisticFit(features[rows], labels[rows], k)(penalty, MAX_ITERATIONS).scores(queries)

        whole = LogisticFit(features, labels, k)(penalty, MAX_ITERATIONS)
        head = ClassifierHead(classes, whole.weight.cpu(), whole.bias.cpu())
        scores = _cross_validate(features, folds, k, scores_of)
    scores = scores[held_out]
    if len(held_out):
        head.temperature = fit_temperature(scores, labels[held_out])
    protocol = "leave-one-out" if len(labels) <= MAX_LEAVE_ONE_OUT else f"{NUM_FOLDS}-fold cross-validation"
    return Fit(head, method, protocol, held_out, (scores / head.temperature).softmax(dim=1))


def assign_folds(labels: Tensor) -> Tensor:
    """Return the fold (n,) in which each image is held out: a fold of its own for up to 100 images, else one of ten
    with equal fractions of each class. -1 for the only image of a class, which is never held out."""
    folds = torch.full((len(labels),), -1)
    random = np.random.default_rng(0)
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero()[:, 0]
        if len(members) > 1:
            order = torch.from_numpy(random.permutation(len(members)))
            folds[members] = members if len(labels) <= MAX_LEAVE_ONE_OUT else order % NUM_FOLDS
    return folds


def _cross_validate(features: Tensor, folds: Tensor, k: int, scores_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the scores (n, k) of each image from the images of the other folds; 0 for those that are never held out.
    ``scores_of(rows, queries)`` fits to labeled rows, and returns scores of features."""
    scores = torch.zeros(len(features), k)
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        if not held.any():
            continue
        scores[held] = scores_of((~held).nonzero()[:, 0], features[held])
    return scores


def _class_means(unit: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return the means of each class, of length 1, as columns (d, k)."""
    sums = torch.zeros(k, unit.shape[1]).index_add_(0, labels, unit)
    return F.normalize(sums, dim=1).T


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """Return the temperature of softmax probabilities that minimizes the cross-entropy of scores (m, k) with smoothed
    targets."""
    m, k = scores.shape
    smoothing = 1 / (m + 2)
    targets = torch.full((m, k), smoothing / max(1, k - 1), dtype=torch.float64)
    targets[torch.arange(m), labels] = 1 - smoothing

    def cross_entropy(log_temperature: float) -> float:
        log_probabilities = (scores.double() / math.exp(log_temperature)).log_softmax(dim=1)
        return -float((targets * log_probabilities).sum())

    bounds = [math.log(temperature) for temperature in TEMPERATURES]
    return math.exp(float(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction: Wilson 1927."""
    p, z = correct / total, Z_95
    center, spread = p + z**2 / (2 * total), z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return (center - spread) / (1 + z**2 / total), (center + spread) / (1 + z**2 / total)
