"""The precision of a run: that of the recipe or of the run so far, or the faster one of this machine."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path

import torch
from lightning.fabric.plugins.environments import (  # type: ignore[attr-defined]
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from mec.distributed import started_by
from mec.engine.trainer import native_bfloat16
from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.pretraining.recipe import Recipe
from mec.pretraining.run_folder import recorded_precision

logger = logging.getLogger("mec")

MAX_SIZE_WITHOUT_BFLOAT16 = 16
"""Networks reduce views of at most this side, in pixels, to 1 x 1 before their last strided convolution. Its gradient
in bfloat16 on a CPU is then partly uninitialized memory (oneDNN, torch 2.11 to 2.15)."""
MIN_SECONDS, REPEATS = 0.05, 3
"""Duration of a measured pass, with fewer images if it suffices, and number of passes in each precision."""
MIN_GAIN = 1.2
"""bf16-mixed is taken where it is faster by this factor: it is less accurate, and measurements vary."""


def choose_precision(recipe: Recipe, encoder: Encoder, out: Path, resume: bool) -> str:
    """Return the precision of a run for ``make_trainer``.

    Bfloat16 instructions of a CPU may be twice as fast as float32 or 1.5 times slower, depending on the CPU and the
    network. So ``auto`` on a CPU is measured, on a copy of the encoder. A resumed run keeps its precision. With several
    processes, whose measurements could differ, it is 32-true.

    Raises:
        InputError: the recipe has bf16-mixed for views on a CPU that are too small for it.
    """
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if recipe.accelerator in ("gpu", "mps") or (recipe.accelerator == "auto" and has_gpu):
        return recipe.precision
    too_small = recipe.smallest_view <= MAX_SIZE_WITHOUT_BFLOAT16
    if too_small and recipe.precision == "bf16-mixed":
        raise InputError(
            f"precision: expected 32-true for views of up to {MAX_SIZE_WITHOUT_BFLOAT16} px on a CPU, got bf16-mixed"
        )
    if recipe.precision != "auto":
        return recipe.precision
    is_launched = started_by(TorchElasticEnvironment) or started_by(SLURMEnvironment)
    several = is_launched or {recipe.devices, recipe.nodes} - {"auto", 1}
    if too_small or several or not native_bfloat16():
        return "32-true"
    return (resume and recorded_precision(out)) or _faster_precision(encoder, recipe)


def _faster_precision(encoder: Encoder, recipe: Recipe) -> str:
    network = copy.deepcopy(encoder).train()
    shape = (encoder.spec.channels, recipe.global_size, recipe.global_size)
    with torch.random.fork_rng(devices=[]):  # of dropout and stochastic depth
        size = min(4, recipe.batch_size)
        while _seconds(network, size, shape, False) < MIN_SECONDS and size < recipe.batch_size:
            size = min(2 * size, recipe.batch_size)
        pairs = [[_seconds(network, size, shape, bfloat16) for bfloat16 in (False, True)] for _ in range(REPEATS + 1)]
    float32, bfloat16 = map(min, zip(*pairs[1:], strict=True))  # the first passes prepare the kernels
    precision = "bf16-mixed" if float32 > MIN_GAIN * bfloat16 else "32-true"
    duration = f"a step in bf16-mixed takes {bfloat16 / float32:.2f} times as long as in 32-true on this CPU"
    logger.info(f"precision: {precision}, because {duration}")
    return precision


def _seconds(network: Encoder, size: int, shape: tuple[int, int, int], bfloat16: bool) -> float:
    """Return the duration of a forward and a backward pass of ``size`` images."""
    x = torch.rand(size, *shape).contiguous(memory_format=network.memory_format)
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        features = network(x)
    features.float().sum().backward()
    return time.perf_counter() - start
