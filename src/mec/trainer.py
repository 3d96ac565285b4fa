"""lightning's Trainer as this package uses it: devices and precision chosen, checkpoints whole or absent, quiet."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mec.checkpoints import AtomicCheckpoints
from mec.errors import InputError

# it announces devices and products; what matters of that is said by those who train
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def make_trainer(
    folder: str | os.PathLike[str],
    devices: int | str,
    nodes: int,
    precision: str,
    accelerator: str = "auto",
    **settings: Any,
) -> lightning.Trainer:
    """A trainer that writes to ``folder``.

    Args:
        folder: what a run writes goes below it.
        devices: how many, or auto: all GPUs, or one process of a CPU.
        nodes: machines.
        precision: lightning's, or auto: bf16-mixed on GPUs that have it, else 32-true.
        accelerator: auto, gpu, cpu ...
        settings: more of lightning's.

    Raises:
        InputError: devices that are not there.
    """
    on_gpu = accelerator in ("auto", "gpu") and torch.cuda.is_available()
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    chosen: Any = {"precision": precision, "plugins": [AtomicCheckpoints()]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return lightning.Trainer(
                accelerator=accelerator,
                devices=1 if devices == "auto" and not on_gpu else devices,  # one process uses every core already
                num_nodes=nodes,
                use_distributed_sampler=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=True,
                default_root_dir=os.fspath(folder),
                **chosen,
                **settings,
            )
        except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"devices: {' '.join(str(error).split())}") from error
