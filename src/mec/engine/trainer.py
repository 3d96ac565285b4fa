"""lightning's Trainer as this package uses it: devices and precision chosen, checkpoints whole or absent, quiet."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import (  # type: ignore[attr-defined]
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy

from mec.data.workers import PATIENCE
from mec.engine.checkpoints import AtomicCheckpointIO
from mec.engine.fsdp import Sharded
from mec.errors import InputError

# it announces devices and products; what matters of that is said by those who train
for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def make_trainer(
    folder: str | os.PathLike[str],
    devices: int | str,
    nodes: int | str,
    precision: str,
    accelerator: str = "auto",
    strategy: str = "auto",
    **settings: Any,
) -> lightning.Trainer:
    """A trainer that writes to ``folder``.

    Args:
        folder: what a run writes goes below it.
        devices: processes on each machine, or auto: as torchrun or SLURM started them, else all GPUs, or one process
            of a CPU.
        nodes: machines, or auto: as torchrun or SLURM started them, else one.
        precision: lightning's, or auto: bf16-mixed on GPUs that have it, else 32-true.
        accelerator: auto, gpu, cpu ...
        strategy: of more than one process: ddp, or fsdp for networks that do not fit a device; auto is ddp.
        settings: more of lightning's.

    Raises:
        InputError: devices that are not there, or other numbers than were started.
    """
    on_gpu = accelerator in ("auto", "gpu") and torch.cuda.is_available()
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    devices, nodes = _as_started(devices, nodes)
    if devices == "auto":
        devices = torch.cuda.device_count() if on_gpu else 1  # one process uses every core already
    devices, nodes = _number("devices", devices), _number("nodes", nodes)
    _end_with_parent()
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # a stopped run says so by its exit status
    processes = devices * nodes
    across: Any = "auto"
    if processes > 1:
        backend = None if on_gpu else "gloo"
        across = Sharded(processes, backend) if strategy == "fsdp" else _ddp()
    chosen: Any = {"precision": precision, "plugins": plugins, "num_nodes": nodes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return lightning.Trainer(
                accelerator=accelerator,
                devices=devices,
                strategy=across,
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


def native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers by itself (AVX-512 BF16, AMX), about twice as fast as float32."""
    try:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    except AttributeError:  # other builds of PyTorch
        return False


def _end_with_parent() -> None:
    """A process that lightning has started does not outlive the one that started it, whatever ends that."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0 or TorchElasticEnvironment.detect() or SLURMEnvironment.detect():
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PATIENCE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ddp() -> DDPStrategy:
    # statistics of BatchNorm are joined where they are made, so that there are none to broadcast
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


def _number(name: str, asked: int | str) -> int:
    try:
        return int(asked)
    except ValueError as error:
        raise InputError(f"{name}: expected a number, or auto, got {asked!r}") from error


def _as_started(devices: int | str, nodes: int | str) -> tuple[int | str, int | str]:
    """The numbers of processes on a machine and of machines that torchrun or SLURM started, where one of them did."""
    environment = os.environ
    if TorchElasticEnvironment.detect():
        started = int(environment["LOCAL_WORLD_SIZE"]), int(environment.get("GROUP_WORLD_SIZE", "1"))
        by = "torchrun"
    elif SLURMEnvironment.detect():
        machines = int(environment.get("SLURM_NNODES", "1"))
        started, by = (int(environment["SLURM_NTASKS"]) // machines, machines), "SLURM"
    else:
        return devices, 1 if nodes == "auto" else nodes
    for name, asked, found in zip(("devices", "nodes"), (devices, nodes), started, strict=True):
        if asked not in ("auto", found) and str(asked) != str(found):
            what = "processes on each machine" if name == "devices" else "machines"
            raise InputError(f"{name}: {by} started {found} {what}, got {asked}; leave it out, or make them equal")
    return started
