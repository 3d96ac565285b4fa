"""Health messages of the report, and the warnings of the run itself for the same measurements."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mec.pretraining import ObjectiveSettings, Recipe
from mec.pretraining.health import HealthWarnings
from mec.pretraining.module import Pretraining
from mec.report.record import check_health, read_records
from tests.report.runs import metrics_row, write_metrics, write_run

RECIPE = Recipe(objective=ObjectiveSettings("cross", 1 / 32, 4))
SERIES = RECIPE.as_dict()


def health(folder: Path) -> list[tuple[str, str]]:
    return [(message.level, message.text) for message in check_health(read_records([folder])[0])]


def test_a_healthy_run_has_no_warnings(tmp_path: Path) -> None:
    ((level, text),) = health(write_run(tmp_path / "run"))
    assert level == "ok"
    # the warm-up ends at step 10: means of ranks 11.0 to 11.2, and 13.7 to 13.9; of losses 1/11 to 1/13, 1/38 to 1/40
    assert "effective rank of the codes went from 11.1 to 13.8 and the loss from 0.084 to 0.026" in text


@pytest.mark.parametrize(
    ("steps", "finished", "expected"),
    [(9, False, "still warming up"), (13, False, "just peaked"), (13, True, "warm-up: 3"), (16, False, "went")],
)
def test_few_measurements_are_no_trend(tmp_path: Path, steps: int, finished: bool, expected: str) -> None:
    ((level, text),) = health(write_run(tmp_path / "run", num_steps=steps, finished=finished))
    assert level == "ok"
    assert expected in text


@pytest.mark.parametrize(
    ("changes", "expected_text"),
    [
        ({"effective_rank": 1.3}, "codes have collapsed: effective rank 1.3 at step 32"),
        ({"effective_rank": 2.0}, "fell from 12.9 to 2.0 by step 32"),
        ({"skipped_steps": 4}, "Skipped steps so far: 4"),
        ({"spectral_norm": 5.0}, "outside its radius of convergence at step 32 (spectral norm 5.0"),
    ],
)
def test_run_and_report_need_three_failures_in_a_row_and_give_the_same_advice(
    tmp_path: Path, changes: dict[str, float], expected_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", **SERIES)
    for last, expected in ((31, "skipped_steps" in changes), (32, True)):
        rows = [metrics_row(step, **(changes if step >= 30 else {})) for step in range(last + 1)]
        write_metrics(folder, rows)
        train(folder, rows)
        warnings = [text for level, text in health(folder) if level == "warning"]
        assert [expected_text in text for text in warnings] == [True] * expected
        assert capsys.readouterr().err == "".join(f"warning: {text}\n" for text in warnings)


def train(folder: Path, rows: list[dict[str, Any]], first: int = 0) -> None:
    """Call the warnings of a run from row ``first`` on."""
    warnings = HealthWarnings(folder)
    module = Pretraining.__new__(Pretraining)
    module.__dict__ |= {"recipe": RECIPE}
    warnings.on_train_start(SimpleNamespace(global_step=first - 1, is_global_zero=True), module)
    for row in rows[first:]:
        measured = ("effective_rank", "spectral_norm", "skipped_steps", "lr")
        module.__dict__["step_metrics"] = {name: row[name] for name in measured}
        trainer = SimpleNamespace(global_step=row["step"], is_global_zero=True)
        warnings.on_train_batch_end(trainer, module, None, None, row["step"])


def test_a_resumed_run_compares_with_the_measurements_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", **SERIES)
    rows = [metrics_row(step, effective_rank=40 if step < 20 else 5, skipped_steps=1) for step in range(30)]
    write_metrics(folder, rows)  # those from step 21 on belong to the steps that are repeated
    train(folder, rows, first=21)
    (line,) = capsys.readouterr().err.splitlines()  # the skipped step was warned of before
    assert "fell from 40.0 to 5.0 by step 22" in line


def test_no_warning_of_the_radius_during_warm_up_or_without_a_series(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", objective={"form": "cross", "order": None})
    write_metrics(folder, [metrics_row(step, spectral_norm=9.0) for step in range(40)])
    assert [level for level, _ in health(folder)] == ["ok"]
    folder = write_run(tmp_path / "warm-up", **SERIES)
    write_metrics(folder, [metrics_row(step, spectral_norm=9.0 if step < 10 else 0.5) for step in range(40)])
    assert [level for level, _ in health(folder)] == ["ok"]


def test_waiting_for_data_is_a_warning_above_20_percent(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for fraction, expected in ((0.19, "ok"), (0.35, "warning")):
        write_metrics(folder, [metrics_row(step, data_wait_fraction=fraction) for step in range(40)])
        ((level, text),) = health(folder)
        assert level == expected
        assert text.startswith("35% of the time") == (level == "warning")


def test_before_the_first_step_there_is_a_note(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", finished=False)
    write_metrics(folder, [])
    assert health(folder) == [("note", "No step has been written to metrics.csv yet.")]
