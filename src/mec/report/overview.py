"""One image of a run: is it learning, what has it learned."""

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

QUERIES = 8
SHOWN = 8


def overview(
    metrics: Sequence[dict[str, float]],
    features: torch.Tensor,
    labels: np.ndarray,
    images: np.ndarray,
    classes: Sequence[str],
    path: Path,
) -> Path:
    """Loss and effective rank against steps, the embedding in two dimensions, and nearest neighbors.

    metrics: rows of metrics.csv. features (n, d), labels (n,), images (n, h, w, c) uint8: of the test images.
    Returns ``path``, a PNG.
    """
    figure = Figure(figsize=(13, 4.2), dpi=120, layout="constrained")
    curves, cloud, rows = figure.subplots(1, 3, width_ratios=[1.1, 1.0, 1.0])
    _curves(curves, metrics)
    _cloud(cloud, features, labels, classes)
    _neighbors(rows, features, labels, images)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _curves(axes: Axes, metrics: Sequence[dict[str, float]]) -> None:
    steps = [row["step"] for row in metrics]
    axes.plot(steps, [row["loss"] for row in metrics], color="tab:blue")
    axes.set(title="Training, no labels", xlabel="step")
    axes.set_ylabel("loss", color="tab:blue")
    right = axes.twinx()
    right.plot(steps, [row["effective_rank"] for row in metrics], color="tab:orange")
    right.set_ylabel("effective rank of the codes", color="tab:orange")
    right.set_ylim(bottom=0)


def _cloud(axes: Axes, features: torch.Tensor, labels: np.ndarray, classes: Sequence[str]) -> None:
    perplexity = min(30, (len(features) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(F.normalize(features, dim=1).numpy())
    axes.scatter(flat[:, 0], flat[:, 1], c=labels, cmap="tab10", s=8)
    for label, name in enumerate(classes):
        members = flat[labels == label]
        if len(members):
            axes.annotate(name, np.median(members, axis=0), fontsize=13, weight="bold", ha="center", va="center")
    axes.set(title="Test images, features in 2-d (t-SNE)", xticks=[], yticks=[])


def _neighbors(axes: Axes, features: torch.Tensor, labels: np.ndarray, images: np.ndarray) -> None:
    unit = F.normalize(features - features.mean(dim=0), dim=1)
    queries = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:QUERIES]]
    order = (unit[queries] @ unit.T).topk(SHOWN + 1, dim=1).indices.numpy()
    h, w, c = images.shape[1:]
    gap = max(1, h // 8)
    sheet = np.full((len(queries) * (h + gap), (SHOWN + 2) * (w + gap), c), 255, dtype=np.uint8)
    for row, (query, found) in enumerate(zip(queries, order, strict=True)):
        shown = [query, None, *[i for i in found if i != query][:SHOWN]]
        for column, index in enumerate(shown):
            if index is not None:
                top, left = row * (h + gap), column * (w + gap)
                sheet[top : top + h, left : left + w] = images[index]
    axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set(title="An image and its nearest neighbors", xticks=[], yticks=[])
    axes.set_frame_on(False)
