"""What a run folder says is read as far as it can be."""

import json
from pathlib import Path

import numpy as np
import pytest

from mec.errors import InputError
from mec.report.health import verdicts
from mec.report.record import read_records
from tests.report.folders import metric, result, write_metrics, write_run


def test_a_whole_run(tmp_path: Path) -> None:
    (record,) = read_records([write_run(tmp_path / "pets", optimizer={"lr": 0.1})])
    assert (record.name, record.ended, record.notes, record.skipped) == ("pets", True, [], 0)
    assert record.recipe["optimizer.lr"] == 0.1
    assert record.recipe["objective.order"] is None
    assert record.steps_per_epoch == 10  # 645 images, 64 in a step
    assert record.metrics["step"].tolist() == list(range(40))
    assert np.isnan(record.metrics["rankme"]).all()
    assert record.probes["kNN"].tolist() == [0.5, 0.7]
    assert [r["task"] for r in record.results] == ["knn"]


@pytest.mark.parametrize("torn", ["41,4,0.1", "41,4,0.1,5,,,,,,,,,,2", "\0\0\0", '"41'])
def test_a_row_that_is_being_written_is_left_out(tmp_path: Path, torn: str) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.csv").open("a") as file:
        file.write(torn)
    (record,) = read_records([folder])
    assert record.metrics["step"].tolist() == list(range(40))
    with (folder / "metrics.csv").open("a") as file:
        file.write("\n42,4\n")
    assert read_records([folder])[0].metrics["step"][-1] in (39, 41)


def test_lines_that_are_no_results_are_counted_and_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    foreign = ["[]", "null", '{"task": "knn"}', json.dumps(result(figures={"encoder": {"k": "high"}})), "\xff", '{"ta']
    lines = [json.dumps(result("linear")), *foreign, "", json.dumps(result("few-label"))]
    (folder / "results.jsonl").write_text("\n".join(lines))
    (record,) = read_records([folder])
    assert [r["task"] for r in record.results] == ["linear", "few-label"]
    assert record.notes == ["results.jsonl: 6 lines are not a result and left out (line 2, 3, 4, 5, 6, 7)."]


def test_only_a_recipe_or_only_results_are_enough(tmp_path: Path) -> None:
    for name, text in (("recipe.yaml", "epochs: 3\n"), ("results.jsonl", json.dumps(result()) + "\n")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(text)
        (record,) = read_records([folder])
        assert (bool(record.recipe), len(record.results)) == (name == "recipe.yaml", int(name == "results.jsonl"))
        assert record.metrics == record.probes == {}
        assert record.steps_per_epoch is None
        assert record.written is None


@pytest.mark.parametrize("content", ["", "- 1\n- 2", "a: [", "\x00\x01"])
def test_a_damaged_recipe_is_told(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "recipe.yaml").write_text(content)
    (folder / "environment.json").write_text("{")
    (record,) = read_records([folder])
    assert record.recipe == record.environment == {}
    assert "environment.json cannot be read." in record.notes
    assert ("recipe.yaml cannot be read." in record.notes) == bool(content)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"runs: .* holds no run \(no recipe.yaml\)"):
        read_records([tmp_path])
    with pytest.raises(InputError, match="runs: expected at least one"):
        read_records([])


def test_runs_of_one_name_are_told_apart_and_none_comes_twice(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")]
    records = read_records([*folders, tmp_path / "a" / ".." / "a" / "run"])
    assert [r.name for r in records] == ["a/run", "b/run"]


def told(folder: Path) -> list[tuple[str, str]]:
    return [(v.kind, v.text) for v in verdicts(read_records([folder])[0])]


def test_all_is_well(tmp_path: Path) -> None:
    ((kind, text),) = told(write_run(tmp_path / "run"))
    assert kind == "good"
    assert "effective rank went from 11.1 to 13.9" in text  # of step 11, the first after the warm-up, and of the last


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"effective_rank": 1.3}, "collapsed at step 32: effective rank 1.3"),
        ({"effective_rank": 2.0}, "fell from 12.9 to 2.0 by step 32"),
        ({"skipped": 4}, "4 steps were left out"),
        ({"spectral_norm": 5.0}, "left its radius of convergence at step 32 (norm 5.0"),
    ],
)
def test_trouble_is_told_from_its_third_measurement_on(tmp_path: Path, trouble: dict[str, float], words: str) -> None:
    folder = write_run(tmp_path / "run", objective={"form": "cross", "order": 4})
    for last, expected in ((32, True), (31, "skipped" in trouble)):
        rows = [metric(step, **(trouble if step >= 30 else {})) for step in range(last + 1)]
        write_metrics(folder, rows)
        assert any(kind == "warning" and words in text for kind, text in told(folder)) == expected


def test_what_the_warm_up_and_other_forms_may_do(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", objective={"form": "cross", "order": None})
    write_metrics(folder, [metric(step, spectral_norm=9.0) for step in range(40)])
    assert [kind for kind, _ in told(folder)] == ["good"]
    folder = write_run(tmp_path / "young", objective={"form": "cross", "order": 4})
    write_metrics(folder, [metric(step, spectral_norm=9.0 if step < 9 else 0.5) for step in range(40)])
    assert [kind for kind, _ in told(folder)] == ["good"]


def test_waiting_for_data(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for share, expected in ((0.19, "good"), (0.35, "warning")):
        write_metrics(folder, [metric(step, data_wait=share) for step in range(40)])
        ((kind, text),) = told(folder)
        assert kind == expected
        assert text.startswith("35% of the time") == (kind == "warning")


def test_before_the_first_step(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ended=False)
    write_metrics(folder, [])
    assert told(folder) == [("note", "No step has been written to metrics.csv yet.")]
