import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from mec.evaluate.accuracy import accuracies, ranking, spread_of


def test_figures_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(500, 9)), rng.integers(0, 8, 500)  # class 8 has no image
    found = accuracies(ranking(torch.from_numpy(scores)), torch.from_numpy(labels), 9)
    expected = {
        "top-1": top_k_accuracy_score(labels, scores, k=1, labels=np.arange(9)),
        "top-5": top_k_accuracy_score(labels, scores, k=5, labels=np.arange(9)),
        "class mean": balanced_accuracy_score(
            labels[:], np.where(scores.argmax(1) == labels, labels, (labels + 1) % 8)
        ),
    }
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-12)


def test_top_5_of_five_classes_is_left_out() -> None:
    found = accuracies(ranking(torch.eye(5)), torch.arange(5), 5)
    assert found == {"top-1": 1.0, "class mean": 1.0}


def test_spread_is_the_sample_deviation() -> None:
    rows = [{"top-1": 0.1, "top-5": 0.5}, {"top-1": 0.4, "top-5": 0.5}, {"top-1": 0.7, "top-5": 0.5}]
    found = spread_of(rows)
    np.testing.assert_allclose(found["top-1"], 0.4)
    np.testing.assert_allclose(found["top-1 std"], np.std([0.1, 0.4, 0.7], ddof=1))
    assert found["top-5 std"] == 0
    assert spread_of(rows[:1]) == rows[0]
