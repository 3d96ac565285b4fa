import sys

import numpy as np
import pytest
import torch

from mec import evaluate
from mec.embedding import neighbors
from mec.errors import InputError
from mec.evaluate.knn import knn_ranking
from mec.models import create_encoder, untrained


def reference_ranking(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, classes: int, t: float
) -> list[list]:
    """Rank classes by votes, one query at a time, as in DINO's paper, in float64."""
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    ranked = []
    for q in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        similarity = bank @ q
        votes = np.zeros(classes)
        for i in np.argsort(-similarity)[:k]:
            votes[labels[i]] += np.exp(similarity[i] / t)
        ranked.append(np.argsort(-votes, kind="stable").tolist())
    return ranked


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_match_the_float64_reference(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "BANK_ROWS", 70)
    monkeypatch.setattr(neighbors, "QUERY_ROWS", 32)
    monkeypatch.setattr(sys.modules[knn_ranking.__module__], "MAX_VOTES", 5 * 16)
    rng = np.random.default_rng(0)
    bank, labels = rng.normal(size=(300, 8)), rng.integers(0, 5, 300)
    queries = rng.normal(size=(70, 8))
    tensors = [torch.from_numpy(a) for a in (bank, labels, queries)]
    ranked = knn_ranking(*tensors, k=[1, 10, 200], classes=5, temperature=temperature)
    assert ranked[200].tolist() == reference_ranking(bank, labels, queries, 200, 5, temperature)
    for k, classes in ranked.items():
        assert classes[:, 0].tolist() == [row[0] for row in reference_ranking(bank, labels, queries, k, 5, temperature)]


def test_rows_are_the_baselines_and_columns_the_possible_k(capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate.knn("digits", untrained(create_encoder("test_resnet", 16, 1)), k=(10, 5000), workers=0)
    assert "warning: k: 5000 left out" in capsys.readouterr().err
    assert list(result.rows) == ["untrained", "raw pixels"]
    assert [m.name for m in result.rows["raw pixels"]] == ["k=10", "k=10 top-5"]
    # scikit-learn documents that nearest neighbors nearly separate the raw digits
    assert result.metric("k=10", "raw pixels").value > 0.95


def test_bad_arguments_are_refused() -> None:
    for options, message in (
        ({"k": ()}, "k: expected"),
        ({"k": (0,)}, "k: expected"),
        ({"temperature": 0}, "temperature: expected"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.knn("digits", "test_resnet", **options)
