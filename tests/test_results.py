"""Results: metrics with units, one formatter for terminal, report and model card."""

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mec.models.export.model_card import model_card
from mec.models.io import load_encoder
from mec.report.record import read_records
from mec.report.tables import evaluation_tables
from mec.results import (
    DatasetSummary,
    Metric,
    Protocol,
    Result,
    cells,
    command_line,
    mean_metrics,
    results_table,
    titles,
    to_metrics,
)

RESULT = Result(
    task="few-shot",
    protocol=Protocol("few-shot", {"classifier": "nearest class mean", "trials": 20}),
    dataset=DatasetSummary("digits", {"train": 1347, "test": 450, "classes": 10}),
    encoder="resnet18",
    rows={"encoder": [Metric("1 shot", 0.5, std=0.025, n=20)], "raw pixels": [Metric("1 shot", 0.25)]},
    seconds=1.5,
)
TRACKING = {"HOTA": 0.628, "IDF1": 0.701, "MOTA": -0.05, "ID switches": 12}
METRICS = {
    "knn": to_metrics({"k=20": 0.612, "k=20 top-5": 0.88}),
    "linear": to_metrics({"top-1": 0.708, "class mean": 0.701}),
    "few-shot": [Metric("1 shot", 0.859, std=0.012, n=20)],
    "finetune": mean_metrics([{"top-1": 0.18}, {"top-1": 0.20}, {"top-1": 0.22}]),
    "detect": to_metrics({"AP": 0.382, "AP50": 0.582, "mask AP": 0.352}),
    "sot": to_metrics({"AUC": 0.618, "precision": 0.8}),
    "vos": to_metrics({"J&F": 0.603, "J mean": 0.584}),
    "mot": to_metrics(TRACKING),
    "mots": to_metrics(TRACKING),
    "pose": to_metrics(TRACKING),
    "every unit": [
        Metric("switches", 1234, "count"),
        Metric("mean switches", 12.5, "count", std=0.5, n=2),
        Metric("share", 0.125),
        Metric("length", 3984.2, "nats"),
        Metric("false positives", 0.25, "per frame"),
    ],
}
PRINTED = {
    "knn": ["61.2 / 88.0"],
    "linear": ["70.8", "70.1"],
    "few-shot": ["85.9 ± 1.2"],
    "finetune": ["20.0 ± 2.0"],
    "detect": ["38.2", "58.2", "35.2"],
    "sot": ["61.8", "80.0"],
    "vos": ["60.3", "58.4"],
    "mot": ["62.8", "70.1", "-5.0", "12"],
    "mots": ["62.8", "70.1", "-5.0", "12"],
    "pose": ["62.8", "70.1", "-5.0", "12"],
    "every unit": ["1,234", "12.5 ± 0.5", "12.5", "3984", "0.25"],
}
"""Written by hand: fractions in percent, counts as integers, other units as they are."""


