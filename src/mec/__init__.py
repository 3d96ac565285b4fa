"""Self-supervised pretraining of image encoders with Maximum Entropy Coding (Liu et al., NeurIPS 2022).

Every name is imported on first use, so that ``MECLoss`` alone imports nothing but torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mec import evaluate, objectives
    from mec.classification import classify
    from mec.coding import MECLoss, coding_length, coding_rate, cross_coding_rate, loss_in_chunks, sweep_distortion
    from mec.comparison import compare
    from mec.data import TwoViews, open_dataset
    from mec.embedding.embed import embed
    from mec.inspection import inspect
    from mec.models import Encoder, create_encoder, load_encoder, save_encoder
    from mec.models.export import export
    from mec.pretraining import Recipe, Run, contact_sheet, load_recipe, pretrain

__version__ = "0.1.0"

_MODULES = {
    "mec.classification": ("classify",),
    "mec.coding": (
        "MECLoss",
        "coding_length",
        "coding_rate",
        "cross_coding_rate",
        "loss_in_chunks",
        "sweep_distortion",
    ),
    "mec.comparison": ("compare",),
    "mec.data": ("TwoViews", "open_dataset"),
    "mec.embedding.embed": ("embed",),
    "mec.inspection": ("inspect",),
    "mec.models": ("Encoder", "create_encoder", "load_encoder", "save_encoder"),
    "mec.models.export": ("export",),
    "mec.pretraining": ("Recipe", "Run", "contact_sheet", "load_recipe", "pretrain"),
}

__all__ = [
    "Encoder", "MECLoss", "Recipe", "Run", "TwoViews", "classify", "coding_length", "coding_rate", "compare",
    "contact_sheet", "create_encoder", "cross_coding_rate", "embed", "evaluate", "export", "inspect", "load_encoder",
    "load_recipe", "loss_in_chunks", "objectives", "open_dataset", "pretrain", "save_encoder", "sweep_distortion",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in ("evaluate", "objectives", "pretraining"):
        return importlib.import_module(f"mec.{name}")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'mec' has no attribute {name!r}")
