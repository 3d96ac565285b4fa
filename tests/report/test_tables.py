"""Tables of evaluations; published results are compared only with the same protocol, settings and dataset."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec import evaluate
from mec.evaluate.detection.detect import METRIC_NAMES
from mec.evaluate.detection.schedules import SCHEDULES
from mec.evaluate.supervised import PAPER_PROBE, SIMSIAM_PROBE, protocol_settings
from mec.evaluate.tracking.vos import PropagationSettings
from mec.report import tables
from mec.report.record import read_records
from mec.report.tables import OTB, TABLES, evaluation_tables, find_published, run_rows
from mec.results import DatasetSummary, Metric, Protocol, Result, to_metrics
from tests.report import runs
from tests.report.runs import narrow_encoder, smooth_noise

TOP_1 = {"encoder": {"top-1": 0.5}, "untrained": {"top-1": 0.1}}
AP = {"encoder": {"AP50": 0.5, "AP": 0.3, "AP75": 0.3}}
IMAGENET = {"train": 1_281_167, "test": 50_000, "classes": 1000}


def make_result(
    protocol: str, settings: dict[str, Any], counts: dict[str, int], rows: Mapping[str, Mapping[str, float]] = TOP_1
) -> Result:
    result = runs.make_result(protocol.partition("-")[0], rows, dataset=DatasetSummary("a dataset", counts))
    return replace(result, protocol=Protocol(protocol, settings))


RESULTS = {
    "paper": make_result("linear-paper", {**protocol_settings(PAPER_PROBE, 1_281_167), "image_size": 224}, IMAGENET),
    "simsiam": make_result(
        "linear-simsiam", {**protocol_settings(SIMSIAM_PROBE, 1_281_167), "image_size": 224}, IMAGENET
    ),
    "voc": make_result(
        "detect-voc07+12",
        {"detector": "Faster R-CNN C4", **SCHEDULES["voc07+12"].protocol_settings(), "metric": METRIC_NAMES["voc07"]},
        {"train": 16_551, "test": 4_952, "classes": 20},
        AP,
    ),
    "coco": make_result(
        "detect-coco-1x",
        {"detector": "Mask R-CNN C4", **SCHEDULES["coco-1x"].protocol_settings(), "metric": METRIC_NAMES["coco"]},
        {"train": 118_287, "test": 5_000, "classes": 80},
        AP,
    ),
    "sot": make_result(
        "sot-unitrack",
        {"corrected": False, "stage": "s3", "search_size": 520, "cells": 65},
        {"sequences": 100, "frames": 59_035},
        {"dcf": {"AUC": 0.5}, "xcorr": {"AUC": 0.5}, "first box": {"AUC": 0.1}},
    ),
    "vos": make_result(
        "vos-unitrack",
        {**vars(PropagationSettings()), "stage": "s3"},
        {"sequences": 30, "frames": 1_999},
        {"encoder": {"J mean": 0.5}},
    ),
}


def names_and_percent(published: list[tuple[str, list[Metric], str]]) -> list[dict[str, float]]:
    return [{metric.name: round(100 * metric.value, 6) for metric in metrics} for _, metrics, _ in published]


def test_numbers_are_those_of_the_sources() -> None:
    """MEC: README of the official code; SimSiam paper, Tables 4 and 5; docs/RESULTS.md of UniTrack. In percent."""
    assert {name: names_and_percent(find_published(result)) for name, result in RESULTS.items()} == {
        "paper": [{"top-1": 70.8}],
        "simsiam": [{"top-1": 68.1}, {"top-1": 70.0}, {"top-1": 70.8}, {"top-1": 71.3}],
        "voc": [
            {"AP50": 81.3, "AP": 53.5, "AP75": 58.8},
            {"AP50": 82.3, "AP": 57.0, "AP75": 63.3},
            {"AP50": 82.4, "AP": 57.0, "AP75": 63.7},
        ],
        "coco": [
            {"AP50": 58.2, "AP": 38.2, "AP75": 41.2},
            {"AP50": 58.8, "AP": 39.2, "AP75": 42.5},
            {"AP50": 59.3, "AP": 39.2, "AP75": 42.1},
        ],
        "sot": [{"AUC": 55.5}, {"AUC": 61.8}],
        "vos": [{"J mean": 58.4}],
    }
    assert all(table.source for table in TABLES)
    assert find_published(Result.from_dict(RESULTS["coco"].as_dict()))


@pytest.mark.parametrize("name", RESULTS)
def test_other_datasets_and_protocols_have_no_published_results(name: str) -> None:
    result = RESULTS[name]
    more = {count: n + 1 for count, n in result.dataset.counts.items()}
    for counts in (more, {**result.dataset.counts, "attributes": 40}):
        assert find_published(replace(result, dataset=DatasetSummary("a dataset", counts))) == []
    other = Protocol(f"{result.protocol.id}-2x", result.protocol.settings)
    assert find_published(replace(result, protocol=other)) == []


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("paper", "head_lr", 0.3), ("paper", "image_size", 64), ("simsiam", "epochs", 9), ("voc", "max_steps", 2_400),
        ("coco", "detector", "Faster R-CNN C4"), ("sot", "corrected", True), ("vos", "temperature", 0.055),
    ],
)  # fmt: skip
def test_other_settings_have_no_published_results(name: str, setting: str, value: Any) -> None:
    result = RESULTS[name]
    assert setting in result.protocol.settings
    assert find_published(result)
    changed = Protocol(result.protocol.id, {**result.protocol.settings, setting: value})
    assert find_published(replace(result, protocol=changed)) == []


def test_a_tracker_without_a_row_has_no_published_result() -> None:
    result = replace(RESULTS["sot"], rows={"dcf": to_metrics({"AUC": 0.5})})
    assert names_and_percent(find_published(result)) == [{"AUC": 61.8}]


def test_settings_of_a_measured_result_differ_only_by_its_size(tmp_path: Path) -> None:
    labels = np.arange(20) % 2
    np.savez(tmp_path / "a.npz", images=np.stack([smooth_noise(i, 8, 8) for i in range(20)]), labels=labels)
    result = evaluate.linear(tmp_path / "a.npz", narrow_encoder(), "paper", baselines=False, workers=0)
    assert result.protocol.id == RESULTS["paper"].protocol.id
    expected = RESULTS["paper"].protocol.settings
    assert result.protocol.settings == {**expected, "batch_size": 16, "steps": 100, "image_size": 32}
    assert result.dataset == DatasetSummary(str(tmp_path / "a.npz"), {"train": 16, "test": 4, "classes": 2})
    assert "encoder" in result.rows


def test_otb_has_the_number_of_frames_of_the_entry(real_data: Path) -> None:
    lists = {"attr_list", "cvpr13", "tb_50", "tb_100"}
    files = [f for f in (real_data / "OTB100" / "anno").glob("*.txt") if f.stem not in lists]
    boxes = [sum(bool(line.strip()) for line in file.read_text().split("\n")) for file in files]
    assert len(boxes) == OTB["sequences"] == RESULTS["sot"].dataset.counts["sequences"]
    assert sum(boxes) - 5 == OTB["frames"] == RESULTS["sot"].dataset.counts["frames"]


@pytest.mark.parametrize(("first", "finished", "expected"), [
    (0, True, "80 s, 40 steps, epoch 4 of 4"),  # 2 s a step, and the last row after 31 of 40 steps
    (1, True, "80 s, 40 steps, epoch 4 of 4"),  # rows count from 1
    (0, False, "62 s, 31 steps, epoch 4 of 4"),
])  # fmt: skip
def test_duration_covers_the_steps_after_the_last_row(
    tmp_path: Path, first: int, finished: bool, expected: str
) -> None:
    folder = runs.write_run(tmp_path / "run", finished=finished)
    steps = range(first, 31 + first, 10)
    runs.write_metrics(folder, [runs.metrics_row(step, seconds=2 * (step + 1 - first)) for step in steps])
    cells = {row.name: row.cells[0] for row in run_rows(read_records([folder]))}
    assert cells["duration"] == expected


def test_newest_results_are_listed_with_baselines_and_published_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = runs.write_run(tmp_path / "a"), runs.write_run(tmp_path / "b")
    newer = runs.make_result(rows={"encoder": {"k=20": 0.95}, "untrained": {"k=20": 0.4, "images": 7}})
    newer.rows["encoder"][0] = Metric("k=20", 0.95, std=0.012, n=3)
    newer.append_to(b)
    runs.make_result("linear", protocol="linear-fast").append_to(b)

    reference = ("ResNet-50", [Metric("k=20", 0.671)], "Table 9")
    monkeypatch.setattr(tables, "find_published", lambda result: [reference] if result.task == "knn" else [])
    knn, linear = evaluation_tables(read_records([a, b]))
    assert (knn.task, linear.task) == ("knn", "linear")
    assert knn.columns == ["k=20 (%)", "images"]
    assert [(row.kind, row.run, row.name, row.cells) for row in knn.rows] == [
        ("encoder", "a", "", ["91.2 / 99.0", "-"]),
        ("encoder", "b", "", ["95.0 ± 1.2", "-"]),
        ("baseline", "a", "untrained", ["50.0", "-"]),
        ("baseline", "a", "raw pixels", ["25.0", "-"]),
        ("baseline", "b", "untrained", ["40.0", "7"]),
        ("published", "", "ResNet-50", ["67.1", "-"]),
    ]
    assert [row.run for row in linear.rows] == ["b"] * 3


def test_equal_baselines_are_merged_and_encoders_of_one_folder_are_not(tmp_path: Path) -> None:
    a, b = runs.write_run(tmp_path / "a"), runs.write_run(tmp_path / "b")
    (table,) = evaluation_tables(read_records([a, b]))
    assert [(row.run, row.name) for row in table.rows if row.kind == "baseline"] == [
        ("", "untrained"),
        ("", "raw pixels"),
    ]
    runs.make_result(encoder="resnet50").append_to(a)
    (table,) = evaluation_tables(read_records([a]))
    assert [row.run for row in table.rows if row.kind == "encoder"] == ["a: an encoder", "a: resnet50"]
