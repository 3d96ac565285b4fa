"""Recipes as YAML: packaged ones by name, one's own by path, checked against the dataclasses."""

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
from mec.option_errors import wrong_value
from mec.pretraining.recipe import Recipe


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(Path(f.name).stem for f in files("mec").joinpath("recipes").iterdir() if f.name.endswith(".yaml"))


def read_recipe(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a packaged recipe or a YAML file, as they stand there."""
    name, path = str(source), Path(source).expanduser()
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
        raise InputError(f"recipe: {name} holds {type(settings).__name__}, expected settings by name")
    return settings


def make_recipe(settings: Mapping[str, Any]) -> Recipe:
    """A Recipe from nested settings; what is absent keeps its default."""
    _check_names(settings, Recipe().as_dict())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, "recipe")
    try:
        parsed = parser.parse_object({"recipe": dict(settings)})
        for view in ("view_1", "view_2"):
            _check_view(view, parsed.recipe[view].as_dict())
        recipe = parser.instantiate(parsed).recipe
    except (ArgumentError, TypeError) as error:
        key, wrong = wrong_value(str(error), parser) or ("", " ".join(str(error).split()))
        raise InputError(f"recipe: {key.removeprefix('recipe.')}{': ' if key else ''}{wrong}") from error
    assert isinstance(recipe, Recipe)
    return recipe


def _check_view(name: str, settings: Mapping[str, Any]) -> None:
    """A view does not know which of the two it is."""
    try:
        ViewSettings(**settings)
    except InputError as error:
        raise InputError(f"{name}.{error}") from error


def _check_names(settings: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> None:
    """Only backbone_options, empty by default, may have settings of any name."""
    for name, value in settings.items():
        full = f"{prefix}{name}"
        if name not in known:
            raise InputError(f"recipe: no setting is called {full}{did_you_mean(full, _names(Recipe().as_dict()))}")
        if isinstance(known[name], dict) and not isinstance(value, Mapping):
            raise InputError(f"recipe: {full}: expected settings by name, got {value!r}")
        if known[name] and isinstance(known[name], dict):
            _check_names(value, known[name], f"{full}.")


def _names(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Those of single settings and those of components, with dots."""
    inner = [n for name, value in settings.items() if isinstance(value, Mapping) for n in _names(value, f"{name}.")]
    return [prefix + name for name in settings] + inner


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
