"""Read recipes from YAML, packaged ones by name and others by path, and check them against the dataclasses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mec.data.transforms.view_settings import ViewSettings
from mec.errors import InputError, did_you_mean
from mec.option_errors import invalid_value
from mec.pretraining.recipe import Recipe


def packaged_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(Path(f.name).stem for f in files("mec").joinpath("recipes").iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """Load a packaged recipe by name (digits, cifar10-resnet18, small, imagenet-resnet50), or a YAML file by path.

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
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"recipe: {name} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise InputError(f"recipe: {name}: expected a mapping of settings, got {type(settings).__name__}")
    return settings


def make_recipe(settings: Mapping[str, Any]) -> Recipe:
    """Make a Recipe from nested settings; missing ones get their defaults."""
    _check_names(settings, Recipe().as_dict())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, "recipe")
    try:
        parsed = parser.parse_object({"recipe": dict(settings)})
        for view in ("view_1", "view_2"):
            _check_view(view, parsed.recipe[view].as_dict())
        recipe = parser.instantiate(parsed).recipe
    except (ArgumentError, TypeError) as error:
        key, message = invalid_value(str(error), parser) or ("", " ".join(str(error).split()))
        raise InputError(f"recipe: {key.removeprefix('recipe.')}{': ' if key else ''}{message}") from error
    assert isinstance(recipe, Recipe)
    return recipe


def _check_view(name: str, settings: Mapping[str, Any]) -> None:
    """Put the name of the view in front of the error: ViewSettings does not contain it."""
    try:
        ViewSettings(**settings)
    except InputError as error:
        raise InputError(f"{name}.{error}") from error


def _check_names(settings: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse unknown settings, except in ``backbone_options``, which is empty by default and takes any name."""
    for name, value in settings.items():
        dotted = f"{prefix}{name}"
        if name not in known:
            raise InputError(f"recipe: unknown setting {dotted}{did_you_mean(dotted, _names(Recipe().as_dict()))}")
        if isinstance(known[name], dict) and not isinstance(value, Mapping):
            raise InputError(f"recipe: {dotted}: expected a mapping of settings, got {value!r}")
        if known[name] and isinstance(known[name], dict):
            _check_names(value, known[name], f"{dotted}.")


def _names(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all settings and of their components."""
    inner = [n for name, value in settings.items() if isinstance(value, Mapping) for n in _names(value, f"{name}.")]
    return [prefix + name for name in settings] + inner
