from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from mec.evaluate.task import accuracies, features_of, open_task, ranking
from mec.models.encoder import create_encoder


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


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1), ("int64", 1), ("uint16", 16), ("float64", 1 / 255)])
def test_images_of_more_than_8_bits_are_scaled_for_encoders_of_8_bits(
    tmp_path: Path, dtype: str, factor: float
) -> None:
    """Values 0 to 255 of another type, 12 bits in 16, and [0, 1] give the features of the 8-bit images."""
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    images[0, 0, 0] = [0, 255, 255]
    labels = np.arange(40) % 2
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.savez(tmp_path / "b.npz", images=(images.astype(float) * factor).astype(dtype), labels=labels)
    torch.manual_seed(0)
    encoder = create_encoder("resnet10t", 16)
    tasks = (open_task(tmp_path / name, encoder, False) for name in ("a.npz", "b.npz"))
    expected, actual = (next(iter(features_of(task))).train for task in tasks)
    assert encoder.spec.value_range is None
    assert torch.allclose(expected, actual, atol=2e-2 * float(expected.abs().max()))
