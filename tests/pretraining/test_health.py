"""The checks of health. That run and report give the same advice: tests/report/test_health.py."""

import math
from dataclasses import replace
from typing import Any

import pytest

from mec.pretraining import ObjectiveSettings, OptimizerSettings, Recipe
from mec.pretraining.health import PATIENCE, HealthMonitor

SERIES = Recipe(objective=ObjectiveSettings("cross", 1 / 32, 4))
CONSTANT = Recipe(objective=ObjectiveSettings(distortion=1 / 32))


def verdicts(recipe: Recipe | None = None, warmup: int = 0, **columns: list[float]) -> dict[str, str]:
    """Verdicts on columns of the same length; the learning rate rises for ``warmup`` rows, then it is constant."""
    monitor = HealthMonitor((recipe or Recipe()).setting)
    for step in range(len(next(iter(columns.values())))):
        monitor.add({"step": step, "lr": min(step, warmup), **{name: values[step] for name, values in columns.items()}})
    return monitor.verdicts


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([30] * 9, {}),
        ([1.2] * 9, {"collapse": "effective rank 1.2 at step 2"}),
        ([40] * 4 + [5] * 5, {"falling rank": "fell from 40.0 to 5.0 by step 6"}),
        ([40] * 4 + [5] * 3 + [1] * 3, {"falling rank": "from 40.0 to 5.0", "collapse": "rank 1.0 at step 9"}),
        ([30, 1.1, 1.1] * 3, {}),
        ([30] * 4 + [math.nan] * 5, {}),
    ],
)
def test_trouble_that_lasts_is_reported_where_it_began(ranks: list[float], expected: dict[str, str]) -> None:
    found = verdicts(CONSTANT, effective_rank=ranks)
    assert found.keys() == expected.keys()
    assert all(text in found[kind] for kind, text in expected.items())
    assert PATIENCE == 3
    # where the distortion rises, the rank is to fall
    sweeps = verdicts(Recipe(objective=ObjectiveSettings(distortion=(0.01, 1))), effective_rank=ranks)
    assert sweeps == {kind: text for kind, text in found.items() if kind != "falling rank"}


def objective(*settings: Any, **others: Any) -> Recipe:
    return replace(Recipe(objective=ObjectiveSettings(*settings)), **others)


def test_the_radius_of_convergence_matters_only_with_a_series() -> None:
    assert verdicts(spectral_norm=[5] * 9) == verdicts(SERIES, spectral_norm=[1.9] * 9) == {}
    assert verdicts(objective("cross", 1 / 32, None), spectral_norm=[5] * 9) == {}
    expected = (
        "objective.form to reduction and objective.order to null or raise objective.distortion from 0.03125 to about "
        "0.16."
    )
    assert verdicts(SERIES, spectral_norm=[5] * 9)["radius"].endswith(f"Set {expected}")
    pooled = verdicts(objective("pooled", 0.1, 4), spectral_norm=[3] * 9)["radius"]
    assert pooled.endswith("Set objective.order to null or raise objective.distortion from 0.1 to about 0.3.")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (("pooled", 0.002), "Raise objective.distortion from 0.002 toward 0.03125 (1/32) or lower optimizer.lr from"),
        (("pooled", 1 / 32), "Lower optimizer.lr from 0.001 to about 0.00033."),
        (("pooled", 1.0), "Lower objective.distortion from 1 toward 0.03125 (1/32) or lower optimizer.lr"),
        (("cross", 0.002, 4), "Raise objective.distortion from 0.002 toward 0.03125 (1/32) or"),
        # lowered alone, the distortion would leave the radius of convergence
        (("cross", 0.25, 4), "Set objective.form to reduction and objective.order to null, and lower"),
        (("cross", 0.25, 1), "Set objective.form to reduction and objective.order to null (order 1 is the mean cosine"),
        (("pooled", 0.25, 3), "Set objective.order to null (order 3 favors equal codes) or lower optimizer.lr"),
    ],
)
def test_advice_on_the_rank_depends_on_the_objective(settings: tuple[Any, ...], advice: str) -> None:
    verdict = verdicts(objective(*settings), effective_rank=[40] * 4 + [5] * 5)["falling rank"]
    assert verdict.partition("fewer dimensions. ")[2].startswith(advice)


def test_advice_names_only_settings_that_can_be_changed() -> None:
    def advice(column: str, values: list[float], kind: str, recipe: Recipe) -> str:
        return verdicts(recipe, **{column: values})[kind]

    small, large = objective(batch_size=64, workers=2), objective(batch_size=1024)
    assert "raise batch_size from 64 to 256." in advice("effective_rank", [1.0] * 9, "collapse", small)
    assert "batch_size" not in advice("effective_rank", [1.0] * 9, "collapse", large)
    assert "Raise workers from 2 (null: one per core), use more" in advice(
        "data_wait_fraction", [1.0] * 9, "data wait", small
    )
    assert "workers" not in advice("data_wait_fraction", [1.0] * 9, "data wait", large)
    # the warm-up is at most a quarter of the run
    short = objective(epochs=40, optimizer=OptimizerSettings(warmup_epochs=10))
    assert "warmup_epochs" not in advice("skipped_steps", [1.0] * 9, "skipped steps", short)
    longer = advice("skipped_steps", [1.0] * 9, "skipped steps", replace(short, epochs=60))
    assert longer.endswith(
        "Lower optimizer.lr from 0.001 to about 0.00033 or lengthen optimizer.warmup_epochs from 10 to 15."
    )
    assert "order" not in longer
    assert "or set objective.form to reduction." in advice(
        "skipped_steps", [1.0] * 9, "skipped steps", objective("cross")
    )


def test_settings_of_a_damaged_recipe_leave_the_advice_general() -> None:
    for value in (None, "many", True, -1, [1]):
        monitor = HealthMonitor(lambda name, value=value: value)  # type: ignore[misc]
        for step in range(9):
            monitor.add({"step": step, "lr": 1, "effective_rank": 1, "skipped_steps": 1, "data_wait_fraction": 1})
        assert monitor.verdicts.keys() == {"collapse", "skipped steps", "data wait"}
        assert "lower optimizer.lr" in monitor.verdicts["collapse"].lower()


def test_only_skipped_steps_and_waiting_are_judged_in_the_warmup() -> None:
    found = verdicts(
        warmup=9, effective_rank=[1.0] * 9, skipped_steps=[0, *[1] * 7, 2], data_wait_fraction=[0.1, *[0.3] * 8]
    )
    assert found.keys() == {"skipped steps", "data wait"}
    assert found["skipped steps"].startswith("Skipped steps so far: 2,")
    assert found["data wait"].startswith("28% of the time")  # (0.1 + 8 * 0.3) / 9
    assert verdicts(warmup=6, effective_rank=[1.0] * 8) == {}  # two rows from the highest learning rate on
    assert verdicts(warmup=6, effective_rank=[1.0] * 9).keys() == {"collapse"}
    assert verdicts(warmup=6, effective_rank=[90.0] * 6 + [9.0] * 9) == {}  # the best rank is that since the warm-up


def test_a_slow_start_of_loading_is_forgiven() -> None:
    assert verdicts(data_wait_fraction=[0.9] * 2) == {}
    assert verdicts(data_wait_fraction=[0.9] * 3).keys() == {"data wait"}
    assert verdicts(data_wait_fraction=[0.9] * 3 + [0.0] * 12) == {}
