"""Read recipes: packaged ones by name, YAML files, and nested settings such as those of the command line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml

from mec.data.dataset import DataLike, data_name, is_path
from mec.data.transforms import ViewSettings
from mec.errors import InputError, check_value, did_you_mean
from mec.models.encoder import Encoder
from mec.pretraining.recipe import Recipe


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML's loader keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is there twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def packaged_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(Path(f.name).stem for f in files("mec").joinpath("recipes").iterdir() if f.name.endswith(".yaml"))


def default_recipe(data: DataLike, encoder: object = None, distill_from: object = None) -> str:
    """Return the name of the packaged recipe for a dataset on this machine; ``small``, or ``small-cpu`` without a GPU,
    if there is none of its name. It is ``adapt`` with a trained encoder to start from, ``distill`` with a teacher."""
    if isinstance(encoder, Encoder) and encoder.is_trained:
        return "adapt"
    if distill_from is not None:
        return "distill"
    name = data_name(data) if is_path(data) else data_name(data).rpartition(".")[2]
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if name.lower() == "digits":
        return "digits"
    if name.lower() == "cifar10":
        return "cifar10-resnet18" if has_gpu else "cifar10-cpu"
    return "small" if has_gpu else "small-cpu"


def load_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """Load a packaged recipe by name (see ``packaged_recipes``: digits, small, ...), or a YAML file by path.

    Raises:
        InputError: there is no such recipe, it is not YAML, or a setting is unknown or out of range.
    """
    return make_recipe(read_settings(name_or_path))


def read_settings(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the settings of a packaged recipe or a YAML file, unchecked and without defaults."""
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in packaged_recipes():
        text = files("mec").joinpath("recipes", f"{name}.yaml").read_text()
    elif path.is_file():
        text = path.read_text()
    else:
        raise InputError(
            f"recipe: {name!r} is neither a YAML file nor one of {', '.join(packaged_recipes())}"
            f"{did_you_mean(name, packaged_recipes())}"
        )
    try:
        settings = yaml.load(text, _UniqueKeys) or {}
    except yaml.YAMLError as error:
        raise InputError(f"recipe: {name} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise InputError(f"recipe: {name}: expected a mapping of settings, got {type(settings).__name__}")
    return settings


def make_recipe(settings: Mapping[str, Any]) -> Recipe:
    """Make a Recipe from nested settings; missing ones get their defaults."""
    recipe: Recipe = _replace(Recipe(), settings)
    return recipe


def _replace(defaults: Any, settings: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a copy of a settings dataclass with other values, of which names and types are checked."""
    hints, values = get_type_hints(type(defaults)), {}
    for name, value in settings.items():
        dotted = f"{prefix}{name}"
        if name not in hints:
            raise InputError(
                f"recipe: unknown setting {dotted}{did_you_mean(dotted, _names(dataclasses.asdict(Recipe())))}"
            )
        if not dataclasses.is_dataclass(hints[name]):
            values[name] = check_value(f"recipe: {dotted}", hints[name], value)
        elif isinstance(value, Mapping):
            values[name] = _replace(getattr(defaults, name), value, f"{dotted}.")
        else:
            raise InputError(f"recipe: {dotted}: expected a mapping of settings, got {value!r}")
    try:
        return dataclasses.replace(defaults, **values)
    except InputError as error:
        # ViewSettings does not contain the name of the view
        raise InputError(f"{prefix}{error}" if isinstance(defaults, ViewSettings) else str(error)) from error


def _names(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all settings and of their components."""
    inner = [n for name, value in settings.items() if isinstance(value, Mapping) for n in _names(value, f"{name}.")]
    return [prefix + name for name in settings] + inner