def printed(*results: Result) -> str:
    console = Console(width=200, file=StringIO())
    console.print(results_table(results))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def columns(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


@pytest.mark.parametrize("task", METRICS)
def test_every_unit_prints_alike_on_terminal_report_and_model_card(task: str, tmp_path: Path) -> None:
    result = replace(RESULT, task=task, rows={"encoder": METRICS[task]})
    result.append_to(tmp_path)
    assert columns(printed(result)) == [["encoder", *PRINTED[task]]]
    (evaluation,) = evaluation_tables(read_records([tmp_path]))
    assert evaluation.rows[0].cells == PRINTED[task]
    card = model_card(load_encoder("test_resnet"), "mec-ssl", "name", run=tmp_path)
    assert f"| encoder | {' | '.join(PRINTED[task])} |" in card


def test_titles_carry_the_unit() -> None:
    assert list(titles([METRICS["every unit"]]).values()) == [
        "switches", "mean switches", "share (%)", "length (nats)", "false positives (per frame)",
    ]  # fmt: skip
    assert list(titles([METRICS["knn"]])) == ["k=20"], "top-5 shares the cell of its top-1"


def test_append_writes_a_line_per_result_that_reads_back_equal(tmp_path: Path) -> None:
    for _ in range(2):
        RESULT.append_to(tmp_path / "new")
    lines = (tmp_path / "new" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert Result.from_dict(json.loads(lines[0])) == RESULT


@pytest.mark.parametrize(
    "change",
    [
        {"task": 7}, {"seconds": "1"}, {"rows": {}}, {"rows": {"encoder": [{"name": "a"}]}}, {"protocol": "a sentence"},
        {"rows": {"encoder": [{"name": "a", "value": "1"}]}}, {"dataset": {}}, {"skipped": []}, {"unknown": 1},
        {"rows": {"encoder": [{"name": "a", "value": 1.0, "unit": "parsec"}]}}, {"dataset": {"name": "a", "counts": 3}},
        {"rows": []}, {"rows": {"encoder": {"a": 1}}},
    ],
)  # fmt: skip
def test_what_is_not_a_result_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a result"):
        Result.from_dict({**RESULT.as_dict(), **change})


def test_table_of_several_datasets_ends_with_their_means() -> None:
    pets = replace(
        RESULT,
        dataset=DatasetSummary("pets[1]", {"test": 5}),
        rows={"encoder": to_metrics({"top-1": 0.5}), "untrained": to_metrics({"top-1": 0.1})},
    )
    birds = replace(
        pets,
        dataset=DatasetSummary("birds", {"test": 5}),
        rows={"encoder": to_metrics({"top-1": 0.7, "class mean": 0.9}), "untrained": to_metrics({"top-1": 0.2})},
    )
    assert columns(printed(pets, birds)) == [
        ["pets[1] (5 test)", "encoder", "50.0", "-"],
        ["", "untrained", "10.0", "-"],
        ["birds (5 test)", "encoder", "70.0", "90.0"],
        ["", "untrained", "20.0", "-"],
        ["mean of 2", "encoder", "60.0", "-"],
        ["mean of 2", "untrained", "15.0", "-"],
    ]


def test_mean_metrics_have_the_sample_deviation() -> None:
    trials = [{"top-1": 0.1, "switches": 3}, {"top-1": 0.4, "switches": 3}, {"top-1": 0.7, "switches": 3}]
    accuracy, switches = mean_metrics(trials)
    np.testing.assert_allclose(accuracy.value, 0.4)
    assert accuracy.std == pytest.approx(np.std([0.1, 0.4, 0.7], ddof=1))
    assert (accuracy.n, switches.unit, switches.std) == (3, "count", 0)
    assert mean_metrics(trials[:1]) == to_metrics(trials[0])


def test_a_value_that_is_not_finite_is_a_dash() -> None:
    assert cells([Metric("a", math.nan)], ["a", "b"]) == ["-", "-"]


def test_protocol_renders_its_settings() -> None:
    settings = {"head": "linear", "steps": 31_300, "lr": 0.03, "corrected": False, "sides": [480, 800], "unused": None}
    protocol = Protocol("linear-paper", settings)
    assert protocol.describe() == "linear-paper: head linear, steps 31,300, lr 0.03, corrected no, sides 480/800"
    assert protocol.includes({"lr": 0.03, "sides": [480, 800]})
    assert not protocol.includes({"lr": 0.02})


def test_metric_is_found_by_name_and_row() -> None:
    assert RESULT.metric("1 shot", "raw pixels").value == 0.25
    with pytest.raises(KeyError, match="5 shots"):
        RESULT.metric("5 shots")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/usr/bin/mec", "evaluate", "knn", "my data"], "mec evaluate knn 'my data'"),
        (["/site-packages/mec/__main__.py", "pretrain", "a"], "mec pretrain a"),  # python -m mec
        (["/home/me/__main__.py", "a"], "__main__.py a"),
        (["sweep.py"], "sweep.py"),
    ],
)
def test_the_recorded_command_can_be_pasted(argv: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", argv)
    assert command_line() == expected == replace(RESULT, command=command_line()).command
