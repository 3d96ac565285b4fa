"""Training from shards: read forward in lanes, shuffled by shard and within a lane, each image once an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mec.data.datasets.webdataset import ShardDataset
from mec.data.pixels import CorruptImageError
from mec.data.rng import uniforms
from mec.data.samplers import StepSampler
from mec.data.transforms.crop import SUBSTITUTES, Batch, Cropper, Item

BUFFER_IMAGES = 4096
BUFFER_BYTES = 512 * 2**20
"""Of the images among which those of all lanes are shuffled."""
LEAST_BUFFER = 8
"""Images of a lane."""
MEASURED = 16
"""How many images tell their usual size."""
ELSEWHERE = 8
"""How many shards, and images of each, are tried where a lane has lost all of its own of late."""
SHARDS, BUFFER, REPLACING, START = 5, 6, 10, 11
"""Streams of random numbers."""


def lanes_of(shards: int, joined: int, processes: int) -> int:
    """How many lanes read the shards at once: a divisor of the joined batch, up to 64, and a multiple of ``processes``.

    A property of the data and of the joined batch alone for 1, 2, 4 and 8 processes, and for any number up to 8 that
    divides it; otherwise of the number of processes too. Above 8 there are up to 8 lanes for each, so that its
    workers have something to do.
    """
    # a lane begins within a shard and passes over what comes before: few shards bear few lanes
    least, most = math.gcd(joined, 8), min(4 * shards, max(64, 8 * processes))
    found = [n for n in range(least, max(least, most) + 1, least) if joined % n == 0]
    return math.lcm(found[-1], processes)


class ShuffledShards(Dataset[Batch]):
    """The images of all shards in one ring, the shards in a new order each epoch. Each lane reads a stretch of that
    ring and shuffles it within a buffer; a joined batch is the next few images of every lane, in order of lanes.

    So each image comes once an epoch, whatever the sizes of the shards, and a joined batch is the same for any
    number of workers, and of processes that divides the number of lanes. The first stretch begins anywhere: what is
    left out at the end of an epoch may be any images.

    Args:
        slices: how many parts, of whole lanes, the batch of this process is loaded in; one is had by
            (epoch, step, part).
    """

    def __init__(self, dataset: ShardDataset, cropper: Cropper, order: StepSampler, slices: int = 1) -> None:
        self.dataset, self.cropper, self.order = dataset, cropper, order
        joined = order.batch * order.processes
        self.lanes = lanes_of(len(dataset.urls), joined, order.processes)
        self.share = joined // self.lanes
        each = self.lanes // order.processes
        self.slices = min(slices, each)
        self.bounds = [order.rank * each + part * each // self.slices for part in range(self.slices + 1)]
        self.expected: dict[int, tuple[int, int]] = {}
        self.readers: dict[int, list[Iterator[tuple[list[Item], list[Item]]]]] = {}
        self.buffer = 0
        self.elsewhere: tuple[int, list[Item]] = -1, []

    def __getitem__(self, key: tuple[int, int, int]) -> Batch:
        epoch, step, part = key
        if (epoch, step) != self.expected.get(part):
            lanes = range(self.bounds[part], self.bounds[part + 1])
            self.readers[part] = [self._read(epoch, lane, step) for lane in lanes]
        self.expected[part] = (epoch, step + 1)
        items: list[Item] = []
        recent: dict[int, list[Item]] = {}
        for reader in self.readers[part]:
            own, late = next(reader)
            items += own
            recent |= {item.number: late for item in own}
        return self.cropper(items, epoch, lambda index: self._others(epoch, recent[index], index))

    def stretch(self, epoch: int, lane: int) -> NDArray[np.int64]:
        """Numbers of the images that a lane reads in an epoch, in order of reading."""
        begin = uniforms(self.order.seed, epoch, np.zeros(1, dtype=np.int64), 1, START)[0, 0]
        length = len(self.order) * self.share
        places = (int(begin * len(self.dataset)) + lane * length + np.arange(length)) % len(self.dataset)
        shards, bounds = self._shards(epoch), self.dataset.bounds
        ends = np.cumsum(np.diff(bounds)[shards])
        turn = np.searchsorted(ends, places, side="right")
        numbers: NDArray[np.int64] = places - ends[turn] + bounds[shards[turn] + 1]
        return numbers

    def _shards(self, epoch: int) -> NDArray[np.int64]:
        return uniforms(self.order.seed, epoch, np.arange(len(self.dataset.urls)), 1, SHARDS)[:, 0].argsort()

    def _read(self, epoch: int, lane: int, step: int) -> Iterator[tuple[list[Item], list[Item]]]:
        """The loaded images of a lane for each step from ``step`` on, and the good ones that were read of late.

        Neither depends on where it begins: what was shown before is passed over.
        """
        self.buffer = self.buffer or self._buffer()
        numbers = self.stretch(epoch, lane)
        # none moves further than the buffer is long, so that no more than that are held
        late = self.buffer * uniforms(self.order.seed, epoch, numbers, 1, BUFFER)[:, 0]
        order = (np.arange(len(numbers)) + late).argsort()
        turn, reach = order.argsort(), np.maximum.accumulate(order) + 1
        dataset = replace(self.dataset)  # a copy has its own place in the shards
        held: dict[int, Item] = {}
        recent: dict[int, Item] = {}
        read, begin = 0, step * self.share
        for first in range(begin, len(numbers), self.share):
            wanted, end = order[first : first + self.share], int(reach[first + self.share - 1])
            for place in range(read, end):
                if turn[place] < begin and place < end - self.buffer:
                    continue
                item, size = _loaded(dataset, int(numbers[place]))
                if size:
                    recent[place] = item
                if turn[place] >= begin:
                    held[place] = item
            read = end
            recent = {place: item for place, item in recent.items() if place >= end - self.buffer}
            yield [held.pop(place) for place in wanted.tolist()], list(recent.values())

    def _buffer(self) -> int:
        """How far an image may move in its lane."""
        first, last = self.dataset.stretches[0]
        dataset = replace(self.dataset)
        sizes = [_loaded(dataset, index)[1] for index in range(first, min(last, first + MEASURED))]
        average = sum(sizes) / max(1, int(np.count_nonzero(sizes)))
        return max(LEAST_BUFFER, int(min(BUFFER_IMAGES, BUFFER_BYTES / max(1, average))) // self.lanes)

    def _others(self, epoch: int, recent: list[Item], index: int) -> Iterator[Item]:
        numbers = uniforms(self.order.seed, epoch, np.array([index]), SUBSTITUTES, REPLACING)[0]
        for turn, u in enumerate(numbers):
            # what was read of late may be as broken: half of the trials are made elsewhere
            among = recent if recent and turn < SUBSTITUTES // 2 else self._elsewhere(epoch)
            if among:
                yield among[int(u * len(among))]

    def _elsewhere(self, epoch: int) -> list[Item]:
        """Good images from the beginnings of some shards."""
        if self.elsewhere[0] != epoch:
            dataset, bounds, found = replace(self.dataset), self.dataset.bounds, []
            for shard in self._shards(epoch)[:ELSEWHERE]:
                for index in range(bounds[shard], min(bounds[shard] + ELSEWHERE, bounds[shard + 1])):
                    item, size = _loaded(dataset, index)
                    if not size:
                        break
                    found.append(item)
            self.elsewhere = epoch, found
        return self.elsewhere[1]


def _loaded(dataset: ShardDataset, index: int) -> tuple[Item, int]:
    """The image with its data and their size; or with the reason why there are none, and 0."""
    title = dataset.title(index)
    try:
        data = dataset.load(index)
        return Item(index, lambda: data, title), len(data)
    except CorruptImageError as error:
        return Item(index, partial(_broken, str(error)), title), 0


def _broken(reason: str) -> bytes:
    raise CorruptImageError(reason)
