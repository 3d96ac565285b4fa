"""Objectives: losses of the codes of the views of a batch of images, MEC and those that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from torch import nn

from mec.errors import InputError, check_value, did_you_mean, join_with_or
from mec.objectives.barlow_twins import BarlowTwins
from mec.objectives.base import Objective
from mec.objectives.coding_rate import EMPSSL, SimDINO
from mec.objectives.gather import Gathered, gather_codes
from mec.objectives.intl import INTL
from mec.objectives.mec import MEC
from mec.objectives.siamese import BYOL, SimSiam
from mec.objectives.sigreg import SIGReg
from mec.objectives.simclr import SimCLR
from mec.objectives.vicreg import VICReg

__all__ = [
    "BYOL", "EMPSSL", "INTL", "MEC", "OBJECTIVES", "BarlowTwins", "Gathered", "Objective", "SIGReg", "SimCLR",
    "SimDINO", "SimSiam", "VICReg", "create_objective", "gather_codes",
]  # fmt: skip

OBJECTIVES: dict[str, type[nn.Module]] = {
    "mec": MEC,
    "simclr": SimCLR,
    "barlow-twins": BarlowTwins,
    "vicreg": VICReg,
    "simsiam": SimSiam,
    "byol": BYOL,
    "intl": INTL,
    "emp-ssl": EMPSSL,
    "simdino": SimDINO,
    "sigreg": SIGReg,
}
"""Name, as in ``--objective.name``, -> class; the arguments of the class are the options of the objective."""


def create_objective(name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Create an objective by its name in ``OBJECTIVES``.

    Raises:
        InputError: an unknown name or option, or a value that it does not allow.

    Examples:
        >>> create_objective("simclr", {"temperature": 0.5})
        SimCLR(temperature=0.5)
    """
    if name not in OBJECTIVES:
        suggestion = did_you_mean(str(name), OBJECTIVES)
        raise InputError(f"objective.name: expected {join_with_or(list(OBJECTIVES))}, got {name!r}{suggestion}")
    types = get_type_hints(OBJECTIVES[name].__init__) if "__init__" in vars(OBJECTIVES[name]) else {}
    types.pop("return", None)
    for option in options or {}:
        if option not in types:
            valid = f"one of its options {', '.join(types)}" if types else "no option"
            suggestion = did_you_mean(str(option), types)
            raise InputError(f"objective: expected {valid} with {name}, got {option!r}{suggestion}")
    prefix = "objective" if name == "mec" else "objective.options"  # as the settings of a recipe are named
    values = {key: check_value(f"{prefix}.{key}", types[key], value) for key, value in (options or {}).items()}
    try:
        return OBJECTIVES[name](**values)
    except ValueError as error:
        raise InputError(f"{prefix}.{error}") from error
