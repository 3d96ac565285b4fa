"""Counter-based random numbers: a hash of the seed, the epoch, the image index and the purpose; no generator state.

The numbers of an image do not depend on batch size, workers and devices, and are the same after a resume.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Uniforms = NDArray[np.float64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Stream(IntEnum):
    """Purposes of random numbers, independent under a seed. A changed value changes the random numbers of all runs."""

    VIEW_1 = 0
    VIEW_2 = 1
    VIEW_3 = 2
    SAMPLE_ORDER = 3
    SHARD_ORDER = 5
    SHARD_BUFFER = 6
    TRAIN_TEST_SPLIT = 7
    VIEW_TRANSFORM = 8  # seeds of transforms of one image: the reference, or a user's
    SUBSTITUTE = 9
    SHARD_SUBSTITUTE = 10
    SHARD_START = 11
    LABEL_SUBSET = 12
    NETWORK = 13  # dropout and stochastic depth in pretraining
    OBJECTIVE = 14  # random directions of a loss
    FURTHER_VIEWS = 1000


def view_stream(view: int) -> int:
    """Return the stream of view ``view``, counted from 0: 0, 1, 2, then numbers above those of all purposes."""
    return view if view <= Stream.VIEW_3 else Stream.FURTHER_VIEWS + view


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finalizer of SplitMix64 (Steele et al. 2014): each input bit affects each output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, epoch: int, indices: NDArray[np.int64], count: int, stream: int = Stream.VIEW_1) -> Uniforms:
    """Return uniforms (n, count) in [0, 1) for the images ``indices`` (n,), new for each ``epoch`` and ``stream``."""
    state = np.zeros((1, 1), dtype=np.uint64)
    for key in (seed, stream, epoch):
        state = _mix(state * _GOLDEN + np.uint64(key % 2**63) + _GOLDEN)
    state = _mix(state * _GOLDEN + indices.astype(np.uint64)[:, None] + _GOLDEN)
    steps = np.arange(1, count + 1, dtype=np.uint64)[None, :]
    return (_mix(state + steps * _GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextlib.contextmanager
def seeded_generators(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of torch, random and numpy in the block, for code of the user, and restore their
    states after it. Those of torch are the CPU's and that of ``device``."""
    modules: list[Any] = [torch]
    if device is not None and device.type != "cpu":
        modules.append(torch.get_device_module(device))
    states = [module.get_rng_state() for module in modules]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would change the generators of all devices
        for module in modules[1:]:
            module.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield
    finally:
        for module, state in zip(modules, states, strict=True):
            module.set_rng_state(state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
