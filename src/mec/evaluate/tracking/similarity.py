"""Reconstruction similarity: how well the features of one object are reconstructed from those of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

INVERSE_TEMPERATURE = 100.0
"""A feature vector of cosine similarity s has the weight exp(100 s) in a reconstruction."""
CHUNK_SIZE = 2048
"""Feature vectors that are reconstructed at once."""


@torch.no_grad()
def reconstruction_similarity(
    first: Sequence[Tensor], second: Sequence[Tensor], padded: bool = False
) -> NDArray[np.float64]:
    """Compare every object of ``first`` with every object of ``second`` (UniTrack's reconstruction similarity).

    Every feature vector of an object is reconstructed as a weighted mean of the feature vectors of all objects on the
    other side. The contribution of one object to this mean is compared with the original by cosine, over all feature
    vectors together; the similarity is the mean of both directions. Reconstructions are never materialized: inner
    products are enough.

    Args:
        first: feature vectors (d, n) of each object, such as the tracks. Objects may differ in n.
        second: the same for the other side, such as the detections in a frame.
        padded: pad all objects of a side with zero vectors to the largest n, as UniTrack's code does. Padding takes
            part in the weights and in the norms; it has no effect if all objects have the same n.

    Returns:
        (objects in first, objects in second), at most 1.
    """
    if not first or not second:
        return np.zeros((len(first), len(second)))
    a, b = _FeatureSets(first), _FeatureSets(second)
    forward, backward = _one_way(a, b, padded), _one_way(b, a, padded)
    similarities: NDArray[np.float64] = ((forward + backward.T) / 2).double().cpu().numpy()
    return similarities


class _FeatureSets:
    """Unit feature vectors (n, d) of several objects, one object after the other."""

    def __init__(self, objects: Sequence[Tensor]) -> None:
        self.vectors = F.normalize(torch.cat(list(objects), dim=1).T, dim=1)
        self.counts = [features.shape[1] for features in objects]
        self.max_count = max(self.counts)
        owners = [torch.full((count,), i) for i, count in enumerate(self.counts)]
        self.owner = torch.cat(owners).to(self.vectors.device)

    def sum_per_object(self, values: Tensor) -> Tensor:
        """Sum (n, k) over the vectors of each object: (objects, k)."""
        return values.new_zeros(len(self.counts), values.shape[1]).index_add_(0, self.owner, values)

    def column(self, numbers: Sequence[float]) -> Tensor:
        """Return one number per object as (objects, 1)."""
        return self.vectors.new_tensor(numbers)[:, None]


def _one_way(target: _FeatureSets, source: _FeatureSets, padded: bool) -> Tensor:
    """Return the cosines (target, source) of each target object with its reconstruction from each source object."""
    gram = [vectors @ vectors.T for vectors in torch.split(source.vectors, source.counts)]
    padding = sum(source.max_count - count for count in source.counts) if padded else 0
    dots, squared_norms = [], []
    for rows in torch.split(target.vectors, CHUNK_SIZE):
        products = rows @ source.vectors.T
        weights = F.pad(INVERSE_TEMPERATURE * products, (0, padding)).softmax(dim=1)[:, : products.shape[1]]
        dots.append(torch.stack([x.sum(1) for x in torch.split(weights * products, source.counts, 1)], 1))
        object_weights = torch.split(weights, source.counts, 1)
        squared_norms.append(torch.stack([((w @ g) * w).sum(1) for w, g in zip(object_weights, gram, strict=True)], 1))
    dot, squared_norm = target.sum_per_object(torch.cat(dots)), target.sum_per_object(torch.cat(squared_norms))
    if padded:  # a zero vector is reconstructed as the plain mean of all vectors and padding
        mean_norms = source.column([float(g.sum()) for g in gram]) / (len(source.counts) * source.max_count) ** 2
        squared_norm = squared_norm + target.column([target.max_count - n for n in target.counts]) * mean_norms.T
    return dot / (squared_norm.clamp_min(1e-24) * target.column(target.counts)).sqrt()
