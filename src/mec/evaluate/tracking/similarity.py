"""How alike objects look: how well the cells of one can be rebuilt from those of the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARPNESS = 100.0
"""A cell of cosine similarity s weighs exp(100 s) in rebuilding another."""


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
    products = first.cells @ second.cells.T
    there = _rebuilt(products, first, second, padded)
    back = _rebuilt(products.T, second, first, padded)
    found: NDArray[np.float64] = ((there + back.T) / 2).double().cpu().numpy()
    return found


class _Cells:
    """Cells of several objects, of length 1 each, one object after the other: (n, d)."""

    def __init__(self, objects: Sequence[Tensor]) -> None:
        self.cells = torch.nn.functional.normalize(torch.cat(list(objects), dim=1).T, dim=1)
        self.counts = [found.shape[1] for found in objects]
        self.parts = torch.split(self.cells, self.counts)
        self.missing = [max(self.counts) - count for count in self.counts]

    def sums(self, values: Tensor) -> Tensor:
        """(n, ...) -> (objects, ...): over the cells of each."""
        return torch.stack([part.sum(0) for part in torch.split(values, self.counts)])


def _rebuilt(products: Tensor, wanted: _Cells, given: _Cells, padded: bool) -> Tensor:
    """(wanted, given): cosine of the cells of each object with what the cells of another rebuild of them."""
    logits = SHARPNESS * products
    if padded:
        zeros = logits.new_zeros(len(logits), sum(given.missing))
        weights = torch.cat([logits, zeros], dim=1).softmax(dim=1)[:, : logits.shape[1]]
    else:
        weights = logits.softmax(dim=1)
    agreement, lengths = [], []
    for part, share, alike in zip(
        given.parts, torch.split(weights, given.counts, 1), torch.split(products, given.counts, 1), strict=True
    ):
        within = part @ part.T
        length = wanted.sums(((share @ within) * share).sum(1))
        if padded:  # a cell of zeros is rebuilt as the mean of all there are
            mean = within.sum() / (len(given.counts) * max(given.counts)) ** 2
            length = length + mean * length.new_tensor(wanted.missing)
        agreement.append(wanted.sums((share * alike).sum(1)))
        lengths.append(length)
    own = torch.tensor(wanted.counts, dtype=products.dtype, device=products.device).sqrt()
    return torch.stack(agreement, 1) / (torch.stack(lengths, 1).clamp_min(1e-24).sqrt() * own[:, None])
