"""Linear probe on cached frozen features: multinomial logistic regression."""

from __future__ import annotations

import os
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from mec.errors import InputError
from mec.evaluate.features import EncoderLike, Features, prepare
from mec.evaluate.result import Result, Stopwatch

STRENGTHS = tuple(10.0**e for e in (-4, -3, -2, -1, 0, 1))
CHOOSING_LIMIT = 10_000
"""Regularisation is chosen on at most this many train pictures: it moves little with more, the time does."""


def linear(
    data: str | os.PathLike[str],
    encoder: EncoderLike,
    baselines: bool = True,
    iterations: int = 200,
    workers: int | None = None,
    labels: str | None = None,
) -> Result:
    """Fit a linear classifier on frozen features, after pretraining (an offline probe).

    Features are standardised with the train split's statistics. The inverse strength C of the L2 penalty is the
    best of 1e-4 ... 10 on a fifth of the train split that is held out, then the classifier is fitted again
    on all of it; the test split is looked at once.

    Args:
        data: a labelled source (see ``mec.data.open_images``).
        encoder: an Encoder, a run folder, an encoder file or a timm name.
        baselines: measure the untrained encoder and raw pixels too.
        iterations: of L-BFGS, at most.
        workers: loader processes; None is one per core.
        labels: a .csv of path and label for pictures of a folder, in place of its sub-folders.
    """
    if iterations < 1:
        raise InputError(f"iterations: expected at least 1, got {iterations}")
    clock = Stopwatch()
    task = prepare(data, encoder, baselines, workers, labels)
    return Result(
        task="linear",
        protocol="offline probe: logistic regression on standardised features, C chosen on held-out train, top-1 %",
        data=task.data,
        encoder=task.encoder,
        figures={f.name: {"top-1": probe(f, iterations)} for f in task.features},
        seconds=clock(),
    )


def probe(features: Features, iterations: int = 200) -> float:
    """Test accuracy of the probe, as a share."""
    x, y = features.train.numpy(), features.train_labels.numpy()
    strength = choose_strength(x, y, iterations)
    scaler = StandardScaler().fit(x)
    classifier = _fit(scaler.transform(x), y, strength, iterations)
    return float(classifier.score(scaler.transform(features.test.numpy()), features.test_labels.numpy()))


def choose_strength(x: np.ndarray, y: np.ndarray, iterations: int) -> float:
    """The C of STRENGTHS that is best on a held-out fifth; the smaller one when equal. A class of one cannot be
    divided: then 1.0 is taken."""
    if np.bincount(y).min() < 2:
        return 1.0
    if len(x) > CHOOSING_LIMIT:
        x, _, y, _ = train_test_split(x, y, train_size=CHOOSING_LIMIT, stratify=y, random_state=0)
    held_out = max(np.unique(y).size, round(len(y) * 0.2))
    x_fit, x_held, y_fit, y_held = train_test_split(x, y, test_size=held_out, stratify=y, random_state=0)
    scaler = StandardScaler().fit(x_fit)
    x_fit, x_held = scaler.transform(x_fit), scaler.transform(x_held)
    scores = [_fit(x_fit, y_fit, c, iterations).score(x_held, y_held) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(scores))]


def _fit(x: np.ndarray, y: np.ndarray, strength: float, iterations: int) -> LogisticRegression:
    with warnings.catch_warnings():
        # stopping early regularises a little more; it is not an error
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=iterations).fit(x, y)
