"""Objects that are passed to ``pretrain`` in place of settings of the recipe, and their descriptions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mec.data.transforms.custom import ViewTransform
from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.pretraining.distillation import with_teacher
from mec.pretraining.recipe import Recipe
from mec.pretraining.settings import ObjectiveSettings
from mec.pretraining.start_encoder import StartEncoder, with_encoder

MAX_DEPTH, MAX_LENGTH = 4, 2000
"""Nesting of objects in objects, and characters of a description."""


class Parts(NamedTuple):
    """Objects passed to ``pretrain``; of the objective, also that of the recipe."""

    encoder: Any
    objective: Any
    view_transform: Any
    teacher: Encoder | None


def resolve_parts(
    recipe: Recipe,
    encoder: StartEncoder | None = None,
    objective: Callable[..., Tensor] | None = None,
    view_transform: ViewTransform | None = None,
    distill_from: Encoder | str | None = None,
) -> tuple[Recipe, Callable[..., Tensor]]:
    """Return the recipe with descriptions of the objects, and the objective: the given one, or the recipe's. A teacher
    whose targets exist already is passed by its description."""
    recipe = with_encoder(recipe, encoder)
    start = None if isinstance(encoder, str) else encoder
    recipe = with_parts(
        recipe, encoder=start, objective=objective, view_transform=view_transform, distill_from=distill_from
    )
    recipe = replace(recipe, image_size=recipe.global_size)
    objective = recipe.create_objective() if objective is None else objective
    if isinstance(distill_from, Encoder):
        recipe = with_teacher(recipe, distill_from, objective)
    targets = getattr(objective, "targets", None)
    if targets == "student" and recipe.teacher.enabled:
        raise InputError("teacher.enabled: expected false with targets from the student, as those of simsiam, got true")
    if targets == "teacher":
        recipe = replace(recipe, teacher=replace(recipe.teacher, enabled=True))
    return recipe, objective


def with_parts(recipe: Recipe, **parts: object) -> Recipe:
    """Return the recipe with descriptions of the objects that are passed to ``pretrain``, by argument.

    Raises:
        InputError: the recipe is that of a run with an object for an argument that is None here.
    """
    passed = {name: part for name, part in parts.items() if part is not None}
    if missing := sorted(recipe.parts.keys() - passed.keys()):
        described = recipe.parts[missing[0]]
        raise InputError(f"{missing[0]}: the recipe is that of a run with {described}; pass it to mec.pretrain")
    if "objective" in passed:
        recipe = replace(recipe, objective=ObjectiveSettings())
    return replace(recipe, parts={name: describe_part(part) for name, part in passed.items()})


def describe_part(part: object) -> str:
    """Return the qualified name of a function, or of the class of an object with the arguments of its constructor.

    An argument is shown where the object has an attribute of its name with a plain value, or with objects that can be
    described in turn: "losses.VICReg(sim=25.0)", "torchvision...Compose(transforms=[...])". Layers of networks are not
    shown. The text holds no addresses: it is equal in all processes and after a restart. A text is its own description.
    """
    if isinstance(part, str):
        return part
    text = part.description if isinstance(part, Encoder) else _describe(part, MAX_DEPTH)
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."


def _describe(value: object, depth: int) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if depth == 0:
        return "..."
    if isinstance(value, functools.partial):
        keywords = [f"{name}={_describe(item, depth - 1)}" for name, item in value.keywords.items()]
        arguments = [_describe(item, depth - 1) for item in value.args] + keywords
        return f"{_describe(value.func, depth)}({', '.join(arguments)})"
    if isinstance(value, torch.dtype):
        return str(value)
    if inspect.ismethod(value):
        return f"{_describe(value.__self__, depth)}.{value.__name__}"
    if inspect.isroutine(value) or inspect.isclass(value):
        return _qualified_name(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_describe(key, 0)}: {_describe(item, depth - 1)}' for key, item in value.items())}}}"
    if isinstance(value, Sequence | nn.ModuleList):
        return f"[{', '.join(_describe(item, depth - 1) for item in value)}]"
    arguments = _arguments(value, depth)
    if not arguments and isinstance(value, nn.Module):
        arguments = [" ".join(value.extra_repr().split())]
    return f"{_qualified_name(type(value))}({', '.join(arguments)})"


def _qualified_name(part: Any) -> str:
    return f"{getattr(part, '__module__', None) or ''}.{getattr(part, '__qualname__', type(part).__name__)}".lstrip(".")


def _arguments(value: object, depth: int) -> list[str]:
    """Return the arguments of the constructor of an object that are attributes of it."""
    try:
        names = list(inspect.signature(type(value)).parameters)
    except (TypeError, ValueError):  # classes without a signature, of extensions in C
        return []
    attributes = [(name, getattr(value, name, inspect.Parameter.empty)) for name in names]
    return [f"{name}={_describe(item, depth - 1)}" for name, item in attributes if _is_shown(item)]


def _is_shown(item: object) -> bool:
    if item is inspect.Parameter.empty or isinstance(item, torch.Tensor | torch.device):
        return False
    if isinstance(item, nn.Module):
        return not any(True for _ in item.parameters())
    return True
