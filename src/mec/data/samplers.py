"""The order of training: the same for any number of processes, and after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from torch.utils.data import Sampler

from mec.data.draws import uniforms

ORDER = 3
"""Stream of random numbers."""
Key = TypeVar("Key")


class _Epochs(Sampler[Key]):
    """Steps of joined batches over all processes. What does not fill one at the end of an epoch is left out of it,
    or, where ``whole``, shown in a smaller one."""

    def __init__(
        self, pictures: int, batch: int, seed: int, rank: int = 0, processes: int = 1, whole: bool = False
    ) -> None:
        self.pictures, self.batch, self.seed, self.rank, self.processes = pictures, batch, seed, rank, processes
        self.whole = whole
        self.epoch = 0

    def __len__(self) -> int:
        joined = self.batch * self.processes
        return -(-self.pictures // joined) if self.whole else self.pictures // joined

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class EpochSampler(_Epochs[list[tuple[int, int]]]):
    """Batches of (epoch, index): a new order in each epoch, the same whole batches for any number of processes.

    Process r of ``processes`` gets rows r * batch ... (r + 1) * batch of each joined batch.
    """

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = uniforms(self.seed, self.epoch, np.arange(self.pictures), 1, ORDER)[:, 0].argsort()
        joined = self.batch * self.processes
        for start in range(0, len(self) * joined, joined):
            own = start + self.rank * self.batch
            yield [(self.epoch, int(i)) for i in order[own : own + self.batch]]


class StepSampler(_Epochs[tuple[int, int]]):
    """(epoch, step) for each step of an epoch, where the source itself says which pictures come next."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, step) for step in range(len(self))])
