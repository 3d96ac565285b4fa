"""Search of a user's transform: the library it comes from, the objects it holds, and its normalization."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mec.data.transforms.multi_view import Statistics
from mec.errors import InputError

MAX_OBJECTS = 10_000  # that a search visits


def is_from(library: str, transform: object) -> bool:
    """Return whether a class of an object, or a base of it, is defined in a library or package, such as "kornia"."""
    return any(f"{cls.__module__}.".startswith(f"{library}.") for cls in type(transform).__mro__)


def name_of(transform: object) -> str:
    """Return the name of a function, or of the class of an object."""
    function = transform.func if isinstance(transform, partial) else transform
    name: str = getattr(function, "__qualname__", type(function).__name__)
    return name


def objects_in(transform: object, stop_at: str = "") -> Iterator[object]:
    """Yield a transform and the objects that it is made of: attributes, items, and of functions the global variables
    and those of enclosing functions that they use. Functions of other packages are not searched, and objects from the
    library ``stop_at`` not either."""
    package = _package_of(transform)
    stack, visited = [transform], dict[int, object]()  # the objects too: they must outlive their ids
    while stack and len(visited) < MAX_OBJECTS:
        x = stack.pop()
        if id(x) in visited or isinstance(x, (type, types.ModuleType, str, bytes, int, float, Tensor, np.ndarray)):
            continue
        visited[id(x)] = x
        yield x
        if stop_at and is_from(stop_at, x):
            continue
        if isinstance(x, types.MethodType):
            stack += [x.__self__, x.__func__]
        elif isinstance(x, types.FunctionType):
            stack += _variables_of(x) if _package_of(x) == package else []
        elif isinstance(x, partial):
            stack += [x.func, *x.args, *x.keywords.values()]
        elif isinstance(x, Mapping):
            stack += x.values()
        elif isinstance(x, (list, tuple, set, frozenset)):
            stack += x
        else:
            stack += getattr(x, "__dict__", {}).values()
            # a class of the user may use global variables in the method that makes the views
            stack += [f for name in ("__call__", "forward") if (f := getattr(type(x), name, None)) is not None]


def _package_of(x: object) -> str:
    function = x.func if isinstance(x, partial) else x
    owner = function if isinstance(function, (types.FunctionType, types.MethodType)) else type(function)
    return (owner.__module__ or "").split(".")[0]


def _variables_of(function: types.FunctionType) -> list[object]:
    names = set(_names_in(function.__code__))
    cells = [cell for cell in function.__closure__ or () if cell != types.CellType()]  # not the empty ones
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    used = [value for name, value in function.__globals__.items() if name in names]
    return [*used, *(cell.cell_contents for cell in cells), *defaults]


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:  # lambdas and comprehensions
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def find_normalization(transform: object, channels: int) -> Statistics | None:
    """Return mean and standard deviation of the Normalize in a transform (torchvision, albumentations, kornia, or any
    object of a class of this name with ``mean`` and ``std``); None if there is none. Several must be equal."""
    found = {s for x in objects_in(transform) if type(x).__name__ == "Normalize" and (s := _statistics(x, channels))}
    if len(found) > 1:
        raise InputError(f"view_transform: expected one mean and std in all of its Normalize, got {sorted(found)}")
    return found.pop() if found else None


def _statistics(normalize: object, channels: int) -> Statistics | None:
    flags = getattr(normalize, "flags", {})  # where kornia has them
    mean, std = (getattr(normalize, name, flags.get(name)) for name in ("mean", "std"))
    is_standard = getattr(normalize, "normalization", "standard") == "standard"  # else albumentations' is by the image
    if mean is None or std is None or not is_standard:
        return None
    return _per_channel("mean", mean, channels), _per_channel("std", std, channels)


def _per_channel(name: str, values: Any, channels: int) -> tuple[float, ...]:
    array = torch.as_tensor(values, dtype=torch.float64).reshape(-1).tolist()
    if len(array) not in (1, channels):
        raise InputError(
            f"view_transform: expected {channels} numbers as the {name} of its Normalize, as the images have channels, "
            f"got {len(array)}; set channels in the recipe, or change Normalize"
        )
    # as written in decimal: kornia holds float32
    return tuple(float(f"{v:.7g}") for v in array) * (channels // len(array))
