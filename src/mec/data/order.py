"""The order of training: the same for any number of processes and workers, and after a resume."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from mec.data.dataset import ImageDataset
from mec.data.pixels import CorruptImageError
from mec.data.rng import Stream, uniforms
from mec.data.transforms.crop import MAX_SUBSTITUTES, Batch, BatchReader, Item

Key = TypeVar("Key")

MAX_BUFFER_IMAGES = 4096
MAX_BUFFER_BYTES = 512 * 2**20
"""Limits of the shuffle buffers of all lanes together."""
MIN_LANE_BUFFER = 8  # images in the shuffle buffer of a lane
MEASURED_IMAGES = 16  # from which the average size of an encoded image is estimated
FALLBACK_SHARDS, FALLBACK_IMAGES = 8, 8
"""Shards, and images of each, that supply substitutes where a lane has no readable image in its buffer."""


class _GlobalBatchSampler(Sampler[Key]):
    """Epochs of steps of ``batch_size * world_size`` images, divided equally over the processes."""

    def __init__(
        self, num_images: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, drop_last: bool = True
    ) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.global_batch = batch_size * world_size
        self.epoch = 0
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.num_images // self.global_batch if self.drop_last else -(-self.num_images // self.global_batch)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def resume_at(self, epoch: int, step: int) -> None:
        """Start the next iteration over ``epoch`` at ``step``; later iterations start at 0 again."""
        self._resume = (epoch, step)

    def _steps(self) -> range:
        first = 0
        if self._resume is not None and self._resume[0] == self.epoch:
            (_, first), self._resume = self._resume, None
        return range(first, len(self))


class EpochSampler(_GlobalBatchSampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in a new random order each epoch; global batches do not depend on the world size."""

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = uniforms(self.seed, self.epoch, np.arange(self.num_images), 1, Stream.SAMPLE_ORDER)[:, 0].argsort()
        for step in self._steps():
            start = step * self.global_batch + self.rank * self.batch_size
            yield [(self.epoch, int(i)) for i in order[start : start + self.batch_size]]


class StepSampler(_GlobalBatchSampler[tuple[int, int, int]]):
    """(epoch, step, slice) for each slice of each batch of ``ShuffledShards``, so that several workers load a batch."""

    num_slices = 1

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for step in self._steps():
            for index in range(self.num_slices):
                yield self.epoch, step, index


def choose_num_lanes(num_shards: int, global_batch: int, world_size: int) -> int:
    """Return the number of lanes: a divisor of the global batch and a multiple of the world size.

    It is the largest divisor of the global batch up to 64 (8 per process for more than 8 processes) and up to 4 per
    shard, and at least gcd(batch, 8); so it is the same for 1, 2, 4 and 8 processes.
    """
    # a lane that starts in the middle of a shard first reads and drops the images before it: few lanes per shard
    minimum, maximum = math.gcd(global_batch, 8), min(4 * num_shards, max(64, 8 * world_size))
    divisors = [n for n in range(minimum, max(minimum, maximum) + 1, minimum) if global_batch % n == 0]
    return math.lcm(divisors[-1], world_size)


