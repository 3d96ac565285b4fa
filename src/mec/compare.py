"""``compare``: pretrain variants of a run with several seeds, evaluate every encoder, and compare means over seeds."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from mec.data.dataset import DataLike
from mec.data.datasets import open_splits
from mec.distributed import is_rank_zero
from mec.engine.progress import format_duration
from mec.errors import InputError
from mec.evaluate.knn import knn
from mec.evaluate.linear import linear
from mec.evaluate.task import check_classes
from mec.models.io import WEIGHTS_FILE
from mec.pretraining.recipe import Recipe, load_recipe
from mec.pretraining.run import default_recipe, pretrain
from mec.pretraining.run_folder import Run
from mec.report import write_report
from mec.results import RESULTS, Metric, Result, cells, mean_metrics, titles

logger = logging.getLogger("mec")

NEIGHBORS = 20
UNITS: dict[str, Any] = {"effective rank": "count", "minutes": "count"}


@dataclass(frozen=True)
class Comparison:
    """Metrics of variants of a run.

    Attributes:
        folder: contains a folder for each variant, with a run folder for each seed, and report.html.
        rows: variant -> mean and standard deviation over its seeds of linear and kNN accuracy, where there are labels,
            of the effective rank of the last codes, and of the minutes of training, best linear accuracy first; then
            the baselines of the first run.
        failed: run -> reason, for runs that could not be trained.
    """

    folder: Path
    rows: dict[str, list[Metric]]
    failed: dict[str, str]

    def table(self) -> Table:
        """Return the table for a terminal."""
        columns = titles(self.rows.values())
        table = Table()
        table.add_column("")
        for title in columns.values():
            table.add_column(title, justify="right")
        for name, metrics in self.rows.items():
            table.add_row(name, *cells(metrics, columns))
        return table


def compare(
    data: DataLike,
    out: str | os.PathLike[str],
    variants: Mapping[str, Mapping[str, Any]],
    recipe: Recipe | str | os.PathLike[str] | None = None,
    seeds: Sequence[int] = (0,),
) -> Comparison:
    """Pretrain every variant with every seed, one after another, and evaluate each encoder by kNN and linear probe.

    Interrupted at any moment and called again, it continues where it was: finished runs are not repeated, an unfinished
    one resumes. More variants or seeds may be added later. A run that diverges or is refused is left out and named.

    Args:
        data: the images of all runs (see ``mec.open_dataset``).
        out: folder of the comparison; the run of a variant and a seed is ``out/VARIANT/seed=SEED``.
        variants: name -> arguments of ``mec.pretrain`` of the variant: ``recipe``, ``objective``, ``view_transform``,
            ``encoder``. Objects are copied for every run.
        recipe: recipe of the variants without their own; None takes the one that fits the data.
        seeds: seeds of weights, order and views; each replaces the seed of the recipe.

    Raises:
        InputError: an argument is invalid, or no run could be trained.
    """
    out = Path(out).expanduser()
    if not variants or not seeds:
        raise InputError("variants, seeds: expected at least one each")
    if names := [name for name in variants if not name or Path(name).name != name]:
        raise InputError(f"variants: expected names of folders, got {names[0]!r}")
    base = recipe if isinstance(recipe, Recipe) else load_recipe(default_recipe(data) if recipe is None else recipe)
    num_train = _count_labeled(data)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    baselines: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    finished: list[Path] = []
    started, trained = time.monotonic(), 0
    todo = list(itertools.product(variants, dict.fromkeys(seeds)))
    # seeds in the outer loop: a comparison that is stopped early has all variants
    todo.sort(key=lambda run: list(seeds).index(run[1]))
    for number, (name, seed) in enumerate(todo, 1):
        title, folder = f"{name}, seed {seed}", out / name / f"seed={seed}"
        is_new = not (folder / WEIGHTS_FILE).exists()
        left = ""
        if trained and is_new:
            seconds = (time.monotonic() - started) / trained * (len(todo) - number + 1)
            left = f", about {format_duration(seconds)} left"
        logger.info(f"run {number} of {len(todo)}: {title}{left}")
        arguments = {"recipe": base, **variants[name]}
        own = arguments.pop("recipe")
        own = replace(own if isinstance(own, Recipe) else load_recipe(own), seed=seed)
        try:
            run = pretrain(data, folder, own, resume=True, **copy.deepcopy(arguments))
        except InputError as error:
            failed[title] = str(error)
            logger.warning(f"{title} failed: {error}")
            continue
        trained += is_new
        finished.append(folder)
        accuracies = _evaluate(data, run, min(NEIGHBORS, num_train), not baselines) if num_train else {}
        baselines = baselines or {row: values for row, values in accuracies.items() if row != "encoder"}
        last = run.metrics()[-1]
        training = {"effective rank": last["effective_rank"], "minutes": last["seconds"] / 60}
        runs[name].append(accuracies.get("encoder", {}) | training)
    if not finished:
        raise InputError(f"all {len(todo)} runs failed; the first: {next(iter(failed.values()))}")
    means = {name: mean_metrics(values, UNITS) for name, values in runs.items() if values}
    if num_train:
        means = dict(sorted(means.items(), key=lambda item: -item[1][0].value))
    rows = means | {name: mean_metrics([values], UNITS) for name, values in baselines.items()}
    if is_rank_zero():
        write_report(finished, out / "report.html")
    return Comparison(out, rows, failed)


def _count_labeled(data: DataLike) -> int:
    """Return the number of train images with labels; 0 if the data cannot be used for evaluations."""
    splits = open_splits(data)
    try:
        train = splits.select("train")
        check_classes(train, splits.select("test"), data)
    except InputError as error:
        logger.info(f"no evaluations: {error}")
        return 0
    return len(train)


def _evaluate(data: DataLike, run: Run, k: int, with_baselines: bool) -> dict[str, dict[str, float]]:
    """Return row -> linear and kNN accuracy of a run. Results that its results.jsonl has are not measured again."""
    rows: dict[str, dict[str, float]] = {}
    for task, metric in (("linear", "top-1"), ("knn", f"k={k}")):
        result = _stored(run, task, metric)
        if result is None or (with_baselines and len(result.rows) == 1):
            # the report compares the last evaluation with its baselines
            encoder = run.encoder()
            result = linear(data, encoder, baselines=with_baselines) if task == "linear" else knn(data, encoder, [k])
            if is_rank_zero():
                result.append_to(run)
        for row in result.rows:
            rows.setdefault(row, {})[f"kNN, k = {k}" if task == "knn" else task] = result.metric(metric, row).value
    return rows


def _stored(run: Run, task: str, metric: str) -> Result | None:
    path = run.folder / RESULTS
    lines = path.read_text().splitlines() if path.exists() else []
    results = [Result.from_dict(json.loads(line)) for line in lines]
    return next((r for r in reversed(results) if r.task == task and metric in r.values()), None)
