"""One figure of a run with labeled test images: training curves, feature map and nearest neighbors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from mec.files import atomic_write

MAX_QUERIES = NUM_NEIGHBORS = 8


def plot_overview(
    metrics: Sequence[dict[str, float]],
    features: torch.Tensor,
    labels: np.ndarray,
    images: np.ndarray,
    classes: Sequence[str],
    path: Path,
) -> Path:
    """Plot the rows of metrics.csv, and features (n, d), labels (n,) and images (n, h, w, c) of the test set, as a PNG.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(13, 4.2), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 1.0, 1.0])
    _plot_curves(left, metrics)
    _plot_features(middle, features, labels, classes)
    _plot_neighbors(right, features, labels, images)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _plot_curves(axes: Axes, metrics: Sequence[dict[str, float]]) -> None:
    steps = [row["step"] for row in metrics]
    axes.plot(steps, [row["loss"] for row in metrics], color="tab:blue")
    axes.set(title="Training without labels", xlabel="step")
    axes.set_ylabel("loss", color="tab:blue")
    right = axes.twinx()
    right.plot(steps, [row["effective_rank"] for row in metrics], color="tab:orange")
    right.set_ylabel("effective rank of the codes", color="tab:orange")
    right.set_ylim(bottom=0)


def _plot_features(axes: Axes, features: torch.Tensor, labels: np.ndarray, classes: Sequence[str]) -> None:
    perplexity = min(30, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(F.normalize(features, dim=1).numpy())
    axes.scatter(points[:, 0], points[:, 1], c=labels, cmap="tab10", s=8)
    for label, name in enumerate(classes):
        members = points[labels == label]
        if len(members):
            axes.annotate(name, np.median(members, axis=0), fontsize=13, weight="bold", ha="center", va="center")
    axes.set(title="Features of test images (t-SNE)", xticks=[], yticks=[])


def _plot_neighbors(axes: Axes, features: torch.Tensor, labels: np.ndarray, images: np.ndarray) -> None:
    unit = F.normalize(features - features.mean(dim=0), dim=1)
    queries = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:MAX_QUERIES]]
    nearest = (unit[queries] @ unit.T).topk(NUM_NEIGHBORS + 1, dim=1).indices.numpy()
    h, w, c = images.shape[1:]
    gap = max(1, h // 8)
    grid = np.full((len(queries) * (h + gap), (NUM_NEIGHBORS + 2) * (w + gap), c), 255, dtype=np.uint8)
    for row, (query, indices) in enumerate(zip(queries, nearest, strict=True)):
        cells = [query, None, *[i for i in indices if i != query][:NUM_NEIGHBORS]]  # None: an empty column
        for column, index in enumerate(cells):
            if index is not None:
                y, x = row * (h + gap), column * (w + gap)
                grid[y : y + h, x : x + w] = images[index]
    axes.imshow(grid.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set(title="Test images and nearest neighbors", xticks=[], yticks=[])
    axes.set_frame_on(False)
