"""Weighted k nearest neighbors on frozen features (Wu et al. 2018, InstDisc; Caron et al. 2021, DINO)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from mec.data.dataset import DataLike
from mec.distributed import process_group
from mec.embedding.neighbors import nearest
from mec.errors import InputError
from mec.evaluate.task import TOP, accuracies, features_of, open_task, ranking
from mec.models.encoder import EncoderLike
from mec.results import Metric, Protocol, Result, to_metrics

logger = logging.getLogger("mec")

MAX_VOTES = 2**24
"""Votes (queries times classes) counted at once, which bounds the memory."""


def knn(
    data: DataLike,
    encoder: EncoderLike,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    baselines: bool | None = None,
    workers: int | None = None,
    labels_csv: str | None = None,
) -> Result:
    """Classify test images by their nearest train images, without training.

    The search is exact and its memory bounded: the train features pass through the device in blocks.

    Args:
        data: labeled dataset (see ``mec.open_dataset``).
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        k: numbers of neighbors; those above the number of train images are left out.
        temperature: a neighbor of cosine similarity s has the weight exp(s / temperature).
        baselines: also measure the untrained encoder and raw pixels; null: only if there are at most
            100,000 train images.
        workers: loader processes; null: one per core.
        labels_csv: .csv with columns path and label for the images of a folder, in place of its sub-folders.
    """
    if not k or min(k) < 1:
        raise InputError(f"k: expected numbers of at least 1, got {list(k)}")
    if not temperature > 0:
        raise InputError(f"temperature: expected a positive number, got {temperature}")
    rows: dict[str, list[Metric]] = {}
    with process_group() as group:
        task = open_task(data, encoder, baselines, workers, labels_csv, group)
        possible_k = [n for n in k if n <= len(task.train)]
        if not possible_k:
            raise InputError(f"k: expected at most {len(task.train)}, the number of train images, got {list(k)}")
        if len(possible_k) < len(k):
            left_out = ", ".join(str(n) for n in k if n not in possible_k)
            logger.warning(f"k: {left_out} left out: more neighbors than the {len(task.train):,} train images")
        classes = len(task.classes)
        for f in features_of(task):
            ranked = knn_ranking(f.train, f.train_labels, f.test, possible_k, classes, temperature)
            values = {}
            for n, predicted in ranked.items():
                accuracy = accuracies(predicted, f.test_labels, classes)
                values[f"k={n}"] = accuracy["top-1"]
                if "top-5" in accuracy:
                    values[f"k={n} top-5"] = accuracy["top-5"]
            rows[f.name] = to_metrics(values)
        protocol = Protocol("knn", {"similarity": "cosine", "temperature": temperature, "bank": "train split"})
        return task.result("knn", protocol, rows)


def knn_ranking(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, k: Sequence[int], classes: int, temperature: float = 0.07
) -> dict[int, Tensor]:
    """Return for each k the classes with most votes of each query, (n, min(5, classes)), best first."""
    similarity, neighbors = nearest(queries, bank, min(max(k), len(bank)))
    weights, labels = (similarity / temperature).exp(), bank_labels[neighbors]
    ranked: dict[int, list[Tensor]] = {n: [] for n in k}
    block = max(1, MAX_VOTES // classes)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        for n in k:
            votes = torch.zeros(len(labels[rows]), classes)
            votes.scatter_add_(1, labels[rows, :n], weights[rows, :n])
            ranked[n].append(ranking(votes))
    return {n: torch.cat(blocks) if blocks else torch.empty(0, min(TOP, classes)) for n, blocks in ranked.items()}
