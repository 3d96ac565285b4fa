from typing import Any

from torch import nn

from mec.objectives.mec import MEC


def create_objective(name: str, options: dict[str, Any]) -> nn.Module:
    return {"mec": MEC}[name](**options)
