"""The checks of health. That run and report give the same advice: tests/report/test_health.py."""

import math

import pytest

from mec.pretraining.health import PATIENCE, HealthMonitor


def verdicts(has_series: bool = False, warmup: int = 0, **columns: list[float]) -> dict[str, str]:
    """Verdicts on columns of the same length; the learning rate rises for ``warmup`` rows, then it is constant."""
    monitor = HealthMonitor(has_series)
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
    found = verdicts(effective_rank=ranks)
    assert found.keys() == expected.keys()
    assert all(text in found[kind] for kind, text in expected.items())
    assert PATIENCE == 3


def test_the_radius_of_convergence_matters_only_with_a_series() -> None:
    assert verdicts(spectral_norm=[5] * 9) == verdicts(True, spectral_norm=[1.9] * 9) == {}
    assert "by a factor of about 5" in verdicts(True, spectral_norm=[5] * 9)["radius"]


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
