"""Create the optimizer of a run: PyTorch's fused SGD and AdamW, or any other of timm, and its parameter groups."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import timm.optim
import torch
from torch import nn

from mec.errors import InputError, did_you_mean
from mec.models.siamese import Siamese

if TYPE_CHECKING:
    from mec.pretraining.settings import OptimizerSettings

timm_optim: Any = timm.optim  # its names are not exported for type checkers
TORCH_OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
"""Optimizers of PyTorch that skip a step on the device. ``sgd`` has classical momentum; timm's has Nesterov's."""
SHARDED_OPTIMIZERS = ("sgd", "adamw", "lars", "muon")
"""Optimizers tested on weights sharded over processes (fsdp): norms and orthogonalization are of the whole weight."""
REFUSED = {
    "adahessian": "needs second derivatives of the loss",
    "kron": "draws random numbers, which differ between processes",
    "bnb": "comes from bitsandbytes",
    "fused": "comes from apex",
}
"""Start of the names of timm's optimizers that cannot be used, and why."""
SETTINGS = {
    "params": "optimizer", "lr": "optimizer.lr", "weight_decay": "optimizer.weight_decay",
    "momentum": "optimizer.momentum", "fused": "speed.fused", "foreach": "speed.fused",
}  # fmt: skip
"""Arguments of optimizers -> the settings of the recipe that they are."""


def _refusal(name: str) -> str | None:
    return next((reason for start, reason in REFUSED.items() if name.startswith(start)), None)


def check_optimizer(settings: OptimizerSettings) -> None:
    """Raise InputError if there is no such optimizer, or if it does not take these options."""
    name, options, names = settings.name, settings.options, timm_optim.list_optimizers()
    if name not in names:
        usable = [other for other in names if not _refusal(other)]
        raise InputError(
            "optimizer.name: expected sgd, adamw, lars, muon or another name of timm.optim.list_optimizers(), got "
            f"{name!r}{did_you_mean(name, usable)}"
        )
    if reason := _refusal(name):
        raise InputError(f"optimizer.name: expected an optimizer that a run supports, got {name}, which {reason}")
    if not options:
        return
    optimizer_class = TORCH_OPTIMIZERS.get(name) or timm_optim.get_optimizer_class(name, bind_defaults=False)
    expected = [argument for argument in inspect.signature(optimizer_class).parameters if argument not in SETTINGS]
    for option in options:
        if option in SETTINGS:
            raise InputError(f"optimizer.options: expected no {option}, which is the setting {SETTINGS[option]}")
        if option not in expected:
            raise InputError(
                f"optimizer.options: expected arguments of {name} ({', '.join(expected)}), got {option!r}"
                f"{did_you_mean(option, expected)}"
            )
    try:  # a step, because some values are first used there
        weight = nn.Parameter(torch.ones(4, 4))
        weight.grad = torch.ones_like(weight)
        _create([weight], settings, lr=1e-3, fused=False).step()
    except Exception as error:  # optimizers raise many types
        raise InputError(f"optimizer.options: {name}: {' '.join(str(error).split())} (got {options})") from error


def check_layers(backbone: nn.Module, settings: OptimizerSettings) -> None:
    """Raise InputError for a layer-wise decay of a backbone whose layers timm cannot group."""
    if settings.layer_decay is not None and not hasattr(backbone, "group_matcher"):
        raise InputError("optimizer.layer_decay: expected null for an encoder without timm's group_matcher")


def create_optimizer(
    network: Siamese, settings: OptimizerSettings, lr: float, fused: bool, objective: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of the trained parameters of a network, and of those of an objective, if it has any. The lr
    of a group with an ``lr_scale`` is to be multiplied by it; groups of the backbone have ``is_backbone``."""
    is_uniform = settings.layer_decay is None and settings.backbone_lr is None and not settings.heads_first
    if settings.decay_norms_and_biases and is_uniform:
        parts = filter(None, (network, objective))
        return _create([p for part in parts for p in part.parameters() if p.requires_grad], settings, lr, fused)
    return _create(_groups(network, objective, settings), settings, lr, fused)


def _create(parameters: list[Any], settings: OptimizerSettings, lr: float, fused: bool) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": lr, "weight_decay": settings.weight_decay, **settings.options}
    if settings.name not in TORCH_OPTIMIZERS:
        created: torch.optim.Optimizer = timm_optim.create_optimizer_v2(
            parameters, settings.name, momentum=settings.momentum, **common
        )
        return created
    if settings.name == "adamw":
        return torch.optim.AdamW(parameters, fused=fused, **common)
    sgd = torch.optim.SGD(parameters, momentum=settings.momentum, fused=fused, **common)
    if settings.momentum:
        # PyTorch leaves the momentum buffers uninitialized if the very first fused step is skipped
        for p in [p for group in sgd.param_groups for p in group["params"]]:
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def _groups(network: Siamese, objective: nn.Module | None, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return timm's parameter groups of the backbone, and those of the heads."""
    backbone, excludes = network.encoder.backbone, not settings.decay_norms_and_biases
    common: dict[str, Any] = {"weight_decay": settings.weight_decay, "weight_decay_exclude_1d": excludes}
    # timm's models name further parameters, such as position embeddings
    undecayed: set[str] = getattr(backbone, "no_weight_decay", set)() if excludes else set()
    if settings.layer_decay is None:
        groups = timm_optim.param_groups_weight_decay(backbone, no_weight_decay_list=undecayed, **common)
    else:
        decay = settings.layer_decay
        groups = timm_optim.param_groups_layer_decay(
            backbone, no_weight_decay_list=undecayed, layer_decay=decay, **common
        )
    for group in groups:
        group["is_backbone"] = True
        if settings.backbone_lr is not None:
            group["lr_scale"] = group.get("lr_scale", 1.0) * settings.backbone_lr / settings.lr
    heads = nn.ModuleList(head for head in (network.projector, network.predictor, objective) if head is not None)
    return [*groups, *timm_optim.param_groups_weight_decay(heads, **common)]
