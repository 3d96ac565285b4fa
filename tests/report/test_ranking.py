"""The ranking of runs, with means over seeds; runs of other objectives and of objects of a user."""

import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest

from mec.pretraining.recipe_files import make_recipe
from mec.report.charts import curve_charts
from mec.report.images import embed_views
from mec.report.page import render_page
from mec.report.ranking import group_seeds, rank
from mec.report.record import Missing, check_health, read_records
from mec.report.tables import settings_rows
from tests.report.runs import make_contents, make_result, make_run, metrics_row, write_run
from tests.report.test_verdict import record_with

PROBES = ["last online probe: kNN (%)", "last online probe: linear (%)"]
VICREG = "losses.VICReg(sim=25.0, std=25.0)"


def write_seed(folder: Path, value: float | None, **settings: Any) -> Path:
    """Write a run with a kNN accuracy, or with neither an accuracy nor probes."""
    write_run(folder, **settings)
    (folder / "results.jsonl").unlink()
    if value is None:
        (folder / "probes.csv").unlink()
    else:
        make_result(rows={"encoder": {"k=20": value}, "raw pixels": {"k=20": 0.5}}).append_to(folder)
    return folder


def test_runs_are_ranked_by_their_last_probes_or_by_evaluations_of_as_many(tmp_path: Path) -> None:
    records = [record_with(tmp_path / name, optimizer={"lr": lr}) for name, lr in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
    for record, last in zip(records, ("0.5,0.9", "0.7,0.8", ","), strict=True):
        text = f"epoch,step,knn_top1,linear_top1,seconds\n1,10,0.99,0.99,1\n2,20,{last},1\n"
        (record.folder / "probes.csv").write_text(text if record.folder.name != "c" else text[: text.index("1,10")])
    folders = [record.folder for record in records]
    ranking = rank(read_records(folders))
    assert ranking.by == "last online probe: kNN (%)"
    assert [(*row.runs, *row.cells) for row in ranking.rows] == [
        (1, "70.0", "80.0", "0.2", "4"),
        (0, "50.0", "90.0", "0.1", "4"),
        (2, "-", "-", "0.3", "4"),
    ]
    assert ranking.columns[2:] == ["optimizer.lr", "epochs"]
    assert [shlex.split(command)[-1] for command in ranking.commands] == [str(folders[i]) for i in (1, 0, 2)]
    for folder, value in zip(folders, (0.3, 0.2, 0.4), strict=True):
        make_result(rows={"encoder": {"k=20": value}}).append_to(folder)
    ranking = rank(read_records(folders))
    assert (ranking.by, [row.name for row in ranking.rows], ranking.commands) == ("knn k=20 (%)", ["c", "a", "b"], [])


def test_runs_that_differ_in_nothing_but_their_seed_are_one_row(tmp_path: Path) -> None:
    values: dict[str, dict[int, float | None]] = {
        "mec": {0: 0.90, 1: 0.94, 2: 0.89}, "simclr": {0: 0.91, 1: 0.88}, "vicreg": {0: 0.95, 1: None},
        "byol": {5: 0.1},
    }  # fmt: skip
    folders = [
        write_seed(tmp_path / name / f"seed={seed}", value, seed=seed, objective={"name": name})
        for name, seeds in values.items()
        for seed, value in seeds.items()
    ]
    ranking = rank(read_records(folders))
    assert ranking.columns == ["knn k=20 (%)", *PROBES, "objective", "seed", "epochs"]
    deviation = 100 * statistics.stdev([0.90, 0.94, 0.89])
    assert [(row.name, row.cells[0], *row.cells[3:5]) for row in ranking.rows] == [
        ("vicreg", "95.0 (1 of 2)", "vicreg", "0, 1"),
        ("mec", f"91.0 ± {deviation:.1f}", "mec", "0, 1, 2"),
        ("simclr", "89.5 ± 2.1", "simclr", "0, 1"),
        ("byol/seed=5", "10.0", "byol", "5"),
    ]
    page = render_page(make_contents(*folders)).decode()
    assert "mean ± standard deviation (n - 1) over the seeds" in page
    assert page.count("seeds</span>") == 3
    assert ">3 seeds<" in page


@pytest.mark.parametrize(
    ("other", "groups"),
    [
        ({"seed": 1}, [[0, 1]]),
        ({"seed": 0}, [[0], [1]]),  # a repetition is no independent trial
        ({"seed": 1, "epochs": 5}, [[0], [1]]),
        ({"seed": 1, "optimizer": {"lr": 0.1}}, [[0], [1]]),
        ({"seed": 1, "parts": {"objective": VICREG}}, [[0], [1]]),
    ],
)
def test_only_the_seed_may_differ_within_a_row(tmp_path: Path, other: dict[str, Any], groups: list[list[int]]) -> None:
    folders = [write_run(tmp_path / "a", seed=0), write_run(tmp_path / "b", **other)]
    assert group_seeds(read_records(folders)) == groups


def test_other_images_and_equal_descriptions_of_objects_of_different_variants_are_other_rows(tmp_path: Path) -> None:
    own: dict[str, Any] = {"objective": {}, "parts": {"objective": VICREG}}
    folders = [write_run(tmp_path / variant / str(seed), seed=seed, **own) for variant in "ab" for seed in (0, 1)]
    assert group_seeds(read_records(folders)) == [[0, 1], [2, 3]]
    environment = folders[1] / "environment.json"
    environment.write_text(environment.read_text().replace("645", "600"))
    assert group_seeds(read_records(folders[:2])) == [[0], [1]]
    assert [row.name for row in rank(read_records(folders)).rows] == ["a/0", "a/1", "b"]


def test_the_objects_of_a_run_are_named_in_place_of_settings(tmp_path: Path) -> None:
    parts = {"objective": VICREG, "encoder": "nets.Net()", "view_transform": "views.Crops()"}
    run = write_run(tmp_path / "own", objective={}, backbone="module:nets.Net", parts=parts)
    shown = {row.name: row.cells[0] for row in settings_rows(read_records([run]))}
    assert shown == {**parts, "backbone": "module:nets.Net", "epochs": "4"}
    other = write_run(tmp_path / "mec", objective={"name": "mec", "form": "pooled", "distortion": 0.03})
    ranking = rank(read_records([run, other]))
    assert ranking.columns[3:] == ["objective", "view_transform", "encoder", "backbone", "epochs"]
    assert [row.cells[3] for row in ranking.rows] == [VICREG, "mec"]


@pytest.mark.parametrize(
    ("objective", "distortion", "weight"),
    [
        ({}, "1/2048 to 1/8, the default of the reduction form", "none: the form needs no weight"),
        ({"distortion": [0.0078125, 0.5]}, "1/128 to 1/2, chosen in the recipe", "none: the form needs no weight"),
        ({"form": "pooled"}, "1/32, the default of the pooled form", "1, from the bound"),
        ({"form": "pooled", "distortion": 0.3, "rate_weight": 2.5}, "0.3, chosen in the recipe", "2.5"),
    ],
)
def test_distortion_and_weight_are_explained(objective: dict, distortion: str, weight: str, tmp_path: Path) -> None:
    recipe = make_recipe({"objective": objective}).as_dict()
    shown = {row.name: row.cells[0] for row in settings_rows(read_records([write_run(tmp_path / "run", **recipe)]))}
    assert shown["objective.distortion"] == distortion
    assert shown["objective.rate_weight"] == weight


def test_own_metrics_have_charts_and_other_objectives_none_of_mec(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "own", objective={}, parts={"objective": VICREG})
    rows = [metrics_row(step, effective_rank=1.2) for step in range(40)]
    text = "step,epoch,loss,effective_rank,mean <std>,lr,skipped_steps,seconds\n"
    text += "".join(f"{r['step']},1,{r['loss']},1.2,{r['step'] / 8},{r['lr']},0,1\n" for r in rows)
    (folder / "metrics.csv").write_text(text)
    record = read_records([folder])[0]
    charts = {chart.title: chart for chart in curve_charts([record])}
    assert [*charts][:4] == ["Loss", "Effective rank of the codes", "Learning rate", "mean <std>"]
    assert charts["mean <std>"].figure["data"][0]["y"][-1] == pytest.approx(39 / 8, abs=1e-3)
    assert set(charts["mean <std>"].id) <= set("abcdefghijklmnopqrstuvwxyz-0123456789")
    (message,) = check_health(record)
    assert message.level == "warning"
    assert "objective." not in message.text  # no advice on settings that the run does not have


def test_views_of_an_object_are_not_drawn_with_the_built_in_augmentations(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "digits", parts={"view_transform": "views.Crops(size=32)"})
    views = embed_views(run, None)
    assert isinstance(views, Missing)
    assert "views.Crops(size=32)" in views.reason
