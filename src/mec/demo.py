"""The whole way on the digits that scikit-learn ships: pretrain, measure, look. No download."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mec.data import ArrayDataset, open_dataset
from mec.errors import InputError
from mec.evaluate.accuracy import accuracies
from mec.evaluate.features import Features, features_of
from mec.evaluate.few_shot import class_mean_scores
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import probe
from mec.evaluate.task import Task, open_task
from mec.pretraining import load_recipe, pretrain
from mec.report import write_report
from mec.report.overview import overview
from mec.results import Result, Stopwatch

LABELS = (1, 5, 10)
NEIGHBORS = 20


def demo(out: str | os.PathLike[str] = "demo", epochs: int | None = None, seed: int = 0) -> Result:
    """Pretrain on handwritten digits without labels, then compare raw pixels, the untrained encoder and MEC.

    Writes a run folder, its result, ``demo.png`` and ``report.html`` into ``out``. Two minutes on two CPU cores.

    Args:
        out: folder for the run; a new number is added when it holds one already.
        epochs: of pretraining; null: those of the recipe.
        seed: of weights and views.
    """
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs: expected at least 1, got {epochs}")
    console = Console(soft_wrap=True)
    clock = Stopwatch()
    folder = _free(Path(out))
    recipe = replace(load_recipe("digits"), seed=seed)
    run = pretrain("digits", folder, replace(recipe, epochs=epochs or recipe.epochs))
    task = open_task("digits", run)
    features = list(features_of(task))
    result = measure(task, features, clock)
    result.append_to(folder)
    test = open_dataset("digits", "test")
    assert isinstance(test, ArrayDataset)
    assert test.labels is not None
    image = overview(run.metrics(), features[0].test, test.labels, test.images, test.classes, folder / "demo.png")
    console.print(_table(result))
    console.print(
        f"Accuracy on {len(task.test)} test digits in percent; n labels a class: nearest class mean, "
        f"mean ± std of 20 draws; all labels: {NEIGHBORS} nearest neighbors and a linear classifier.\n"
        f"{image} shows the run; {result.seconds:.0f} s in all.",
        highlight=False,
        markup=False,
    )
    page = write_report([folder], console=console)
    console.print(f"{page} tells more: open it in a browser.", highlight=False, markup=False)
    return result


def measure(task: Task, features: list[Features], clock: Stopwatch) -> Result:
    """Few labels, neighbors and linear classifier, for every row of the task."""
    classes = len(task.classes)
    figures: dict[str, dict[str, float]] = {}
    for f in features:
        row = figures[f.name] = {}
        for n in LABELS:
            scores = class_mean_scores(f, classes, n, draws=20, seed=0)["top-1"]
            row[f"{n} labels"], row[f"{n} labels std"] = float(scores.mean()), float(scores.std())
        ranked = knn_ranking(f.train, f.train_labels, f.test, [NEIGHBORS], classes)[NEIGHBORS]
        row["all, kNN"] = accuracies(ranked, f.test_labels, classes)["top-1"]
        row["all, linear"] = probe(f, classes)["top-1"]
    return Result(
        task="demo",
        protocol="few labels: nearest class mean, 20 draws; all labels: kNN (k=20) and logistic regression; top-1 %",
        data=task.data,
        encoder=task.encoder,
        figures=figures,
        seconds=clock(),
    )


def _table(result: Result) -> Table:
    table = Table()
    columns = ["1 labels", "5 labels", "10 labels", "all, kNN", "all, linear"]
    table.add_column("features")
    for column in columns:
        table.add_column(column.replace("1 labels", "1 label"), justify="right")
    for row, called in (("raw pixels", "raw pixels"), ("untrained", "untrained"), ("encoder", "MEC")):
        values = result.figures[row]
        cells = [
            f"{100 * values[c]:.1f}" + (f" ± {100 * values[c + ' std']:.1f}" if c + " std" in values else "")
            for c in columns
        ]
        table.add_row(called, *cells, style="bold" if row == "encoder" else "")
    return table


def _free(folder: Path) -> Path:
    """``folder``, or the first of folder-2, folder-3, ... that holds no run."""
    number, candidate = 1, folder
    while (candidate / "recipe.yaml").exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
