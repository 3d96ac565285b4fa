"""Random numbers that belong to an image, not to a process.

The numbers of image i in epoch e under seed s are a hash of (s, e, i): the same whatever the batch size, the
number of workers or devices, and after a resume. No generator has a state to save.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, epoch: int, indices: NDArray[np.int64], count: int, stream: int = 0) -> Numbers:
    """``count`` independent numbers in [0, 1) for each image: (n,) -> (n, count). ``stream`` tells uses apart."""
    state = np.zeros((1, 1), dtype=np.uint64)
    for part in (seed, stream, epoch):
        state = _mix(state * _GOLDEN + np.uint64(part % 2**63) + _GOLDEN)
    state = _mix(state * _GOLDEN + indices.astype(np.uint64)[:, None] + _GOLDEN)
    steps = np.arange(1, count + 1, dtype=np.uint64)[None, :]
    return (_mix(state + steps * _GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53
