"""The verdict of a run, and the commands that the page prints."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from mec.cli.main import main, parse
from mec.pretraining.advice import PRETRAINED
from mec.report.ranking import rank
from mec.report.record import Record, read_records
from mec.report.verdict import Headline, headline, last_probes
from mec.results import DatasetSummary
from tests.report.runs import make_result, make_run, narrow_encoder, write_checkpoint, write_images, write_run

DATASET = DatasetSummary("pets", {"train": 400, "test": 100, "classes": 8})


def record_with(folder: Path, *results: Any, **settings: Any) -> Record:
    write_run(folder, **settings)
    (folder / "results.jsonl").unlink()
    for result in results:
        result.append_to(folder)
    return read_records([folder])[0]


def verdict(folder: Path, rows: dict[str, dict[str, float]], **changes: Any) -> Headline:
    return headline(record_with(folder, make_result(rows=rows, **{"dataset": DATASET, **changes})))


@pytest.mark.parametrize(
    ("pixels", "untrained", "level", "title"),
    [
        (0.545, 0.40, "warning", "Not better than raw pixels"),  # 53.0 against 54.5, as a user had
        (0.20, 0.531, "warning", "Not better than the untrained encoder"),
        (0.70, 0.20, "warning", "Worse than raw pixels"),  # by more than two standard errors, 0.14
        (0.90, 0.60, "warning", "Worse than raw pixels and the untrained encoder"),
        (0.53, 0.20, "note", "Not clearly better than raw pixels"),  # equal
        (0.45, 0.20, "note", "Not clearly better than raw pixels"),  # the standard error is 0.07
        (0.35, 0.20, "ok", "Better than raw pixels and the untrained encoder"),
    ],
)
def test_the_verdict_compares_with_raw_pixels_and_the_untrained_encoder(
    tmp_path: Path, pixels: float, untrained: float, level: str, title: str
) -> None:
    rows = {"encoder": {"top-1": 0.53}, "raw pixels": {"top-1": pixels}, "untrained": {"top-1": untrained}}
    result = verdict(tmp_path / "run", rows)
    assert (result.level, result.title) == (level, title)
    assert result.text == (
        f"53.0 % with the trained encoder, against {100 * pixels:.1f} % with raw pixels and {100 * untrained:.1f} % "
        "with the untrained encoder (knn top-1, 100 test images of pets)."
    )
    assert [(bar.name, bar.text) for bar in result.bars[:2]] == [
        ("trained encoder", "53.0 %"), ("raw pixels", f"{100 * pixels:.1f} %"),
    ]  # fmt: skip
    advice = " ".join(result.details)
    assert ("Weights pretrained on ImageNet" in advice) == (level == "warning")


def test_any_metric_or_evaluation_below_a_baseline_is_a_warning(tmp_path: Path) -> None:
    good = {"encoder": {"top-1": 0.9, "top-5": 0.91}, "raw pixels": {"top-1": 0.2, "top-5": 0.95}}
    assert verdict(tmp_path / "a", good).level == "ok"  # top-5 alone does not count
    bad = {"encoder": {"k=10": 0.5, "k=20": 0.6}, "start weights": {"k=10": 0.4, "k=20": 0.7}}
    results = make_result("linear", good, dataset=DATASET), make_result("knn", bad, dataset=DATASET)
    for name, order in (("b", results), ("c", results[::-1])):
        result = headline(record_with(tmp_path / name, *order))
        assert (result.level, result.title) == ("warning", "Not better than start weights")
        assert "60.0 % with the trained encoder, against 70.0 % with start weights (knn k=20" in result.text
    two = make_result(rows=bad, dataset=DATASET), make_result("linear", bad, dataset=DATASET)
    assert "Also below: knn k=20: 60.0 %" in headline(record_with(tmp_path / "d", *two)).details[1]


def test_lower_is_better_for_some_metrics_of_tracking_which_are_not_compared(tmp_path: Path) -> None:
    rows = {"encoder": {"J&F": 0.5, "J decay": 0.1}, "untrained": {"J&F": 0.3, "J decay": 0.4}}
    result = verdict(tmp_path / "run", rows, dataset=DatasetSummary("davis", {"sequences": 2, "frames": 9}))
    assert (result.level, result.title) == ("ok", "Better than the untrained encoder")
    assert "(knn J&F, davis (2 sequences, 9 frames))" in result.text


def test_a_newer_result_replaces_an_older_one_and_other_encoders_do_not_count(tmp_path: Path) -> None:
    rows = {"encoder": {"k=20": 0.9}, "raw pixels": {"k=20": 0.5}}
    worse = {"encoder": {"k=20": 0.1}, "raw pixels": {"k=20": 0.5}}
    own = "encoder of somewhere/run"
    results = [make_result(rows=r, dataset=DATASET, encoder=e) for r, e in ((worse, own), (rows, own), (worse, "b"))]
    assert headline(record_with(tmp_path / "run", *results)).level == "ok"


@pytest.mark.parametrize("rows", [{"encoder": {"top-1": 0.9}}, {"encoder": {"top-1": 0.9}, "raw pixels": {"AP": 0.9}}])
def test_an_accuracy_without_a_baseline_is_no_good_news(tmp_path: Path, rows: dict[str, dict[str, float]]) -> None:
    result = verdict(tmp_path / "run", rows)
    assert (result.level, result.title) == ("note", "Not compared with raw pixels and the untrained encoder")


def test_rows_without_an_encoder_give_no_verdict(tmp_path: Path) -> None:
    result = verdict(tmp_path / "run", {"dcf": {"AUC": 0.9}, "xcorr": {"AUC": 0.8}})
    assert (result.level, result.bars) == ("note", [])
    assert "kNN 70.0 %, linear 80.0 %" in result.text  # the last probes


def test_last_probes_skip_values_that_are_missing(tmp_path: Path) -> None:
    record = record_with(tmp_path / "run")
    (record.folder / "probes.csv").write_text("epoch,step,knn_top1,linear_top1\n1,5,0.5,\n2,9,,0.25\n3,12,,\n")
    assert last_probes(read_records([record.folder])[0].probes) == {"knn_top1": 0.5, "linear_top1": 0.25}


@pytest.mark.parametrize("name", ["run", "lr 1e-3", "it's [1, 2] & $HOME", "a,b", "--seed"])
@pytest.mark.parametrize("kind", ["finished", "unfinished", "worse", "unlabeled", "sweep"])
def test_every_printed_command_is_accepted_by_the_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    data = tmp_path / "my images" / name
    data.mkdir(parents=True)
    folder = make_run(tmp_path / "runs" / name, data)
    classes = 0 if kind == "unlabeled" else 8
    environment = {"data": f"my images/{name}", "working_directory": str(tmp_path), "images": 400, "classes": classes}
    (folder / "environment.json").write_text(json.dumps(environment))
    if kind == "unfinished":
        (folder / "encoder.safetensors").unlink()
        write_checkpoint(folder, narrow_encoder(), 1200)
    if kind == "worse":
        make_result(rows={"encoder": {"k=20": 0.1}, "raw pixels": {"k=20": 0.5}}, dataset=DATASET).append_to(folder)
    monkeypatch.chdir(tmp_path / "my images")  # commands are valid in any folder
    (record,) = read_records([folder])
    commands = rank([record]).commands if kind == "sweep" else headline(record).commands
    assert len(commands) == (3 if kind == "worse" else 1)
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "mec"
        parse(arguments)
        assert str(data) in arguments
        assert ("--out" in arguments) == (kind in ("unfinished", "unlabeled") or arguments[0] in ("views", "pretrain"))
        encoder = arguments[arguments.index("--encoder") + 1] if "--encoder" in arguments else "hf:"
        assert encoder.startswith("hf:") or Path(encoder).exists()


def test_the_first_evaluation_runs_when_it_is_pasted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a run", write_images(tmp_path / "my data", classes=2, images_per_class=6))
    (command,) = headline(read_records([folder])[0]).commands
    assert main([*shlex.split(command)[1:], "--workers", "0"]) == 0
    assert headline(read_records([folder])[0]).bars


def test_without_data_or_weights_no_command_is_printed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "digits")
    assert headline(read_records([folder])[0]).commands == [f"mec evaluate knn digits --encoder {folder}"]
    (folder / "encoder.safetensors").unlink()
    assert headline(read_records([folder])[0]).commands == []
    (folder / "environment.json").unlink()
    assert headline(read_records([folder])[0]).commands == []


def test_no_command_is_printed_that_cannot_work_without_the_objects_of_the_run(tmp_path: Path) -> None:
    rows = {"encoder": {"top-1": 0.1}, "raw pixels": {"top-1": 0.9}}
    parts = {"encoder": "nets.Net()", "view_transform": "views.Crops()"}
    for name, settings in (("timm", {}), ("own", {"backbone": "module:nets.Net", "parts": parts})):
        worse = headline(record_with(tmp_path / name, make_result(rows=rows, dataset=DATASET), **settings))
        (tmp_path / name / "results.jsonl").unlink()
        unmeasured = headline(read_records([tmp_path / name])[0])
        expected = {"timm": [PRETRAINED, PRETRAINED, "views.png"], "own": [PRETRAINED, PRETRAINED]}[name]
        assert len(worse.commands) == len(expected)
        assert all(text in command for text, command in zip(expected, worse.commands, strict=True))
        assert len(unmeasured.commands) == (name == "timm")


def test_a_run_from_trained_weights_is_advised_to_keep_more_of_them(tmp_path: Path) -> None:
    record = record_with(tmp_path / "run", make_result(rows={"encoder": {"k=20": 0.1}, "start": {"k=20": 0.9}}))
    result = headline(record)
    assert result.title == "Worse than the encoder at the start"
    assert any("lower optimizer.backbone_lr" in detail for detail in result.details)
    assert not any(PRETRAINED in command for command in result.commands)


def test_a_run_above_its_start_is_not_advised_to_keep_more_of_it(tmp_path: Path) -> None:
    rows = {"encoder": {"k=20": 0.5}, "start": {"k=20": 0.1}, "raw pixels": {"k=20": 0.9}}
    record = record_with(tmp_path / "run", make_result(rows=rows))
    (tmp_path / "run" / "start.safetensors").touch()
    result = headline(record)
    assert result.title == "Worse than raw pixels"
    assert not any("backbone_lr" in detail or "random weights" in detail for detail in result.details)
