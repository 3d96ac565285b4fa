"""Pretrain, evaluate and report on the handwritten digits that come with scikit-learn. No download."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mec.data import open_dataset
from mec.errors import InputError
from mec.evaluate.few_shot import few_shot_metrics
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import fast_probe_accuracies
from mec.evaluate.task import Features, Task, accuracies, features_of, open_task
from mec.pretraining import load_recipe, pretrain
from mec.pretraining.run_folder import contains_run
from mec.report import write_report
from mec.report.overview import plot_overview
from mec.results import TOP_5, Metric, Protocol, Result, Stopwatch, cells, titles, to_metrics

SHOTS = (1, 5, 10)
TRIALS = 20
NEIGHBORS = 20


def demo(out: str | os.PathLike[str] = "demo", epochs: int | None = None, seed: int = 0) -> Result:
    """Pretrain on handwritten digits without labels, then compare raw pixels, the untrained encoder and MEC.

    Writes the run, its result, ``demo.png`` and ``report.html`` into ``out``. Takes two minutes on two CPU cores.

    Args:
        out: run folder; if it contains a run already, a number is appended to its name.
        epochs: epochs of pretraining; null: those of the recipe.
        seed: seed of weights and views.
    """
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs: expected at least 1, got {epochs}")
    console = Console(soft_wrap=True)
    clock = Stopwatch()
    folder = _new_folder(Path(out))
    recipe = replace(load_recipe("digits"), seed=seed)
    run = pretrain("digits", folder, replace(recipe, epochs=epochs or recipe.epochs))
    task = open_task("digits", run)
    features = list(features_of(task))
    result = measure(task, features, clock)
    result.append_to(folder)
    test = open_dataset("digits", "test")
    assert test.images is not None
    assert test.labels is not None
    image = plot_overview(run.metrics(), features[0].test, test.labels, test.images, test.classes, folder / "demo.png")
    console.print(_table(result))
    console.print(
        f"Accuracy on {len(task.test)} test digits. n shots: n labels per class, nearest class mean, mean ± std of "
        f"{TRIALS} trials. All labels: kNN (k = {NEIGHBORS}) and a linear classifier.\n"
        f"Figure: {image}. Total time: {result.seconds:.0f} s.",
        highlight=False,
        markup=False,
    )
    page = write_report([folder])
    console.print(f"Report: {page} (open it in a browser).", highlight=False, markup=False)
    return result


def measure(task: Task, features: list[Features], clock: Stopwatch) -> Result:
    """Evaluate few-shot, kNN and linear classifiers on the features of every row of the task."""
    classes = len(task.classes)
    rows: dict[str, list[Metric]] = {}
    for f in features:
        ranked = knn_ranking(f.train, f.train_labels, f.test, [NEIGHBORS], classes)[NEIGHBORS]
        all_labels = {
            "kNN": accuracies(ranked, f.test_labels, classes)["top-1"],
            "linear": fast_probe_accuracies(f, classes)["top-1"],
        }
        few_shot = few_shot_metrics(f, classes, SHOTS, TRIALS, seed=0)
        rows[f.name] = [m for m in few_shot if not m.name.endswith(TOP_5)] + to_metrics(all_labels)
    return Result(
        task="demo",
        protocol=Protocol("demo", {"few_shot_classifier": "nearest class mean", "trials": TRIALS, "k": NEIGHBORS}),
        dataset=task.dataset,
        encoder=task.encoder,
        rows=rows,
        seconds=clock(),
    )


def _table(result: Result) -> Table:
    table = Table()
    columns = titles(result.rows.values())
    table.add_column("features")
    for title in columns.values():
        table.add_column(title, justify="right")
    for row, name in (("raw pixels", "raw pixels"), ("untrained", "untrained"), ("encoder", "MEC")):
        table.add_row(name, *cells(result.rows[row], columns), style="bold" if row == "encoder" else "")
    return table


def _new_folder(folder: Path) -> Path:
    """Return ``folder``, or the first of folder-2, folder-3, ... that contains no run."""
    number, candidate = 1, folder
    while contains_run(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
