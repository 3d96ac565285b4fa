"""Nearest neighbors by cosine similarity among any number of features, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BANK_ROWS, QUERY_ROWS = 8192, 1024
"""Compared at once: 32 MiB of similarities."""


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def nearest(
    queries: Tensor, bank: Tensor, k: int, progress: Callable[[int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """The ``k`` most similar rows of a bank for each query.

    Exact. The bank goes through the device a part at a time, once; what stays there is the queries' k best.

    Args:
        queries: (n, d), on the CPU.
        bank: (b, d), on the CPU; may be mapped from a file.
        k: how many, at most b.
        progress: called with the number of rows of the bank just compared.

    Returns:
        Cosine similarities (n, k), falling, and rows of the bank (n, k), both on the CPU.
    """
    device = best_device()
    similarity = torch.full((len(queries), k), -torch.inf)
    rows = torch.zeros((len(queries), k), dtype=torch.int64)
    for start in range(0, len(bank), BANK_ROWS):
        part = F.normalize(bank[start : start + BANK_ROWS].to(device, torch.float32), dim=1)
        for first in range(0, len(queries), QUERY_ROWS):
            some = slice(first, first + QUERY_ROWS)
            found = F.normalize(queries[some].to(device, torch.float32), dim=1) @ part.T
            values, places = found.topk(min(k, len(part)), dim=1)
            joined = torch.cat([similarity[some].to(device), values], dim=1)
            numbers = torch.cat([rows[some].to(device), places + start], dim=1)
            values, places = joined.topk(k, dim=1)
            similarity[some], rows[some] = values.cpu(), numbers.gather(1, places).cpu()
        if progress is not None:
            progress(len(part))
    return similarity, rows
