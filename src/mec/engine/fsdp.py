"""Networks that do not fit one device: weights, gradients and optimizer spread over all of them (FSDP2)."""

from __future__ import annotations

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

from mec.models.encoder import Encoder
from mec.models.siamese import Siamese

LARGE = 0.1
"""Share of the weights from which the blocks of a stage are gathered one by one."""


class Sharded(ModelParallelStrategy):
    """lightning's strategy for FSDP2, its checkpoints whole files that are read as all others are: without running
    code from them."""

    def __init__(self, processes: int, backend: str | None) -> None:
        super().__init__(processes, 1, save_distributed_checkpoint=False, process_group_backend=backend)

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
        whole = StateDictOptions(full_state_dict=True, strict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=whole)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(self.model, optimizer, state, options=whole)
        return checkpoint


def shard(network: Siamese, mesh: DeviceMesh) -> None:
    """Spread its weights over the devices of ``mesh``, the teacher's too; each block is gathered when it is needed."""
    # also after the forward pass of the whole: the teacher has no other, and must be found as the student is
    network.to(memory_format=torch.contiguous_format)  # weights in another order cannot be spread
    spread = partial(fully_shard, mesh=mesh, reshard_after_forward=True)
    teacher: list[Any] = [] if network.teacher is None else [*network.teacher]
    for encoder in (network.encoder, *teacher[:1]):
        for block in _blocks(encoder.backbone):
            spread(block)
        spread(encoder.backbone)
    for head in (network.projector, network.predictor, *teacher[1:]):
        if head is not None:
            spread(head)


def whole_encoder(encoder: Encoder) -> Encoder:
    """Itself; of a sharded one a copy with all its weights, in every process. All of them must call this."""
    if not isinstance(encoder.backbone, FSDPModule):
        return encoder
    copy = Encoder(encoder.spec)
    copy.load_state_dict(get_model_state_dict(encoder, options=StateDictOptions(full_state_dict=True)))
    return copy


def _blocks(backbone: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a vision transformer, those of a ResNet's larger stages; the rest goes with the whole."""
    total = sum(p.numel() for p in backbone.parameters())
    for child in backbone.children():
        large = sum(p.numel() for p in child.parameters()) >= LARGE * total
        if large and isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from child.children()
