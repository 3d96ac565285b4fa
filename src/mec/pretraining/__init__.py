"""Pretraining: the recipe, the training step and the run."""

from mec.pretraining.contact_sheet import contact_sheet
from mec.pretraining.online_probe import OnlineProbe
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import load_recipe, packaged_recipes
from mec.pretraining.run import pretrain
from mec.pretraining.run_folder import Run
from mec.pretraining.settings import (
    ObjectiveSettings,
    OptimizerSettings,
    ProjectorSettings,
    SpeedSettings,
    TeacherSettings,
)

__all__ = [
    "ObjectiveSettings", "OnlineProbe", "OptimizerSettings", "ProjectorSettings", "Recipe", "Run", "SpeedSettings",
    "TeacherSettings", "contact_sheet", "load_recipe", "packaged_recipes", "pretrain",
]  # fmt: skip
