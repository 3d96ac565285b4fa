"""Create a ``lightning.Trainer`` with devices, precision, strategy and atomic checkpoints configured, and run it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import (  # type: ignore[attr-defined]
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from mec.data.corrupt import CorruptLog, merge_corrupt_logs
from mec.data.loaders import POLL_SECONDS
from mec.distributed import process_group, started_by
from mec.engine.checkpoints import AtomicCheckpointIO, StoppedError
from mec.engine.fsdp import FSDP2Strategy
from mec.errors import EXIT_PREEMPTED, InputError

logger = logging.getLogger("mec")
LIGHTNING_LOGGERS = ("lightning.pytorch", "lightning.fabric")


def make_trainer(
    folder: str | os.PathLike[str],
    devices: int | str,
    nodes: int | str,
    precision: str,
    accelerator: str = "auto",
    strategy: str = "auto",
    **settings: Any,
) -> lightning.Trainer:
    """Create a trainer that writes to ``folder``, with further ``settings`` of ``lightning.Trainer``.

    ``auto`` devices (processes per machine) and nodes are those of torchrun or SLURM, else all GPUs, or one process on
    a CPU, of one machine; other numbers than theirs are an InputError. ``auto`` precision is bf16-mixed on GPUs that
    support it, else 32-true. ``auto`` strategy is ddp; fsdp is for networks that do not fit one device.
    """
    has_mps = torch.backends.mps.is_available()
    available = {"gpu": torch.cuda.is_available() or has_mps, "mps": has_mps}
    if not available.get(accelerator, True):
        raise InputError(f"accelerator: expected auto or cpu, because this machine has no {accelerator}")
    on_gpu = accelerator in ("auto", "gpu") and torch.cuda.is_available()
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    devices, nodes = _launched_sizes(devices, nodes)
    if devices == "auto":
        devices = torch.cuda.device_count() if on_gpu else 1  # one process uses every CPU core
    devices, nodes = _parse_count("devices", devices), _parse_count("nodes", nodes)
    _exit_with_parent()
    plugins: list[Any] = [AtomicCheckpointIO()]
    if started_by(SLURMEnvironment) and not started_by(TorchElasticEnvironment):
        plugins.append(SLURMEnvironment(auto_requeue=False))  # the exit status reports a preempted run
    world_size = devices * nodes
    in_session = hasattr(sys, "ps1") or bool(sys.flags.interactive)
    if world_size > 1 and in_session:  # the other processes run the script again, which there is none of
        raise InputError(
            f"devices: expected 1 in a notebook or an interactive session, got {world_size} processes; run a script, "
            "or the mec command, to use several"
        )
    lightning_strategy: Any = "auto"
    if world_size > 1:
        if strategy == "fsdp":
            lightning_strategy = FSDP2Strategy(world_size, None if on_gpu else "gloo")
        else:  # SyncBatchNorm keeps the buffers equal in all processes, so they need no broadcast
            lightning_strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    untyped: Any = {"precision": precision, "plugins": plugins, "num_nodes": nodes}
    with quiet_lightning():
        try:
            return lightning.Trainer(
                accelerator=accelerator,
                devices=devices,
                strategy=lightning_strategy,
                use_distributed_sampler=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=True,
                default_root_dir=os.fspath(folder),
                **untyped,
                **settings,
            )
        except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"devices: {' '.join(str(error).split())}") from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning in the block: its log of devices, advertisements, and advice on settings chosen on purpose."""
    levels = {name: logging.getLogger(name).level for name in LIGHTNING_LOGGERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            # about sharded encoders whose output is changed in place, which does not happen here
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def running(trainer: lightning.Trainer) -> Iterator[None]:
    """Run ``trainer.fit`` or ``trainer.test`` in the block, quietly, and translate their exceptions: InputError if a
    loader process ended; KeyboardInterrupt for Ctrl-C and SystemExit, with status 75 on rank 0, for SIGTERM, after a
    checkpoint was saved if the trainer saves any."""
    with quiet_lightning():
        try:
            yield
        except StoppedError as stop:
            logger.info(f"saved at step {trainer.global_step:,}; continue with --resume")
            if stop.signal_number == signal.SIGINT:
                raise KeyboardInterrupt from stop
            # only rank 0 exits with an error: if several do, lightning and torchrun kill those that are still running
            raise SystemExit(EXIT_PREEMPTED if trainer.is_global_zero else 0) from stop
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"workers: a loader process ended ({' '.join(str(error).split())}), most often because memory ran "
                "out: use fewer workers, and continue from the last checkpoint with --resume"
            ) from error
        except SIGTERMException as error:  # before the first step, or without checkpoints
            raise SystemExit(EXIT_PREEMPTED) from error
        except SystemExit as error:  # lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's random number generators within the block, and restore their states after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def compiled(network: nn.Module) -> AbstractContextManager[None]:
    """Compile a network, and return a context to train it in: where compilation fails, it runs in eager mode."""
    network.compile()
    context: AbstractContextManager[None] = torch._dynamo.config.patch(suppress_errors=True)
    return context


def native_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 instructions (AVX-512 BF16, AMX)."""
    try:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    except AttributeError:  # not in every build of PyTorch
        return False


def _exit_with_parent() -> None:
    """Start a daemon thread that ends a process that Lightning started, with status 1, when its parent has died."""
    is_child = int(os.environ.get("LOCAL_RANK", "0")) > 0
    if not is_child or started_by(TorchElasticEnvironment) or started_by(SLURMEnvironment):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _parse_count(name: str, value: int | str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise InputError(f"{name}: expected a number or auto, got {value!r}") from error


def _launched_sizes(devices: int | str, nodes: int | str) -> tuple[int | str, int | str]:
    """Return devices per node and nodes as torchrun or SLURM launched them; the arguments without a launcher."""
    if started_by(TorchElasticEnvironment):
        launched = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        launcher = "torchrun"
    elif started_by(SLURMEnvironment):
        num_nodes = int(os.environ.get("SLURM_NNODES", "1"))
        launched, launcher = (int(os.environ["SLURM_NTASKS"]) // num_nodes, num_nodes), "SLURM"
    else:
        return devices, 1 if nodes == "auto" else nodes
    for name, value, expected in zip(("devices", "nodes"), (devices, nodes), launched, strict=True):
        if value not in ("auto", expected) and str(value) != str(expected):
            unit = "processes per machine" if name == "devices" else "machines"
            raise InputError(
                f"{name}: expected {expected}, because {launcher} started {expected} {unit}, got {value}; leave it out "
                "or make them equal"
            )
    return launched


class CorruptImageCallback(lightning.Callback):
    """Adds the corrupt images of every batch to ``corrupt_log``, and at the end of an epoch those of all processes."""

    def __init__(self, corrupt_log: CorruptLog) -> None:
        self.corrupt_log = corrupt_log

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.corrupt_log.add(batch.corrupt, len(batch.indices))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.world_size > 1:
            with process_group() as group:
                merge_corrupt_logs(self.corrupt_log, group)
