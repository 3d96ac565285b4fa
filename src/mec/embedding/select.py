"""Choose the images whose labels would teach most: diverse and typical ones."""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor

from mec.embedding.neighbors import MAX_DRAWN, EmbeddingTable, centered, draw
from mec.embedding.parts import open_csv, write_output
from mec.errors import InputError

logger = logging.getLogger("mec")

MAX_CLUSTERS = 500
"""As published: with more clusters than that, several images of each are chosen."""
TYPICALITY_NEIGHBORS = 20
MAX_EXACT = 50_000
"""Images up to which k-means uses all of them in every iteration."""


def list_images_to_label(table: EmbeddingTable, count: int) -> None:
    """Write STEM.select.csv and .png beside an embedding file: ``count`` images in the order in which to label them."""
    rows = range(len(table))
    labels = [table.row(row)[1] for row in rows]
    is_labeled = np.array([label is not None for label in labels])
    if is_labeled.all():  # labels that are there for another purpose
        is_labeled[:] = False
    available = int((~is_labeled).sum())
    if count > available:
        raise InputError(f"select: expected at most {available:,}, the number of images without label, got {count:,}")
    chosen, sizes = choose_images(centered(table.embeddings, len(table)), is_labeled, count)
    path = table.file.with_suffix(".select.csv")
    with write_output(path) as temporary, open_csv(temporary) as add:
        add(["rank", "images_like_it", *table.images.columns])
        for rank, (row, size) in enumerate(zip(chosen.tolist(), sizes.tolist(), strict=True), 1):
            add([rank, size, *table.row(row)])
    shown = slice(MAX_DRAWN)
    captions = [f"{rank}, for {size:,} images" for rank, size in enumerate(sizes[shown].tolist(), 1)]
    png = draw(table, path.with_suffix(".png"), captions, chosen[shown, None])
    labeled = f"; {int(is_labeled.sum()):,} have a label already" if is_labeled.any() else ""
    logger.info(f"{count:,} images to label, listed in {path}{labeled}; {png} shows the first")


def choose_images(
    embeddings: Tensor, is_labeled: NDArray[np.bool_], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose ``count`` images without label: TypiClust (Hacohen et al. 2022, arXiv 2202.02794).

    k-means makes as many clusters as there are labels and images to choose, at most 500. In turn, the largest of the
    clusters with the fewest labels gives its most typical image: that with the smallest mean distance to its 20
    nearest neighbors within the cluster.

    Args:
        embeddings: (n, d), rows of length 1.
        is_labeled: (n,), images that have a label.
        count: number of images to choose, of those without label.

    Returns:
        The chosen rows, most valuable first, and the size of the cluster of each.
    """
    n = len(embeddings)
    k = min(n, int(is_labeled.sum()) + count, MAX_CLUSTERS)
    means = KMeans if n <= MAX_EXACT else MiniBatchKMeans
    cluster = means(k, n_init=1, random_state=0).fit_predict(embeddings.numpy())
    members = [np.flatnonzero(cluster == number) for number in range(k)]
    sizes = np.array([len(rows) for rows in members])
    labels = np.array([is_labeled[rows].sum() for rows in members])
    waiting = [_by_typicality(embeddings, rows, is_labeled) for rows in members]
    chosen, chosen_sizes = [], []
    for _ in range(count):
        candidates = [number for number in range(k) if waiting[number]]
        best = min(candidates, key=lambda number: (labels[number], -sizes[number], number))
        chosen.append(waiting[best].pop(0))
        chosen_sizes.append(sizes[best])
        labels[best] += 1
    return np.array(chosen, dtype=np.int64), np.array(chosen_sizes, dtype=np.int64)


def _by_typicality(embeddings: Tensor, rows: NDArray[np.int64], is_labeled: NDArray[np.bool_]) -> list[int]:
    """Return the rows of a cluster without label, most typical first."""
    own = embeddings[torch.from_numpy(rows)]
    neighbors = min(TYPICALITY_NEIGHBORS, len(rows) - 1)
    # the smallest distance of each row is that to itself, 0
    blocks = [torch.cdist(block, own).topk(neighbors + 1, largest=False).values for block in torch.split(own, 1024)]
    distance = torch.cat(blocks).sum(dim=1).numpy()
    ordered = rows[np.argsort(distance, kind="stable")]
    return [int(row) for row in ordered if not is_labeled[row]]
