import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from mec.evaluate.task import accuracies, ranking


def test_accuracies_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(500, 9)), rng.integers(0, 8, 500)  # class 8 has no image
    result = accuracies(ranking(torch.from_numpy(scores)), torch.from_numpy(labels), 9)
    expected = {
        "top-1": top_k_accuracy_score(labels, scores, k=1, labels=np.arange(9)),
        "top-5": top_k_accuracy_score(labels, scores, k=5, labels=np.arange(9)),
        "class mean": balanced_accuracy_score(
            labels[:], np.where(scores.argmax(1) == labels, labels, (labels + 1) % 8)
        ),
    }
    assert result.keys() == expected.keys()
    np.testing.assert_allclose(list(result.values()), list(expected.values()), rtol=1e-12)


def test_top_5_is_left_out_with_five_classes() -> None:
    result = accuracies(ranking(torch.eye(5)), torch.arange(5), 5)
    assert result == {"top-1": 1.0, "class mean": 1.0}
