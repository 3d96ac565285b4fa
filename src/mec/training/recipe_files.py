"""Recipes as YAML: packaged ones by name, one's own by path, checked against the dataclasses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mec.errors import InputError
from mec.training.recipe import Recipe


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(Path(f.name).stem for f in files("mec").joinpath("recipes").iterdir() if f.name.endswith(".yaml"))


def read_recipe(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a packaged recipe or a YAML file, as they stand there."""
    name = str(source)
    if name in packaged_recipes():
        text = files("mec").joinpath("recipes", f"{name}.yaml").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise InputError(f"recipe: {name!r} is neither a YAML file nor one of {', '.join(packaged_recipes())}")
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"recipe: {name} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise InputError(f"recipe: {name} holds {type(settings).__name__}, expected settings by name")
    return settings


def make_recipe(settings: Mapping[str, Any]) -> Recipe:
    """A Recipe from nested settings; what is absent keeps its default."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, "recipe")
    try:
        recipe = parser.instantiate_classes(parser.parse_object({"recipe": dict(settings)})).recipe
    except (ArgumentError, TypeError) as error:
        raise InputError(f"recipe: {' '.join(str(error).split())}") from error
    assert isinstance(recipe, Recipe)
    return recipe


def load_recipe(source: str | os.PathLike[str]) -> Recipe:
    """A packaged recipe by name (digits, cifar10-resnet18, small, imagenet-resnet50), or one's own by path."""
    return make_recipe(read_recipe(source))


def differences(a: Recipe, b: Recipe) -> list[str]:
    """Settings in which two recipes differ, as ``name: a -> b``."""

    def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in tree.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        return found

    left, right = flat(a.as_dict()), flat(b.as_dict())
    names = sorted(left.keys() | right.keys())
    return [f"{n}: {left.get(n)} -> {right.get(n)}" for n in names if left.get(n) != right.get(n)]
