"""Heads, targets and views of an objective, all built-in ones by name, and those that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

import mec
from mec.errors import InputError
from mec.objectives import MEC, OBJECTIVES
from mec.pretraining import ObjectiveSettings, Run, TeacherSettings
from tests.pretraining.own_objectives import (
    RECIPE,
    Codes,
    VICReg,
    cosine,
    of_all_views,
    recorded_run,
    simclr,
    single_line,
    with_attributes,
)

# Targets and views


TEACHER = TeacherSettings(True, 0.9, 8)
NETWORKS: dict[str, tuple[Any, TeacherSettings, tuple[bool, bool, bool]]] = {
    # objective, teacher settings, whether the network has a predictor, a teacher and a last BatchNorm
    "of a user, teacher": (cosine, TEACHER, (True, True, True)),
    "of a user, no predictor": (
        with_attributes(cosine, targets="teacher", predictor=False),
        TEACHER,
        (False, True, True),
    ),
    "of a user, student": (with_attributes(cosine, targets="student"), RECIPE.teacher, (True, False, True)),
    "of a user, no BatchNorm": (with_attributes(simclr, batch_norm=False), RECIPE.teacher, (False, False, False)),
    "simsiam": ("simsiam", RECIPE.teacher, (True, False, True)),
    "byol": ("byol", RECIPE.teacher, (True, True, False)),
    "simdino": ("simdino", RECIPE.teacher, (False, True, False)),
    "vicreg": ("vicreg", RECIPE.teacher, (False, False, False)),
    "mec": ("mec", RECIPE.teacher, (False, False, True)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_objective_determines_the_heads_and_targets(name: str, tmp_path: Path) -> None:
    objective, teacher, expected = NETWORKS[name]
    recipe = replace(RECIPE, epochs=1, teacher=teacher)
    if isinstance(objective, str):
        recipe, objective = replace(recipe, objective=ObjectiveSettings(name=objective)), None
    run = recorded_run(tmp_path, recipe, objective=objective)
    network = run.module.network
    has_batch_norm = isinstance(network.projector[-1], nn.BatchNorm1d)
    assert (network.predictor is not None, network.teacher is not None, has_batch_norm) == expected
    assert Run(tmp_path).recipe().teacher.enabled == expected[1]
    assert np.isfinite(run.losses).all()
    assert np.ptp(run.losses) > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_built_in_objectives_train_by_name(name: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, subsample=20, epochs=1, objective=ObjectiveSettings(name=name))
    rows = mec.pretrain("digits", tmp_path, recipe).metrics()
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert ("coding_length" in rows[0]) == (name == "mec")


AUGMENT = v2.Compose([v2.RandomResizedCrop(16, (0.5, 1.0)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def four_views(image: Any) -> list[Tensor]:
    return [AUGMENT(image) for _ in range(4)]


@pytest.mark.parametrize("objective", [of_all_views, None])
def test_objectives_are_given_four_views(objective: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, objective=ObjectiveSettings(name="simclr"))
    run = recorded_run(tmp_path, recipe, objective=objective, view_transform=four_views)
    assert run.module.views.num_views == 4
    assert np.isfinite(run.losses).all()


# Errors


def raises(codes: Codes) -> Tensor:
    raise RuntimeError("two\nlines")


class Copied:
    """An objective that cannot be copied."""

    def __call__(self, codes: Codes) -> Tensor:
        return simclr(codes)

    def __deepcopy__(self, memo: Any) -> Copied:
        raise TypeError("holds a lock")


REFUSED = {
    "not callable": (7, r"expected a callable .*got 7"),
    "a name": ("simclr", r"got 'simclr'; the setting objective.name"),
    "a class": (VICReg, r"expected a callable .*got the class .*VICReg; create an object of it"),
    "a vector": (lambda codes: codes[0].sum(1), r"expected a scalar tensor, got a tensor of shape \(32,\)"),
    "None": (lambda codes: None, r"expected a scalar tensor, got NoneType"),
    "an error": (raises, r"raises: failed for codes of 2 views: two lines"),
    "no gradient": (lambda codes: codes[0].detach().sum(), r"gradient"),
    "no gradient in the codes": (lambda codes: torch.ones((), requires_grad=True) + 0, r"gradient"),
    "not finite": (lambda codes: simclr(codes) / 0, r"finite"),
    "infinite gradient": (lambda codes: (codes[0] * 0).sum().sqrt(), r"finite"),
    "needs targets": (cosine, r"'targets'; for targets, set teacher.enabled"),
    "unknown targets": (with_attributes(cosine, targets="techer"), r"targets: expected .*'teacher', got 'techer'"),
    "cannot be copied": (Copied(), r"cannot be copied: holds a lock"),
    "health, no numbers": (with_attributes(simclr, health=lambda codes: {"a": "b"}), r"health: expected numbers"),
    "health, vectors": (with_attributes(simclr, health=lambda codes: {"a": codes[0]}), r"health: expected numbers"),
    "health, no mapping": (with_attributes(simclr, health=lambda codes: 3), r"health: expected a mapping"),
    "health, other column": (with_attributes(simclr, health=lambda codes: {"lr": 3}), r"health: .*'lr'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_objective_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    objective, message = REFUSED[name]
    with pytest.raises(InputError, match=rf"^objective: .*{message}") as error:
        mec.pretrain("digits", tmp_path / "run", RECIPE, objective=objective)
    single_line(error)
    assert not (tmp_path / "run").exists()


def test_metrics_that_change_during_the_run_are_refused(tmp_path: Path) -> None:
    calls: list[int] = []

    def health(codes: Codes) -> dict[str, float]:
        calls.append(1)
        return {"first": 0.0} if len(calls) < 3 else {}

    with pytest.raises(InputError, match=r"health: expected .*first at every step") as error:
        mec.pretrain("digits", tmp_path, RECIPE, objective=with_attributes(simclr, health=health))
    single_line(error)


def test_fsdp_does_not_shard_an_objective(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^strategy: expected ddp .*objective") as error:
        mec.pretrain("digits", tmp_path / "run", replace(RECIPE, strategy="fsdp"), objective=VICReg())
    single_line(error)
    assert not (tmp_path / "run").exists()


def test_an_objective_that_joins_processes_is_given_the_codes_of_its_process(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, replace(RECIPE, epochs=1), objective=MEC(0.25))
    assert isinstance(run.module.objective.function, MEC)
    expected = recorded_run(tmp_path / "named", replace(RECIPE, epochs=1, objective=ObjectiveSettings(distortion=0.25)))
    assert run.losses == expected.losses
