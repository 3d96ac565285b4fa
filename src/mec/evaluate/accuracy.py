"""Top-1, top-5 and per-class accuracy."""

from __future__ import annotations

from torch import Tensor

TOP = 5


def ranking(scores: Tensor) -> Tensor:
    """Return the five highest-scored classes of each row: (n, classes) -> (n, min(5, classes)), best first."""
    return scores.topk(min(TOP, scores.shape[1]), dim=1).indices


def accuracies(ranked: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Return accuracies as fractions.

    Args:
        ranked: (n, 5 or fewer) classes, best first.
        labels: (n,) true classes.
        classes: number of classes; up to five, top-5 is always 1 and is left out.

    Returns:
        "top-1"; "top-5"; and "class mean", the mean over classes of the accuracy within each class, for classes of
        unequal size. Classes without an image are left out of the mean.
    """
    correct = ranked == labels[:, None]
    result = {"top-1": float(correct[:, 0].double().mean())}
    if classes > TOP:
        result["top-5"] = float(correct.any(dim=1).double().mean())
    counts = labels.bincount(minlength=classes)
    hits = labels.bincount(weights=correct[:, 0].double(), minlength=classes)
    present = counts > 0
    result["class mean"] = float((hits[present] / counts[present]).mean())
    return result
