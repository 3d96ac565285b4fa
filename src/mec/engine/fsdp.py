"""FSDP2 for networks that do not fit one device: weights, gradients and optimizer state sharded over devices."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from mec.distributed import process_group
from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.models.own_network import skeleton
from mec.models.siamese import Siamese

LARGE_STAGE_FRACTION = 0.1
"""Fraction of the parameters from which on the blocks of a stage are sharded separately."""


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with unsharded checkpoints: one file, which is loaded without running code."""

    def __init__(self, world_size: int, backend: str | None) -> None:
        super().__init__(world_size, 1, save_distributed_checkpoint=False, process_group_backend=backend)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        assert self.model is not None
        return get_optimizer_state_dict(
            self.model,
            getattr(optimizer, "_optimizer", optimizer),
            options=StateDictOptions(full_state_dict=True, cpu_offload=True),
        )

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        assert self.model is not None
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(self.broadcast(os.fspath(checkpoint_path)))
        options = StateDictOptions(full_state_dict=True, strict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(self.model, optimizer, state, options=options)
        return checkpoint


def apply_fsdp(network: Siamese, mesh: DeviceMesh) -> None:
    """Shard the parameters of student and teacher over ``mesh``, in place. Each block is gathered when it is used.

    Raises:
        InputError: a network that is not from timm has other weights in other processes.
    """
    if network.encoder.spec.is_module:  # sharded networks can be neither copied nor rebuilt
        check_equal_weights("encoder", network.encoder)
        object.__setattr__(network.encoder, "skeleton", skeleton(network.encoder.backbone))  # no submodule
    network.to(memory_format=torch.contiguous_format)  # fully_shard does not support channels-last weights
    # reshard root modules too: the teacher has no backward pass to reshard it, and must be laid out like the student
    shard = partial(fully_shard, mesh=mesh, reshard_after_forward=True)
    teacher: list[Any] = [] if network.teacher is None else [*network.teacher]
    for encoder in (network.encoder, *teacher[:1]):
        for block in _blocks(encoder.backbone):
            shard(block)
        shard(encoder.backbone)
    for head in (network.projector, network.predictor, *teacher[1:]):
        if head is not None:
            shard(head)


def full_encoder(encoder: Encoder) -> Encoder:
    """Return an unsharded copy of a sharded encoder, or the encoder itself. All processes must call this."""
    if not isinstance(encoder.backbone, FSDPModule):
        return encoder
    weights: dict[str, Any] = get_model_state_dict(encoder, options=StateDictOptions(full_state_dict=True))
    if not encoder.spec.is_module:
        rebuilt = Encoder(encoder.spec)
        rebuilt.load_state_dict(weights)
        return rebuilt
    backbone: Any = copy.deepcopy(encoder.skeleton)
    on_cpu = {key.removeprefix("backbone."): tensor.cpu() for key, tensor in weights.items()}
    backbone.load_state_dict(on_cpu, assign=True)
    return Encoder(encoder.spec, backbone)


def check_equal_weights(name: str, module: nn.Module) -> None:
    """Raise InputError if a module of the user has other weights in other processes: FSDP does not broadcast them."""
    with process_group() as group:
        if len(set(group.all_gather(_checksum(module)))) > 1:
            raise InputError(f"{name}: its weights differ between processes; seed PyTorch before it is created")


def _checksum(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _blocks(backbone: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules to shard separately: the blocks of a transformer, or of the larger stages of a ResNet."""
    total = sum(p.numel() for p in backbone.parameters())
    for child in backbone.children():
        is_large = sum(p.numel() for p in child.parameters()) >= LARGE_STAGE_FRACTION * total
        if is_large and isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from child.children()
