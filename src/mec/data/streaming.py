"""Training from shards: read forward, shuffled by shard and by buffer, each picture once an epoch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from mec.data.crops import Batch, Cropper, Encoded, Item
from mec.data.draws import uniforms
from mec.data.pixels import BrokenPictureError
from mec.data.samplers import StepSampler
from mec.data.sources.shards import ShardImages

BUFFER_PICTURES = 2000
BUFFER_BYTES = 256 * 2**20
RECENT = 256
ELSEWHERE = 8
"""How many shards, and pictures of each, are tried where a reader finds none in its own."""
SHARDS, BUFFER, REPLACING, START = 5, 6, 10, 11
"""Streams of random numbers."""


class ShuffledShards(Dataset[Batch]):
    """The pictures of all shards in one ring, the shards in a new order each epoch; each worker of each process
    reads a stretch of that ring, whole batches long, through a shuffling buffer.

    So each picture comes once an epoch, whatever the sizes of the shards, and every process has as many batches. The
    first stretch begins anywhere: what is left out at the end of an epoch may be any pictures.
    """

    def __init__(self, images: ShardImages, cropper: Cropper, order: StepSampler) -> None:
        self.images, self.cropper, self.order = images, cropper, order
        self.expected: tuple[int, int] | None = None

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, step = key
        info = get_worker_info()
        workers = info.num_workers if info else 1
        worker = step % workers  # not info.id: a resumed epoch may begin with any step
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
        start = int(uniforms(self.order.seed, epoch, np.zeros(1, dtype=np.int64), 1, START)[0, 0] * len(self.images))
        first = start + (self.order.rank * steps + sum(share[:worker])) * batch
        last = first + share[worker] * batch
        shards, bounds = self._shards(epoch), self._bounds()
        ring, begin = [np.empty(0, dtype=np.int64)], 0
        for shard in np.concatenate([shards, shards]):
            numbers = np.arange(bounds[shard], bounds[shard + 1])
            ring.append(numbers[max(0, first - begin) : max(0, last - begin)])
            begin += len(numbers)
        return np.concatenate(ring)

    def _shards(self, epoch: int) -> NDArray[np.int64]:
        return uniforms(self.order.seed, epoch, np.arange(len(self.images.urls)), 1, SHARDS)[:, 0].argsort()

    def _bounds(self) -> NDArray[np.int64]:
        """The numbers of the pictures of shard i are bounds[i] ... bounds[i + 1]."""
        starts, chosen = self.images.starts, self.images.chosen
        return starts if chosen is None else np.searchsorted(chosen, starts)

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
        if not recent:
            recent += self._elsewhere(epoch)
        numbers = uniforms(self.order.seed, epoch, np.array([index]), 100, REPLACING)[0]
        return (recent[int(u * len(recent))] for u in numbers if recent)

    def _elsewhere(self, epoch: int) -> Iterator[Item]:
        """Pictures from the beginnings of some shards, for a reader that has lost all of its own so far."""
        apart, bounds = replace(self.images), self._bounds()  # a copy has its own place in the shards
        for shard in self._shards(epoch)[:ELSEWHERE]:
            for index in range(bounds[shard], min(bounds[shard] + ELSEWHERE, bounds[shard + 1])):
                try:
                    yield Item(index, partial(_same, apart.load(index)), apart.title(index))
                except BrokenPictureError:
                    break


def _same(data: Encoded) -> Encoded:
    return data


def _broken(reason: str) -> bytes:
    raise BrokenPictureError(reason)
