"""Weighted k nearest neighbours on frozen features (Wu et al. 2018, InstDisc; Caron et al. 2021, DINO)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.features import EncoderLike, prepare
from mec.evaluate.result import Result, Stopwatch


def knn(
    data: str | os.PathLike[str],
    encoder: EncoderLike,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    baselines: bool = True,
    workers: int | None = None,
    labels: str | None = None,
) -> Result:
    """Classify test pictures by their nearest train pictures; no training.

    Args:
        data: a labelled source (see ``mec.data.open_images``).
        encoder: an Encoder, a run folder, an encoder file or a timm name.
        k: numbers of neighbours; those above the number of train pictures are left out.
        temperature: a neighbour of cosine similarity s weighs exp(s / temperature).
        baselines: measure the untrained encoder and raw pixels too.
        workers: loader processes; None is one per core.
        labels: a .csv of path and label for pictures of a folder, in place of its sub-folders.
    """
    if not k or min(k) < 1:
        raise InputError(f"k: expected numbers of at least 1, got {list(k)}")
    if not temperature > 0:
        raise InputError(f"temperature: expected a positive number, got {temperature}")
    clock = Stopwatch()
    task = prepare(data, encoder, baselines, workers, labels)
    most = len(task.features[0].train)
    kept = [n for n in k if n <= most]
    if not kept:
        raise InputError(f"k: expected at most {most}, the number of train pictures, got {list(k)}")
    figures: dict[str, dict[str, float]] = {}
    for f in task.features:
        predicted = knn_predict(f.train, f.train_labels, f.test, kept, task.classes, temperature)
        figures[f.name] = {f"k={n}": float((p == f.test_labels).float().mean()) for n, p in predicted.items()}
    return Result(
        task="knn",
        protocol=f"weighted kNN, cosine, temperature {temperature:g}, bank = train split, top-1 %",
        data=task.data,
        encoder=task.encoder,
        figures=figures,
        seconds=clock(),
    )


def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    k: Sequence[int],
    classes: int,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> dict[int, Tensor]:
    """Predicted class (n,) of each query for each k; ``chunk`` queries are compared with the bank at a time."""
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    found: dict[int, list[Tensor]] = {n: [] for n in k}
    for part in torch.split(queries, chunk):
        similarity, neighbours = (part @ bank.T).topk(max(k), dim=1)
        weights = (similarity / temperature).exp()
        labels = bank_labels[neighbours]
        for n in k:
            votes = weights.new_zeros(len(part), classes).scatter_add_(1, labels[:, :n], weights[:, :n])
            found[n].append(votes.argmax(dim=1))
    return {n: torch.cat(parts) for n, parts in found.items()}
