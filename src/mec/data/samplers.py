"""The order of training: the same for any number of processes, and after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from torch.utils.data import Sampler

from mec.data.rng import uniforms

ORDER = 3
"""Stream of random numbers."""
Key = TypeVar("Key")


class _Epochs(Sampler[Key]):
    """Steps of joined batches over all processes. What does not fill one at the end of an epoch is left out of it,
    or, where ``whole``, shown in a smaller one."""

    def __init__(
        self, images: int, batch: int, seed: int, rank: int = 0, processes: int = 1, whole: bool = False
    ) -> None:
        self.images, self.batch, self.seed, self.rank, self.processes = images, batch, seed, rank, processes
        self.whole = whole
        self.epoch = 0
        self.resumed: tuple[int, int] | None = None

    def __len__(self) -> int:
        joined = self.batch * self.processes
        return -(-self.images // joined) if self.whole else self.images // joined

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def resume_at(self, epoch: int, step: int) -> None:
        """The next time that epoch ``epoch`` is gone through it begins at ``step``; once only."""
        self.resumed = (epoch, step)

    def _first(self) -> int:
        if self.resumed is None or self.resumed[0] != self.epoch:
            return 0
        (_, step), self.resumed = self.resumed, None
        return step


class EpochSampler(_Epochs[list[tuple[int, int]]]):
    """Batches of (epoch, index): a new order in each epoch, the same whole batches for any number of processes.

    Process r of ``processes`` gets rows r * batch ... (r + 1) * batch of each joined batch.
    """

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = uniforms(self.seed, self.epoch, np.arange(self.images), 1, ORDER)[:, 0].argsort()
        joined = self.batch * self.processes
        for start in range(self._first() * joined, len(self) * joined, joined):
            own = start + self.rank * self.batch
            yield [(self.epoch, int(i)) for i in order[own : own + self.batch]]


class StepSampler(_Epochs[tuple[int, int]]):
    """(epoch, step) for each step of an epoch, where the source itself says which images come next."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self._first(), len(self)):
            yield self.epoch, step


class SlicedSampler(Sampler[tuple[int, int, int]]):
    """(epoch, step, slice): each step as several keys, one for each loader worker. Its length is that in steps."""

    def __init__(self, steps: StepSampler, slices: int) -> None:
        self.steps, self.slices = steps, slices

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return ((epoch, step, part) for epoch, step in self.steps for part in range(self.slices))

    def set_epoch(self, epoch: int) -> None:
        self.steps.set_epoch(epoch)
