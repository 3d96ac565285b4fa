"""Pretraining: the recipe, the training step and the run."""

from mec.training.folder import Run
from mec.training.recipe import (
    ObjectiveSettings,
    OptimiserSettings,
    ProjectorSettings,
    Recipe,
    SpeedSettings,
    TeacherSettings,
)
from mec.training.recipe_files import load_recipe, packaged_recipes
from mec.training.run import pretrain
from mec.training.sheet import view_sheet

__all__ = [
    "ObjectiveSettings",
    "OptimiserSettings",
    "ProjectorSettings",
    "Recipe",
    "Run",
    "SpeedSettings",
    "TeacherSettings",
    "load_recipe",
    "packaged_recipes",
    "pretrain",
    "view_sheet",
]
