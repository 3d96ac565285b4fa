"""Self-supervised pretraining of image encoders with Maximum Entropy Coding (Liu et al., NeurIPS 2022).

Every name is imported on first use, so that ``MECLoss`` alone imports nothing but torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mec import evaluate
    from mec.coding import MECLoss, coding_length, coding_rate, cross_coding_rate
    from mec.data import TwoViews, open_dataset
    from mec.embedding.embed import embed
    from mec.models import Encoder, create_encoder, load_encoder, save_encoder
    from mec.models.export import export
    from mec.pretraining import Recipe, Run, contact_sheet, load_recipe, pretrain

__version__ = "0.1.0"

_LAZY_IMPORTS = {
    "Encoder": "mec.models",
    "MECLoss": "mec.coding",
    "Recipe": "mec.pretraining",
    "Run": "mec.pretraining",
    "TwoViews": "mec.data",
    "coding_length": "mec.coding",
    "coding_rate": "mec.coding",
    "create_encoder": "mec.models",
    "cross_coding_rate": "mec.coding",
    "embed": "mec.embedding.embed",
    "export": "mec.models.export",
    "load_encoder": "mec.models",
    "load_recipe": "mec.pretraining",
    "open_dataset": "mec.data",
    "pretrain": "mec.pretraining",
    "save_encoder": "mec.models",
    "contact_sheet": "mec.pretraining",
}

__all__ = [
    "Encoder",
    "MECLoss",
    "Recipe",
    "Run",
    "TwoViews",
    "coding_length",
    "coding_rate",
    "contact_sheet",
    "create_encoder",
    "cross_coding_rate",
    "embed",
    "evaluate",
    "export",
    "load_encoder",
    "load_recipe",
    "open_dataset",
    "pretrain",
    "save_encoder",
]


def __getattr__(name: str) -> Any:
    if name in ("evaluate", "pretraining"):
        return importlib.import_module(f"mec.{name}")
    if name in _LAZY_IMPORTS:
        return getattr(importlib.import_module(_LAZY_IMPORTS[name]), name)
    raise AttributeError(f"module 'mec' has no attribute {name!r}")
