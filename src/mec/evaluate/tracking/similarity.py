"""How alike objects look: how well the cells of one can be rebuilt from those of the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SHARPNESS = 100.0
"""A cell of cosine similarity s weighs exp(100 s) in rebuilding another."""
ROWS = 2048
"""Cells rebuilt at once."""


@torch.no_grad()
def reconstruction_similarity(
    some: Sequence[Tensor], others: Sequence[Tensor], padded: bool = False
) -> NDArray[np.float64]:
    """Objects of any numbers of cells, (d, cells) each -> similarity (some, others), at most 1.

    Every cell is rebuilt as a weighted mean of all cells of the other objects. The part of each object in what is
    rebuilt is compared by cosine with all cells of the first; the similarity is the mean of both directions (UniTrack's
    reconstruction similarity). What is rebuilt is never held: products of cells are enough.

    Args:
        some: such as tracks.
        others: such as what was found in a frame.
        padded: as UniTrack's code has it, sets are filled up with cells of zeros to the size of the largest, which
            share in the weights and in the lengths. The same where all sets are of one size.
    """
    if not some or not others:
        return np.zeros((len(some), len(others)))
    first, second = _Cells(some), _Cells(others)
    there, back = _rebuilt(first, second, padded), _rebuilt(second, first, padded)
    found: NDArray[np.float64] = ((there + back.T) / 2).double().cpu().numpy()
    return found


class _Cells:
    """Cells of several objects, of length 1 each, one object after the other: (n, d)."""

    def __init__(self, objects: Sequence[Tensor]) -> None:
        self.cells = F.normalize(torch.cat(list(objects), dim=1).T, dim=1)
        self.counts = [found.shape[1] for found in objects]
        self.most = max(self.counts)
        owners = [torch.full((count,), n) for n, count in enumerate(self.counts)]
        self.owner = torch.cat(owners).to(self.cells.device)

    def sums(self, values: Tensor) -> Tensor:
        """(n, k) -> (objects, k): over the cells of each."""
        return values.new_zeros(len(self.counts), values.shape[1]).index_add_(0, self.owner, values)

    def per_object(self, numbers: Sequence[float]) -> Tensor:
        """(objects, 1)."""
        return self.cells.new_tensor(numbers)[:, None]


def _rebuilt(wanted: _Cells, given: _Cells, padded: bool) -> Tensor:
    """(wanted, given): cosine of the cells of each object with what the cells of another rebuild of them."""
    parts = torch.split(given.cells, given.counts)
    within = [part @ part.T for part in parts]
    zeros = sum(given.most - count for count in given.counts) if padded else 0
    agreed, squared = [], []
    for rows in torch.split(wanted.cells, ROWS):
        products = rows @ given.cells.T
        weights = F.pad(SHARPNESS * products, (0, zeros)).softmax(dim=1)[:, : products.shape[1]]
        shares = torch.split(weights, given.counts, 1)
        agreed.append(torch.stack([part.sum(1) for part in torch.split(weights * products, given.counts, 1)], 1))
        squared.append(torch.stack([((s @ w) * s).sum(1) for s, w in zip(shares, within, strict=True)], 1))
    agreement, lengths = wanted.sums(torch.cat(agreed)), wanted.sums(torch.cat(squared))
    if padded:  # a cell of zeros is rebuilt as the mean of all there are
        means = given.per_object([float(w.sum()) for w in within]) / (len(given.counts) * given.most) ** 2
        lengths = lengths + wanted.per_object([wanted.most - count for count in wanted.counts]) * means.T
    return agreement / (lengths.clamp_min(1e-24) * wanted.per_object(wanted.counts)).sqrt()
