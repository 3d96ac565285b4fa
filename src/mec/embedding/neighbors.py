"""Nearest neighbors by cosine similarity among any number of features, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BANK_ROWS, QUERY_ROWS = 8192, 1024
"""Block of the similarity matrix that is held at a time: 32 MiB."""


def best_device() -> torch.device:
    """Return the first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def nearest(
    queries: Tensor, bank: Tensor, k: int, progress: Callable[[int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` most similar rows of a bank for each query.

    The search is exact. Blocks of the bank pass through the device once; the k best so far stay on the CPU.

    Args:
        queries: (n, d), on the CPU.
        bank: (b, d), on the CPU; may be memory-mapped.
        k: neighbors per query, at most b.
        progress: called with the number of bank rows just compared.

    Returns:
        Cosine similarities (n, k), descending, and row indices of the bank (n, k), both on the CPU.
    """
    device = best_device()
    similarity = torch.full((len(queries), k), -torch.inf)
    rows = torch.zeros((len(queries), k), dtype=torch.int64)
    for start in range(0, len(bank), BANK_ROWS):
        block = F.normalize(bank[start : start + BANK_ROWS].to(device, torch.float32), dim=1)
        for first in range(0, len(queries), QUERY_ROWS):
            chunk = slice(first, first + QUERY_ROWS)
            cosines = F.normalize(queries[chunk].to(device, torch.float32), dim=1) @ block.T
            values, columns = cosines.topk(min(k, len(block)), dim=1)
            candidates = torch.cat([similarity[chunk].to(device), values], dim=1)
            candidate_rows = torch.cat([rows[chunk].to(device), columns + start], dim=1)
            values, columns = candidates.topk(k, dim=1)
            similarity[chunk], rows[chunk] = values.cpu(), candidate_rows.gather(1, columns).cpu()
        if progress is not None:
            progress(len(block))
    return similarity, rows
