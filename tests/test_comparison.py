"""``mec.compare``: variants times seeds, interrupted and continued; means of what the run folders hold."""

import csv
import io
import json
import logging
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mec
from mec import comparison
from mec.cli.main import main
from mec.errors import InputError
from mec.pretraining import precision
from mec.pretraining.recipe import OptimizerSettings, ProjectorSettings
from mec.report.record import read_records

TINY = mec.Recipe(
    backbone="test_resnet", image_size=16, channels=1, epochs=1, batch_size=32, workers=0, log_every=1,
    projector=ProjectorSettings(16, 8), optimizer=OptimizerSettings(lr=1e-3, warmup_epochs=0),
)  # fmt: skip
BASELINES = ("untrained", "raw pixels")
OPTIONS = (
    "--backbone test_resnet --backbone_options {} --small_stem false --image_size 16 --epochs 1 --batch_size 32 "
    "--workers 0 --projector.hidden_dim 16 --projector.output_dim 8 --accelerator cpu"
).split()


class Cosine(nn.Module):
    """An objective of a user."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, codes: tuple[Tensor, ...]) -> Tensor:
        return -self.scale * nn.functional.cosine_similarity(codes[0], codes[1]).mean()

    def health(self, codes: tuple[Tensor, ...]) -> dict[str, float]:
        return {"cosine": float(nn.functional.cosine_similarity(codes[0], codes[1]).mean())}


def digits(labels: bool = True) -> dict[str, Any]:
    images, classes = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15).astype(np.uint8)
    splits = {"train": slice(0, 96), "test": slice(96, 160)}
    return {name: (images[rows], classes[rows]) if labels else images[rows] for name, rows in splits.items()}


def fails_at(number: int, error: BaseException) -> Callable[..., Any]:
    """Return ``pretrain`` whose call of this number, from 1 on, raises the error."""
    calls = iter(range(1, 1000))

    def pretrain(*arguments: Any, **settings: Any) -> mec.Run:
        if next(calls) == number:
            raise error
        return mec.pretrain(*arguments, **settings)

    return pretrain


def results(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[mec.comparison.Comparison, dict[Path, Any]]:
    """Return a comparison that was interrupted after the second of four runs and continued; and, of files of the first
    two runs, time and size before it was continued."""
    out = tmp_path_factory.mktemp("compare")
    variants: dict[str, dict[str, Any]] = {"mec": {}, "mine": {"objective": Cosine()}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "pretrain", fails_at(3, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            mec.compare(digits(), out, variants, TINY, seeds=(0, 1))
    files = [out / name / "seed=0" / file for name in variants for file in ("encoder.safetensors", "results.jsonl")]
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}
    with (out / "mec" / "seed=0" / "results.jsonl").open("a") as file:
        file.write('{"task": "li')  # as after a kill
    before.pop(out / "mec" / "seed=0" / "results.jsonl")
    shutil.rmtree(out / "mine" / "seed=0" / "checkpoints")  # of a finished run, to save space
    return mec.compare(digits(), out, variants, TINY, seeds=(0, 1)), before


def test_a_continued_comparison_repeats_no_finished_run_and_no_evaluation(compared: Any) -> None:
    result, before = compared
    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in before} == before
    for folder in result.folder.glob("*/seed=*"):
        assert [line["task"] for line in results(folder)] == ["knn", "linear"]
    assert len(list(result.folder.glob("*/seed=*/encoder.safetensors"))) == 4


def test_rows_are_means_and_deviations_of_the_values_in_the_run_folders(compared: Any) -> None:
    result, _ = compared
    assert [*result.rows] == [*sorted(("mec", "mine"), key=lambda name: -result.rows[name][0].value), *BASELINES]
    for name in ("mec", "mine"):
        values: dict[str, list[float]] = {"linear": [], "kNN, k = 20": [], "effective rank": [], "seconds": []}
        for seed in (0, 1):
            folder = result.folder / name / f"seed={seed}"
            lines = results(folder)
            measured = {line["task"]: {m["name"]: m["value"] for m in line["rows"]["encoder"]} for line in lines}
            values["linear"].append(measured["linear"]["top-1"])
            values["kNN, k = 20"].append(measured["knn"]["k=20"])
            with (folder / "metrics.csv").open() as file:
                *_, last = csv.DictReader(file)
            values["effective rank"].append(float(last["effective_rank"]))
            values["seconds"].append(float(last["seconds"]))
        for metric in result.rows[name]:
            assert metric.value == pytest.approx(statistics.mean(values[metric.name]), rel=1e-12)
            assert metric.std == pytest.approx(statistics.stdev(values[metric.name]), rel=1e-9, abs=1e-15)
        assert [metric.name for metric in result.rows[name]] == [*values]


def test_every_run_has_its_objective_and_seed_and_the_page_shows_them(compared: Any) -> None:
    result, _ = compared
    folders = [result.folder / name / f"seed={seed}" for name in ("mec", "mine") for seed in (0, 1)]
    records = read_records(folders)
    assert [record.recipe["seed"] for record in records] == [0, 1, 0, 1]
    assert [record.objective for record in records] == ["mec"] * 2 + [f"{__name__}.Cosine(scale=2.0)"] * 2
    page = result.report.read_text()
    for text in (">2 seeds<", "Cosine(scale=2.0)", "chart-cosine"):
        assert text in page
    assert page.count('id="map-') == 4  # the images were passed as an object


def test_the_table_keeps_names_and_values_in_a_narrow_terminal(compared: Any) -> None:
    result, _ = compared
    console = Console(width=80, file=io.StringIO())
    console.print(replace(result, rows={"a" * 40: result.rows["mec"], **result.rows}).table())
    text = console.file.getvalue()
    assert "mine" in text
    assert "…" not in text
    assert sum(line.count("a") for line in text.splitlines() if "aaa" in line) == 40
    assert sum(text.count(str(metric)) for metric in result.rows["mine"]) >= 4
    assert result.note.splitlines() == [
        "mean ± standard deviation over 2 seeds", "untrained and raw pixels: of the run mec, seed 0",
    ]  # fmt: skip


def test_another_recipe_for_an_existing_folder_names_the_run_before_anything_is_trained(compared: Any) -> None:
    result, _ = compared
    with pytest.raises(InputError, match=r"^mec, seed 1: resume: .*epochs: 1 -> 2; take another folder"):
        mec.compare(digits(), result.folder, {"mec": {}}, replace(TINY, epochs=2), seeds=(7, 1))
    with pytest.raises(InputError, match=r"^mec, seed 0: objective: expected none of the run so far, got .*Cosine"):
        mec.compare(digits(), result.folder, {"mec": {"objective": Cosine()}}, TINY)
    assert not (result.folder / "mec" / "seed=7").exists()


@pytest.mark.parametrize(
    ("variants", "seeds", "message"),
    [
        ({}, (0,), "variants, seeds: expected at least one each"),
        ({"a": {}}, (), "variants, seeds: expected at least one each"),
        ({"a/b": {}}, (0,), "variants: expected names of folders, got 'a/b'"),
        ({"..": {}}, (0,), "variants: expected names of folders, got '..'"),
        ({"a": {"objectiv": 1}}, (0,), r"variants: a: expected recipe, .*, got 'objectiv'; did you mean objective\?"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, variants: Any, seeds: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        mec.compare(digits(), tmp_path / "out", variants, TINY, seeds)
    assert not (tmp_path / "out").exists()


def test_all_runs_have_the_precision_that_was_measured_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurements = iter(["bf16-mixed", "32-true", "32-true"])
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_faster_precision", lambda *_: next(measurements))
    wide = replace(TINY, image_size=32)
    variants: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"objective": Cosine()},
        "larger": {"recipe": replace(TINY, image_size=40)},
    }
    mec.compare(digits(labels=False), tmp_path, variants, wide)
    mec.compare(digits(labels=False), tmp_path, variants, wide, seeds=(0, 1))
    measured = {
        str(path.parent.relative_to(tmp_path)): json.loads(path.read_text())["precision"]
        for path in tmp_path.glob("*/*/environment.json")
    }
    expected = {"a": "bf16-mixed", "b": "bf16-mixed", "larger": "32-true"}
    assert measured == {f"{name}/seed={seed}": value for name, value in expected.items() for seed in (0, 1)}


def test_a_failed_run_is_named_and_the_others_go_on_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(comparison, "pretrain", fails_at(1, InputError("training diverged")))
    variants: dict[str, dict[str, Any]] = {"bad": {}, "good": {"recipe": replace(TINY, epochs=2)}}
    with caplog.at_level(logging.INFO, "mec"):
        result = mec.compare(digits(labels=False), tmp_path, variants, TINY)
    assert result.failed == {"bad, seed 0": "training diverged"}
    assert [metric.name for metric in result.rows.pop("good")] == ["effective rank", "seconds"]
    assert result.rows == {}
    assert "have no labels" in result.note
    assert not (tmp_path / "good" / "seed=0" / "results.jsonl").exists()
    lines = [r.getMessage() for r in caplog.records if r.levelno < logging.WARNING]
    assert [line for line in lines if line.startswith(("run", "good", "bad"))] == [
        "run 1 of 2: bad, seed 0", "run 2 of 2: good, seed 0", lines[-2],
    ]  # fmt: skip
    assert lines[-2].startswith("good, seed 0: effective rank ")
    assert len(lines) == 5  # the first is how the images were read, the last is about the report


def test_the_command_varies_settings_and_returns_2_if_a_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "pretrain", fails_at(2, InputError("training diverged")))
    names: dict[str, Any] = {}
    for split, (images, classes) in digits().items():
        names |= {f"{split}_images": images, f"{split}_labels": classes}
    data, out = tmp_path / "some.npz", tmp_path / "out"
    np.savez(data, **names)
    command = ["compare", str(data), "--out", str(out), "--objective.name", "mec,simclr", *OPTIONS]
    assert main(command) == 2
    output = capsys.readouterr()
    assert output.err.splitlines()[-1] == "mec: failed, for the reasons above: simclr, seed 0"
    assert "simclr" not in output.out
    assert output.out.splitlines()[-1] == str(out / "report.html")
    assert main(command) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert {row.split()[1] for row in rows} == {"mec", "simclr", "untrained", "raw"}
