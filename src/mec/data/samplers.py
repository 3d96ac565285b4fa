"""Samplers with a deterministic order of training: the same for any number of processes, and after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from torch.utils.data import Sampler

from mec.data.rng import Stream, uniforms

Key = TypeVar("Key")


class _GlobalBatchSampler(Sampler[Key]):
    """Epochs of global batches, each divided equally over the processes.

    Args:
        num_images: images in the dataset.
        batch_size: images in the batch of one process; a global batch has ``batch_size * world_size``.
        seed: seed of the order.
        rank: index of this process.
        world_size: number of processes.
        drop_last: leave out the images at the end of an epoch that do not fill a global batch; False: a smaller
            batch has them.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        drop_last: bool = True,
    ) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.epoch = 0
        self._resume: tuple[int, int] | None = None

    @property
    def global_batch(self) -> int:
        """Images in a batch over all processes."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Return the number of steps in an epoch."""
        return self.num_images // self.global_batch if self.drop_last else -(-self.num_images // self.global_batch)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def resume_at(self, epoch: int, step: int) -> None:
        """Start the next iteration over ``epoch`` at ``step``; later iterations start at 0 again."""
        self._resume = (epoch, step)

    def _first_step(self) -> int:
        if self._resume is None or self._resume[0] != self.epoch:
            return 0
        (_, step), self._resume = self._resume, None
        return step


class EpochSampler(_GlobalBatchSampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in a new random order each epoch; global batches do not depend on the world size.

    Process r gets rows r * batch_size ... (r + 1) * batch_size - 1 of each global batch.
    """

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = uniforms(self.seed, self.epoch, np.arange(self.num_images), 1, Stream.SAMPLE_ORDER)[:, 0].argsort()
        for step in range(self._first_step(), len(self)):
            start = step * self.global_batch + self.rank * self.batch_size
            yield [(self.epoch, int(i)) for i in order[start : start + self.batch_size]]


class StepSampler(_GlobalBatchSampler[tuple[int, int]]):
    """(epoch, step) for each step of an epoch, for a dataset that chooses the images of a step itself."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self._first_step(), len(self)):
            yield self.epoch, step


class SlicedSampler(Sampler[tuple[int, int, int]]):
    """(epoch, step, slice): one key per slice of each batch, so that several workers load one batch.

    Its length is the number of steps.
    """

    def __init__(self, steps: StepSampler, num_slices: int) -> None:
        self.steps, self.num_slices = steps, num_slices

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return ((epoch, step, index) for epoch, step in self.steps for index in range(self.num_slices))

    def set_epoch(self, epoch: int) -> None:
        self.steps.set_epoch(epoch)
