import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mec.evaluate import logistic
from mec.evaluate.logistic import LogisticFit


def uneven(n: int = 1500, d: int = 20, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes in columns of very uneven scale and offset, one of them constant."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(classes, d)) * 0.5
    labels = rng.integers(0, classes, n)
    x = (centers[labels] + rng.normal(size=(n, d))) * rng.uniform(0.01, 100, d) + rng.normal(size=d) * 30
    x[:, 3] = 7.3
    return x.astype(np.float32), labels


@pytest.mark.parametrize("C", [1e-4, 1e-2, 1.0, 10.0])
def test_fit_matches_scikit_learn_in_float64(C: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "BLOCK_ROWS", 400)
    x, y = uneven()
    scores = LogisticFit(torch.from_numpy(x), torch.from_numpy(y), 4)(C, 300).scores(torch.from_numpy(x))
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    expected = LogisticRegression(C=C, max_iter=2000, tol=1e-10).fit(scaled, y).predict_proba(scaled)
    np.testing.assert_allclose(scores.softmax(dim=1).numpy(), expected, atol=3e-3)


def test_warm_start_reaches_the_solution_of_a_fresh_fit() -> None:
    x, y = (torch.from_numpy(a) for a in uneven())
    fit = LogisticFit(x, y, 4)
    for C in (1e-4, 1e-2):
        fit(C, 300)
    warm, fresh = fit(1.0, 300), LogisticFit(x, y, 4)(1.0, 300)
    torch.testing.assert_close(warm.scores(x).softmax(1), fresh.scores(x).softmax(1), atol=3e-3, rtol=0)


def test_class_without_images_is_never_predicted() -> None:
    x, y = (torch.from_numpy(a) for a in uneven())
    scores = LogisticFit(x, y, 6)(1.0, 100).scores(x)
    assert scores.shape == (1500, 6)
    assert int(scores.argmax(dim=1).max()) == 3


def test_features_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features may be mapped from a file larger than memory: blocks are read, nothing is written."""
    x, y = uneven()
    x.flags.writeable = False
    monkeypatch.setattr(logistic, "BLOCK_ROWS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns about read-only arrays
        fit = LogisticFit(torch.from_numpy(x), torch.from_numpy(y), 4)
    fit(1.0, 5)
    assert fit.features.data_ptr() == x.ctypes.data
