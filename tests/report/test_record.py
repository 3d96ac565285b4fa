"""Run folders are read even if files are incomplete or damaged."""

import json
from pathlib import Path

import numpy as np
import pytest

from mec.errors import InputError
from mec.report.record import read_records
from tests.report.runs import KNN_ROWS, make_result, metrics_row, write_metrics, write_run


def test_a_complete_run_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "pets", optimizer={"lr": 0.1})
    (folder / "corrupt.csv").write_text("path,reason\na.jpg,truncated\nb.jpg,empty\n")
    (record,) = read_records([folder])
    assert (record.name, record.finished, record.notes, record.num_corrupt) == ("pets", True, [], 2)
    assert record.recipe["optimizer.lr"] == 0.1
    assert record.recipe["objective.order"] is None
    assert record.steps_per_epoch == 10  # 645 images, batch size 64
    assert record.metrics["step"].tolist() == list(range(40))
    assert np.isnan(record.metrics["rankme"]).all()
    assert record.probes["knn_top1"].tolist() == [0.5, 0.7]
    assert record.results == [make_result()]


@pytest.mark.parametrize("incomplete", ["41,4,0.1", "41,4,0.1,5,,,,,,,,,,2", "\0\0\0", '"41'])
def test_an_incomplete_row_is_skipped(tmp_path: Path, incomplete: str) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.csv").open("a") as file:
        file.write(incomplete)
    (record,) = read_records([folder])
    assert record.metrics["step"].tolist() == list(range(40))
    with (folder / "metrics.csv").open("a") as file:
        file.write("\n42,4\n")
    assert read_records([folder])[0].metrics["step"][-1] in (39, 41)
    (note,) = read_records([folder])[0].notes
    assert note.startswith("metrics.csv: skipped ")


def test_invalid_lines_of_results_are_skipped_and_noted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    text_value = make_result().as_dict()
    text_value["rows"]["encoder"][0]["value"] = "high"
    invalid = ["[]", "null", '{"task": "knn"}', json.dumps(text_value), "\xff", '{"ta']
    results = make_result("linear"), make_result("few-shot", KNN_ROWS)
    lines = [json.dumps(results[0].as_dict()), *invalid, "", json.dumps(results[1].as_dict())]
    (folder / "results.jsonl").write_text("\n".join(lines))
    (record,) = read_records([folder])
    assert record.results == list(results)
    assert record.notes == ["results.jsonl: skipped 6 damaged lines (2, 3, 4, 5, 6, 7)."]


def test_a_recipe_or_results_are_enough(tmp_path: Path) -> None:
    for name, text in (("recipe.yaml", "epochs: 3\n"), ("results.jsonl", json.dumps(make_result().as_dict()) + "\n")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(text)
        (record,) = read_records([folder])
        assert (bool(record.recipe), len(record.results)) == (name == "recipe.yaml", int(name == "results.jsonl"))
        assert record.metrics == record.probes == {}
        assert record.steps_per_epoch is None


@pytest.mark.parametrize("content", ["", "- 1\n- 2", "a: [", "\x00\x01"])
def test_a_damaged_recipe_is_noted(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "recipe.yaml").write_text(content)
    (folder / "environment.json").write_text("{")
    (record,) = read_records([folder])
    assert record.recipe == record.environment == {}
    assert "environment.json cannot be read." in record.notes
    assert ("recipe.yaml cannot be read." in record.notes) == bool(content)


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"runs: .* contains no run \(no recipe.yaml\)"):
        read_records([tmp_path])
    with pytest.raises(InputError, match="runs: expected at least one"):
        read_records([])


@pytest.mark.parametrize("damaged", ["7,0,abc" + "," * 11, "x" + "," * 13, "1,2", "nan" + "," * 13, ""])
def test_damaged_lines_of_metrics_are_counted_and_named(tmp_path: Path, damaged: str) -> None:
    folder = write_run(tmp_path / "run")
    lines = (folder / "metrics.csv").read_text().splitlines()
    lines.insert(5, damaged)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "probes.csv").write_text("epoch,knn\n1,0.5\n")
    (record,) = read_records([folder])
    assert record.metrics["step"].tolist() == list(range(40))
    assert record.notes == [
        "metrics.csv: skipped 1 damaged line (6).",
        "probes.csv is not shown: it has no column named step.",
    ]


def test_folders_without_a_run_are_passed_over_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in ``mec report runs/*``, but a path that does not exist is an error."""
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    records = read_records([tmp_path / "empty", run, tmp_path / "notes.txt"])
    assert [record.name for record in records] == ["run"]
    err = capsys.readouterr().err
    assert "passed over 2 of 3 that contain no run" in err
    assert f"{tmp_path / 'empty'}, {tmp_path / 'notes.txt'}" in err
    with pytest.raises(InputError, match=r"runs: .*nowhere does not exist"):
        read_records([run, tmp_path / "nowhere"])


@pytest.mark.parametrize("first", [0, 1])
def test_steps_are_counted_from_0_or_from_1(tmp_path: Path, first: int) -> None:
    """25 steps, of which every tenth has a row."""
    folder = write_run(tmp_path / "run", finished=False)
    write_metrics(folder, [metrics_row(step, seconds=20 + step) for step in (first, first + 10, first + 20)])
    (record,) = read_records([folder])
    assert record.steps == record.steps_logged == 21


def test_names_are_unique_and_duplicate_folders_dropped(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")]
    records = read_records([*folders, tmp_path / "a" / ".." / "a" / "run"])
    assert [r.name for r in records] == ["a/run", "b/run"]
