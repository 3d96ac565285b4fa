"""Pretraining: the recipe, the training step and the run."""

from mec.pretraining.run_folder import Run
from mec.pretraining.recipe import (
    ObjectiveSettings,
    OptimiserSettings,
    ProjectorSettings,
    Recipe,
    SpeedSettings,
    TeacherSettings,
)
from mec.pretraining.recipe_files import load_recipe, packaged_recipes
from mec.pretraining.pretrain import pretrain
from mec.pretraining.contact_sheet import view_sheet

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