class ShuffledShards(Dataset[Batch]):
    """Batches of shuffled images from shards. The item (epoch, step, slice) is the images of one or more lanes.

    A lane is one sequential reader with its own shuffle buffer. A global batch takes the same number of images from
    every lane. The images of all shards form a ring, with the shards in the order of the epoch, and the lanes read
    consecutive parts of it. So each image comes at most once per epoch, whatever the sizes of the shards. The first
    part starts at a random image, so the images that do not fill a global batch change from epoch to epoch.

    Global batches are in the order of the lanes. They do not depend on the number of workers, and are equal for world
    sizes that give the same number of lanes. The number of slices of ``sampler`` is set here, at most ``max_slices``.
    """

    def __init__(self, dataset: ImageDataset, reader: BatchReader, sampler: StepSampler, max_slices: int = 1) -> None:
        self.dataset, self.reader, self.sampler = dataset, reader, sampler
        self.num_shards = len(dataset.shard_bounds) - 1
        self.num_lanes = choose_num_lanes(self.num_shards, sampler.global_batch, sampler.world_size)
        self.images_per_lane = sampler.global_batch // self.num_lanes
        rank_lanes = self.num_lanes // sampler.world_size
        self.num_slices = sampler.num_slices = min(max_slices, rank_lanes)
        first_lane = sampler.rank * rank_lanes
        self.slice_bounds = [first_lane + i * rank_lanes // self.num_slices for i in range(self.num_slices + 1)]
        self._expected_step: dict[int, tuple[int, int]] = {}  # slice -> (epoch, step) that continues its readers
        self._readers: dict[int, list[Iterator[tuple[list[Item], list[Item]]]]] = {}
        self._buffer_size = 0
        self._fallback: tuple[int, list[Item]] = -1, []

    def __getitem__(self, key: tuple[int, int, int]) -> Batch:
        epoch, step, slice_index = key
        if (epoch, step) != self._expected_step.get(slice_index):
            lanes = range(self.slice_bounds[slice_index], self.slice_bounds[slice_index + 1])
            self._readers[slice_index] = [self._read_lane(epoch, lane, step) for lane in lanes]
        self._expected_step[slice_index] = (epoch, step + 1)
        items: list[Item] = []
        recent: dict[int, list[Item]] = {}
        for reader in self._readers[slice_index]:
            lane_items, lane_recent = next(reader)
            items += lane_items
            recent |= {item.image_index: lane_recent for item in lane_items}
        return self.reader(items, epoch, lambda index: self._substitutes(epoch, recent[index], index))

    def lane_indices(self, epoch: int, lane: int) -> NDArray[np.int64]:
        """Return the indices of the images that a lane reads in an epoch, in the order of reading."""
        start = uniforms(self.sampler.seed, epoch, np.zeros(1, dtype=np.int64), 1, Stream.SHARD_START)[0, 0]
        length = len(self.sampler) * self.images_per_lane
        positions = (int(start * len(self.dataset)) + lane * length + np.arange(length)) % len(self.dataset)
        shards, bounds = self._shard_order(epoch), self.dataset.shard_bounds
        ends = np.cumsum(np.diff(bounds)[shards])
        nth_shard = np.searchsorted(ends, positions, side="right")
        # an image is as far from the end of its shard on the ring as in the dataset
        indices: NDArray[np.int64] = positions - ends[nth_shard] + bounds[shards[nth_shard] + 1]
        return indices

    def _shard_order(self, epoch: int) -> NDArray[np.int64]:
        return uniforms(self.sampler.seed, epoch, np.arange(self.num_shards), 1, Stream.SHARD_ORDER)[:, 0].argsort()

    def _read_lane(self, epoch: int, lane: int, first_step: int) -> Iterator[tuple[list[Item], list[Item]]]:
        """Yield for each step from ``first_step`` on the images of a lane, and readable ones to replace the corrupt.

        Both are the same for any ``first_step``: images of earlier steps are skipped, or loaded only as candidates.
        """
        self._buffer_size = self._buffer_size or self._choose_buffer_size()
        indices = self.lane_indices(epoch, lane)
        # an image is delayed by less than the buffer size, so the buffer never holds more images than that, and up to
        # images_per_lane more before those of a step are removed
        delays = self._buffer_size * uniforms(self.sampler.seed, epoch, indices, 1, Stream.SHARD_BUFFER)[:, 0]
        shuffled = (np.arange(len(indices)) + delays).argsort()  # output position -> read position
        output_position = shuffled.argsort()
        read_until = np.maximum.accumulate(shuffled) + 1
        dataset = copy.copy(self.dataset)  # a copy has its own shard reader
        buffer: dict[int, Item] = {}
        recent: dict[int, Item] = {}
        num_read, first_output = 0, first_step * self.images_per_lane
        for output in range(first_output, len(indices), self.images_per_lane):
            end = int(read_until[output + self.images_per_lane - 1])
            for position in range(num_read, end):
                if output_position[position] < first_output and position < end - self._buffer_size:
                    continue
                item, num_bytes = _load_item(dataset, int(indices[position]))
                if num_bytes:
                    recent[position] = item
                if output_position[position] >= first_output:
                    buffer[position] = item
            num_read = end
            recent = {position: item for position, item in recent.items() if position >= end - self._buffer_size}
            batch = shuffled[output : output + self.images_per_lane].tolist()
            yield [buffer.pop(position) for position in batch], list(recent.values())

    def _choose_buffer_size(self) -> int:
        """Return the shuffle buffer size of a lane, in images, from the size of the first images."""
        dataset, bounds = copy.copy(self.dataset), self.dataset.shard_bounds
        first_end = int(bounds[bounds > 0][0])
        sizes = [_load_item(dataset, index)[1] for index in range(min(first_end, MEASURED_IMAGES))]
        average = sum(sizes) / max(1, int(np.count_nonzero(sizes)))
        buffer_size = int(min(MAX_BUFFER_IMAGES, MAX_BUFFER_BYTES / max(1, average)))
        return max(MIN_LANE_BUFFER, buffer_size // self.num_lanes)

    def _substitutes(self, epoch: int, recent: list[Item], index: int) -> Iterator[Item]:
        draws = uniforms(self.sampler.seed, epoch, np.array([index]), MAX_SUBSTITUTES, Stream.SHARD_SUBSTITUTE)[0]
        for attempt, u in enumerate(draws):
            # images of the same shard may all be corrupt, so half of the attempts use other shards
            use_recent = recent and attempt < MAX_SUBSTITUTES // 2
            candidates = recent if use_recent else self._fallback_items(epoch)
            if candidates:
                yield candidates[int(u * len(candidates))]

    def _fallback_items(self, epoch: int) -> list[Item]:
        """Return readable images from the start of several shards."""
        if self._fallback[0] != epoch:
            dataset, bounds, items = copy.copy(self.dataset), self.dataset.shard_bounds, []
            for shard in self._shard_order(epoch)[:FALLBACK_SHARDS]:
                for index in range(bounds[shard], min(bounds[shard] + FALLBACK_IMAGES, bounds[shard + 1])):
                    item, num_bytes = _load_item(dataset, index)
                    if not num_bytes:  # the rest of a damaged shard cannot be read either
                        break
                    items.append(item)
            self._fallback = epoch, items
        return self._fallback[1]


def _load_item(dataset: ImageDataset, index: int) -> tuple[Item, int]:
    """Read an image from its shard and return it with its number of bytes, which is 0 if it cannot be read."""
    try:
        data = dataset.load(index)
        num_bytes = len(data) if isinstance(data, bytes) else np.asarray(data).nbytes
        return Item(index, lambda: data, dataset.title(index)), num_bytes
    except CorruptImageError as error:
        reason = str(error)

    def raise_corrupt() -> bytes:
        raise CorruptImageError(reason)

    return Item(index, raise_corrupt, dataset.title(index)), 0
