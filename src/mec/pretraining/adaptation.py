"""What of a trained backbone may change in a run: stages, BatchNorm."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mec.errors import InputError
from mec.models.siamese import Siamese
from mec.pretraining.recipe import Recipe


def freeze_backbone(backbone: Any, recipe: Recipe) -> list[str]:
    """Freeze the parameters that the recipe excludes from training: of stages, of BatchNorm. Return the names of the
    BatchNorm layers whose statistics must not change either; see ``fix_statistics``.

    Raises:
        InputError: there are no such stages besides one to train.
    """
    norms = {name: module for name, module in backbone.named_modules() if isinstance(module, _BatchNorm)}
    frozen = _stage_parameters(backbone, recipe.freeze) if recipe.freeze else set()
    if recipe.batch_norm == "frozen":
        frozen |= {f"{name}.{parameter}" for name, norm in norms.items() for parameter, _ in norm.named_parameters()}
    for name in frozen:
        backbone.get_parameter(name).requires_grad_(False)
    if recipe.batch_norm != "train":
        return list(norms)
    return [name for name in norms if f"{name}.weight" in frozen]


def _stage_parameters(backbone: Any, count: int) -> set[str]:
    """Return the names of the parameters of the stem and of the first ``count`` stages, as timm groups them."""
    if not hasattr(backbone, "group_matcher"):
        raise InputError("freeze: expected 0 for an encoder without timm's group_matcher")
    groups: dict[int, list[str]] = group_parameters(backbone, backbone.group_matcher(coarse=True))
    if count >= len(groups) - 1:
        name = type(backbone).__name__
        raise InputError(f"freeze: expected at most {len(groups) - 2} for this {name}, got {count}")
    return {name for number in sorted(groups)[: count + 1] for name in groups[number]}


def fix_statistics(network: Siamese, norms: list[str]) -> None:
    """Put BatchNorm layers of the encoder, and of its teacher, into evaluation mode, in which their running statistics
    normalize the batch and do not change. PyTorch forgets this mode whenever a network is put into training mode."""
    encoders: list[nn.Module] = [network.encoder] if network.teacher is None else [network.encoder, network.teacher[0]]
    for encoder in encoders:
        for name in norms:
            encoder.get_submodule(f"backbone.{name}").eval()
