"""Training from shards: read forward, shuffled by shard and by buffer, each picture once an epoch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler, get_worker_info

from mec.data.crops import Batch, Cropper, Encoded, Item
from mec.data.draws import uniforms
from mec.data.pixels import BrokenPictureError
from mec.data.shards import ShardImages

BUFFER_PICTURES = 2000
BUFFER_BYTES = 256 * 2**20
RECENT = 256
SHARDS, BUFFER, REPLACING = 5, 6, 10
"""Streams of random numbers."""


class StepSampler(Sampler[tuple[int, int]]):
    """(epoch, step) for each step of an epoch; what does not fill a joined batch is left out of it."""

    def __init__(self, pictures: int, batch: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.pictures, self.batch, self.seed, self.rank, self.processes = pictures, batch, seed, rank, processes
        self.epoch = 0

    def __len__(self) -> int:
        return self.pictures // (self.batch * self.processes)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, step) for step in range(len(self))])


class ShuffledShards(Dataset[Batch]):
    """The pictures of all shards in one line, the shards in a new order each epoch; each worker of each process
    reads a stretch of that line, whole batches long, through a shuffling buffer.

    So each picture comes once an epoch, whatever the sizes of the shards, and every process has as many batches.
    """

    def __init__(self, images: ShardImages, cropper: Cropper, order: StepSampler) -> None:
        self.images, self.cropper, self.order = images, cropper, order
        self.expected: tuple[int, int] | None = None

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, step = key
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if key != self.expected:
            # a new epoch, or a resumed one: what the interrupted run took is passed over
            self.batches = itertools.islice(self._batches(epoch, worker, workers), step // workers, None)
        self.expected = (epoch, step + workers)
        items, recent = next(self.batches)
        return self.cropper(items, epoch, partial(self._others, epoch, recent))

    def stretch(self, epoch: int, worker: int, workers: int) -> NDArray[np.int64]:
        """Numbers of the pictures that a worker of this process reads in an epoch, in order of reading."""
        steps, batch = len(self.order), self.order.batch
        share = [steps // workers + (w < steps % workers) for w in range(workers)]
        first = (self.order.rank * steps + sum(share[:worker])) * batch
        last = first + share[worker] * batch
        shards = uniforms(self.order.seed, epoch, np.arange(len(self.images.urls)), 1, SHARDS)[:, 0].argsort()
        bounds = self.images.starts
        if self.images.chosen is not None:
            bounds = np.searchsorted(self.images.chosen, bounds)
        line, start = [np.empty(0, dtype=np.int64)], 0
        for shard in shards:
            numbers = np.arange(bounds[shard], bounds[shard + 1])
            line.append(numbers[max(0, first - start) : max(0, last - start)])
            start += len(numbers)
        return np.concatenate(line)

    def _batches(self, epoch: int, worker: int, workers: int) -> Iterator[tuple[list[Item], list[Item]]]:
        """Batches of loaded pictures, each with some good ones that were read of late."""
        from webdataset.filters import shuffle

        recent: list[Item] = []

        def loaded() -> Iterator[Item]:
            for index in self.stretch(epoch, worker, workers).tolist():
                title = self.images.title(index)
                try:
                    data = self.images.load(index)
                    item = Item(index, partial(_same, data), title)
                    recent.append(item)
                    del recent[:-RECENT]
                except BrokenPictureError as error:
                    item = Item(index, partial(_broken, str(error)), title)
                yield item

        reader = np.array([self.order.rank * 2**16 + worker])
        seed = int(uniforms(self.order.seed, epoch, reader, 1, BUFFER)[0, 0] * 2**53)
        items = loaded()
        first = list(itertools.islice(items, 32))
        average = sum(len(r.load()) for r in recent) / max(1, len(recent)) or 1
        buffer = int(min(BUFFER_PICTURES, max(self.order.batch, BUFFER_BYTES // average)))
        shuffled = shuffle(buffer, initial=buffer, rng=random.Random(seed))(itertools.chain(first, items))
        while batch := list(itertools.islice(shuffled, self.order.batch)):
            yield batch, recent

    def _others(self, epoch: int, recent: list[Item], index: int) -> Iterator[Item]:
        numbers = uniforms(self.order.seed, epoch, np.array([index]), 100, REPLACING)[0]
        return (recent[int(u * len(recent))] for u in numbers if recent)


def _same(data: Encoded) -> Encoded:
    return data


def _broken(reason: str) -> bytes:
    raise BrokenPictureError(reason)
