"""Top-1, top-5 and per-class accuracy."""

from __future__ import annotations

from torch import Tensor

TOP = 5


def ranking(scores: Tensor) -> Tensor:
    """(n, classes) -> the best five classes of each row (n, min(5, classes)), best first."""
    return scores.topk(min(TOP, scores.shape[1]), dim=1).indices


def accuracies(ranked: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Shares of right answers.

    Args:
        ranked: (n, 5 or fewer) classes, best first.
        labels: (n,) the right ones.
        classes: how many there are; up to five, top-5 says nothing and is left out.

    Returns:
        "top-1"; "top-5"; and "class mean", the mean over classes of the share within each, for classes of unequal
        size. Classes without an image are left out of the mean.
    """
    right = ranked == labels[:, None]
    found = {"top-1": float(right[:, 0].double().mean())}
    if classes > TOP:
        found["top-5"] = float(right.any(dim=1).double().mean())
    counts = labels.bincount(minlength=classes)
    hits = labels.bincount(weights=right[:, 0].double(), minlength=classes)
    present = counts > 0
    found["class mean"] = float((hits[present] / counts[present]).mean())
    return found
