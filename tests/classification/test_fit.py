"""The classifier of a few labeled images, against loops in float64 and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mec.classification.fit import (
    assign_folds,
    choose_method,
    fit_classifier,
    fit_temperature,
    wilson_interval,
)
from mec.evaluate.linear import select_penalty

CLASSES = ["ant", "bee", "cat"]


def clusters(counts: list[int], noise: float = 1.0, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.eye(dim)[labels] * 3 + 5 + noise * rng.normal(size=(len(labels), dim))
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([1, 1], "nearest-mean"), ([5, 5, 50], "nearest-mean"), ([6, 6], "logistic"), ([2, 40, 50], "logistic")],
)
def test_the_method_depends_on_the_labels_of_the_median_class(counts: list[int], expected: str) -> None:
    assert choose_method(torch.repeat_interleave(torch.tensor(counts))) == expected


def test_the_nearest_mean_is_that_of_a_loop() -> None:
    (features, labels), (unlabeled, _) = clusters([3, 4, 1]), clusters([20, 20, 20], seed=1)
    fit = fit_classifier(features, labels, CLASSES, unlabeled)
    assert (fit.method, fit.protocol) == ("nearest-mean", "leave-one-out")
    assert fit.held_out.tolist() == [0, 1, 2, 3, 4, 5, 6]  # the last is the only one of its class
    everything = np.concatenate([features.numpy(), unlabeled.numpy()]).astype(np.float64)
    unit = everything - everything.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)

    def cosines(rows: list[int], query: int) -> list[float]:
        means = [unit[[row for row in rows if labels[row] == c]].mean(axis=0) for c in range(3)]
        return [float(unit[query] @ mean / np.linalg.norm(mean)) for mean in means]

    expected = torch.tensor([cosines([j for j in range(8) if j != i], i) for i in range(7)], dtype=torch.float64)
    expected = (expected / fit.head.temperature).softmax(dim=1)
    torch.testing.assert_close(fit.probabilities.double(), expected, atol=1e-5, rtol=1e-4)
    scores = torch.tensor([cosines(list(range(8)), 8 + i) for i in range(60)], dtype=torch.float64)
    expected = (scores / fit.head.temperature).softmax(dim=1)
    torch.testing.assert_close(fit.head(unlabeled).double(), expected, atol=1e-5, rtol=1e-4)


def test_logistic_regression_is_that_of_scikit_learn() -> None:
    (features, labels), (unlabeled, _) = clusters([60, 50, 40], noise=2), clusters([20, 20, 20], seed=1)
    fit = fit_classifier(features, labels, CLASSES, unlabeled)
    assert (fit.method, fit.protocol) == ("logistic", "10-fold cross-validation")
    assert len(fit.held_out) == 150
    penalty, folds = select_penalty(features, labels, 3, 200), assign_folds(labels)

    def probabilities(rows: Tensor, queries: Tensor) -> Tensor:
        scaler = StandardScaler().fit(features[rows])
        model = LogisticRegression(C=penalty, max_iter=1000, tol=1e-8)
        model.fit(scaler.transform(features[rows]), labels[rows])
        scores = torch.from_numpy(model.decision_function(scaler.transform(queries)))
        return (scores / fit.head.temperature).softmax(dim=1)

    expected = probabilities(torch.arange(150), unlabeled)
    torch.testing.assert_close(fit.head(unlabeled).double(), expected, atol=2e-3, rtol=0)
    for fold in range(10):
        held = folds == fold
        assert held.sum() == 15
        expected = probabilities((~held).nonzero()[:, 0], features[held])
        torch.testing.assert_close(fit.probabilities[held].double(), expected, atol=2e-3, rtol=0)


def test_folds_have_equal_fractions_of_each_class() -> None:
    labels = torch.repeat_interleave(torch.tensor([100, 30, 1]))
    folds = assign_folds(labels)
    for fold in range(10):
        assert labels[folds == fold].bincount(minlength=3).tolist() == [10, 3, 0]
    assert folds[-1] == -1


def test_the_temperature_is_the_best_of_a_grid() -> None:
    rng = np.random.default_rng(0)
    scores, labels = torch.from_numpy(rng.normal(size=(50, 3))), torch.from_numpy(rng.integers(0, 3, 50))
    scores[torch.arange(50), labels] += 1.5
    grid = np.geomspace(1e-3, 1e2, 2001)
    targets = np.full((50, 3), 1 / 52 / 2)
    targets[np.arange(50), labels] = 51 / 52
    losses = [-(targets * (scores / t).log_softmax(dim=1).numpy()).sum() for t in grid]
    assert fit_temperature(scores, labels) == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)


def test_a_few_correct_predictions_do_not_give_certainty() -> None:
    features, labels = clusters([3, 3, 3], noise=0.01)
    fit = fit_classifier(features, labels, CLASSES, features)
    values, predicted = fit.probabilities.max(dim=1)
    assert torch.equal(predicted, labels)
    assert 0.8 < float(values.mean()) < 0.95  # 1 - 1 / (9 + 2) = 0.91


def test_probabilities_match_the_accuracy_of_other_images() -> None:
    (features, labels), (others, other_labels) = clusters([40, 40, 40], noise=2.5), clusters([2000] * 3, 2.5, seed=1)
    fit = fit_classifier(features, labels, CLASSES, others)
    values, predicted = fit.head(others).max(dim=1)
    accuracy = (predicted == other_labels).double()
    assert float(values.mean()) == pytest.approx(float(accuracy.mean()), abs=0.06)
    assert float(accuracy[values > 0.9].mean()) > float(accuracy[values < 0.6].mean()) + 0.2


@pytest.mark.parametrize(("correct", "total"), [(0, 5), (5, 5), (37, 40), (500, 1000)])
def test_the_interval_is_that_of_scipy(correct: int, total: int) -> None:
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-6)
