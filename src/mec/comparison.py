"""``compare``: pretrain variants of a run with several seeds, evaluate every encoder, and compare means over seeds."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mec.data.dataset import DataLike, data_name, is_path
from mec.data.datasets import open_splits
from mec.data.splits import log_splits
from mec.distributed import is_rank_zero, process_group
from mec.engine.progress import format_duration
from mec.errors import InputError, did_you_mean
from mec.evaluate.knn import knn
from mec.evaluate.linear import linear
from mec.evaluate.task import check_classes
from mec.models.io import WEIGHTS_FILE
from mec.pretraining.parts import resolve_parts
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import default_recipe, load_recipe
from mec.pretraining.run import pretrain
from mec.pretraining.run_folder import Run, check_settings, contains_run, recorded_precision
from mec.report import write_report
from mec.report.record import read_results
from mec.results import RESULTS, DatasetSummary, Metric, Result, cells, mean_metrics, titles

logger = logging.getLogger("mec")

NEIGHBORS = 20
PARTS = ("encoder", "distill_from", "objective", "view_transform")
ARGUMENTS = ("recipe", *PARTS, "callbacks", "loggers")
"""Arguments of ``pretrain`` that a variant may have."""
NETWORK_SETTINGS = ("backbone", "backbone_options", "image_size", "extra_views", "resolution_schedule", "precision")
"""Settings that decide which precision is the faster one."""
PROTOCOLS: dict[str, dict[str, Any]] = {
    "linear": {"classifier": "logistic regression", "crops": "central"},
    "knn": {"similarity": "cosine", "temperature": 0.07},
}
"""Settings of the protocols of the evaluations, by task: results of others in a run folder are not used."""


@dataclass(frozen=True)
class Comparison:
    """Metrics of variants of a run.

    Attributes:
        folder: contains a folder for each variant, with a run folder for each seed.
        rows: variant -> mean and standard deviation (n - 1) over its seeds of linear and kNN accuracy, where there are
            labels, of the effective rank of the last codes, and of the time of training, best linear accuracy first;
            then the baselines, raw pixels and the untrained encoder of the first run.
        failed: run -> reason, for runs that could not be trained.
        note: number of seeds, the run of the baselines, and the reason why there are no accuracies.
        report: the HTML page of all runs; None if it could not be written.
    """

    folder: Path
    rows: dict[str, list[Metric]]
    failed: dict[str, str]
    note: str
    report: Path | None

    def table(self) -> Table:
        """Return the table for a terminal."""
        columns = titles(self.rows.values())
        values = {name: cells(metrics, columns) for name, metrics in self.rows.items()}
        table = Table()
        table.add_column("", overflow="fold")  # a long name continues in the next line
        for title, column in zip(columns.values(), zip(*values.values(), strict=True), strict=True):
            table.add_column(title, justify="right", min_width=max(map(len, column)))
        for name, row in values.items():
            table.add_row(escape(name), *row)
        return table


def compare(
    data: DataLike,
    out: str | os.PathLike[str],
    variants: Mapping[str, Mapping[str, Any]],
    recipe: Recipe | str | os.PathLike[str] | None = None,
    seeds: Sequence[int] = (0,),
) -> Comparison:
    """Pretrain every variant with every seed, one after another, and evaluate each encoder by kNN and linear probe.

    Interrupted at any moment and called again, it continues where it was: finished runs and evaluations are not
    repeated, an unfinished run resumes. More variants or seeds may be added later. A run that diverges or is refused is
    left out and named.

    Args:
        data: the images of all runs (see ``mec.open_dataset``).
        out: folder of the comparison; the run of a variant and a seed is ``out/VARIANT/seed=SEED``.
        variants: name -> arguments of ``mec.pretrain`` of the variant: ``recipe``, ``objective``, ``view_transform``,
            ``encoder``, ``distill_from``, ``callbacks``, ``loggers``. Objects are copied for every run.
        recipe: recipe of the variants without their own; None takes the one that fits the data.
        seeds: seeds of weights, order and views; each replaces the seed of the recipe.

    Raises:
        InputError: an argument is invalid, a folder holds a run with other settings, or no run could be trained.
    """
    out, seeds = Path(out).expanduser(), list(dict.fromkeys(seeds))
    resolved = _resolve(data, variants, recipe, seeds)
    # seeds in the outer loop: a comparison that is stopped early has all variants
    runs = {f"{name}, seed {seed}": (name, seed, out / name / f"seed={seed}") for seed in seeds for name in variants}
    for title, (name, seed, folder) in runs.items():
        try:
            expected, _ = resolve_parts(replace(resolved[name], seed=seed), **_parts(variants[name]))
            check_settings(folder, expected)
        except InputError as error:
            raise InputError(f"{title}: {error}; take another folder than {out}") from error
    dataset, reason = _describe_labeled(data)
    failed: dict[str, str] = {}
    finished: list[Run] = []
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    baselines: dict[str, dict[str, float]] = {}
    remarks = [reason] if reason else []
    durations: list[float] = []
    for number, (title, (name, seed, folder)) in enumerate(runs.items(), 1):
        started, is_new = time.monotonic(), not (folder / WEIGHTS_FILE).exists()
        waiting = sum(not (other / WEIGHTS_FILE).exists() for _, _, other in [*runs.values()][number - 1 :])
        left = format_duration(sum(durations) / len(durations) * waiting) if durations and waiting else ""
        logger.info(f"run {number} of {len(runs)}: {title}{left and f', about {left} left'}")
        arguments = copy.deepcopy({key: value for key, value in variants[name].items() if key != "recipe"})
        try:
            with _brief_log():
                precision = _precision(name, folder, resolved, runs.values())
                own = replace(resolved[name], seed=seed, precision=precision)
                run = pretrain(data, folder, own, resume=True, **arguments)
                values, others = _measure(data, run, dataset, not baselines)
        except InputError as error:
            failed[title] = str(error)
            logger.warning(f"{title} failed: {error}")
            continue
        except (KeyboardInterrupt, SystemExit):
            logger.info(f"{title}: stopped; run the comparison again to continue")
            raise
        if is_new:
            durations.append(time.monotonic() - started)
        finished.append(run)
        measured[name].append(values)
        if others and not baselines:
            baselines = others
            remarks.append(f"{' and '.join(others)}: of the run {title}")
        logger.info(f"{title}: {', '.join(_describe(metric, value) for metric, value in values.items())}")
    if not finished:
        raise InputError(f"all {len(runs)} runs failed; the first: {next(iter(failed.values()))}")
    rows = _means(measured, baselines)
    counts = {name: len(values) for name, values in measured.items()}
    return Comparison(out, rows, failed, _note(counts, remarks), _write_report(data, finished, out))


def _resolve(
    data: DataLike,
    variants: Mapping[str, Mapping[str, Any]],
    recipe: Recipe | str | os.PathLike[str] | None,
    seeds: Sequence[int],
) -> dict[str, Recipe]:
    """Check the arguments of ``compare``, and return the recipe of each variant."""
    if not variants or not seeds:
        raise InputError("variants, seeds: expected at least one each")
    for name, arguments in variants.items():
        if not name or name in (".", "..") or Path(name).name != name:
            raise InputError(f"variants: expected names of folders, got {name!r}")
        if unknown := [key for key in arguments if key not in ARGUMENTS]:
            suggestion = did_you_mean(unknown[0], ARGUMENTS)
            raise InputError(f"variants: {name}: expected {', '.join(ARGUMENTS)}, got {unknown[0]!r}{suggestion}")
    default = default_recipe(data) if recipe is None else recipe
    chosen = {name: arguments.get("recipe") or default for name, arguments in variants.items()}
    return {name: own if isinstance(own, Recipe) else load_recipe(own) for name, own in chosen.items()}


def _precision(name: str, folder: Path, recipes: Mapping[str, Recipe], runs: Iterable[tuple[str, int, Path]]) -> Any:
    """Return the precision of a run of the variant ``name``. Measurements of the faster one differ from run to run; so
    all runs of an encoder and size of the views have that of the first one."""
    recipe = recipes[name]
    if contains_run(folder):
        return Run(folder).recipe().precision
    if recipe.precision != "auto":
        return recipe.precision
    for other, _, first in runs:
        is_same = all(getattr(recipes[other], setting) == getattr(recipe, setting) for setting in NETWORK_SETTINGS)
        if is_same and contains_run(first) and (measured := recorded_precision(first)) is not None:
            return measured
    return "auto"


def _parts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in PARTS}


@contextmanager
def _brief_log() -> Iterator[None]:
    """Log only warnings and progress within the block: every run and evaluation logs how the same data was read."""

    def is_shown(record: logging.LogRecord) -> bool:
        return record.module == "progress" or (record.levelno >= logging.WARNING and record.module != "splits")

    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)


def _describe_labeled(data: DataLike) -> tuple[DatasetSummary | None, str]:
    """Return what evaluations record as their dataset, and ""; or None and the reason that there can be none."""
    splits = open_splits(data)
    train, title = splits.select("train"), data_name(data)
    try:
        test = splits.select("test")
        check_classes(train, test, data)
    except InputError as error:
        log_splits(data, {"": splits.select("pretrain")})
        return None, f"no accuracies: {str(error).removeprefix('data: ')}"
    log_splits(data, {"train": train, "test": test})
    return DatasetSummary(title, {"train": len(train), "test": len(test), "classes": len(train.classes)}), ""


def _measure(
    data: DataLike, run: Run, dataset: DatasetSummary | None, with_baselines: bool
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return accuracies, effective rank and seconds of training of a run; and baseline -> accuracies.

    Results that its results.jsonl has are not measured again. With several processes all return the same.
    """
    rows: dict[str, dict[str, float]] = {"encoder": {}}
    with process_group() as group:
        k = 0 if dataset is None else min(NEIGHBORS, dataset.counts["train"])
        # linear last: the report ranks by the newest evaluation
        tasks = (("knn", f"k={k}", f"kNN, k = {k}"), ("linear", "top-1", "linear"))
        for task, metric, title in tasks if dataset is not None else ():
            result = group.broadcast(_stored(run, task, metric, dataset, with_baselines))
            if result is None:
                encoder = run.encoder()
                result = group.broadcast(
                    knn(data, encoder, [k], baselines=with_baselines)
                    if task == "knn"
                    else linear(data, encoder, baselines=with_baselines)
                )
                if group.rank == 0:
                    result.append_to(run)
            for row in result.rows:
                rows[row] = {title: result.metric(metric, row).value} | rows.get(row, {})
        if group.rank == 0:
            measured = [row for row in run.metrics() if "effective_rank" in row]
            last = measured[-1] if measured else {}
            rows["encoder"]["effective rank"] = last.get("effective_rank", math.nan)
            rows["encoder"]["seconds"] = last.get("seconds", math.nan)
        rows = group.broadcast(rows)
    return rows.pop("encoder"), rows


def _stored(run: Run, task: str, metric: str, dataset: DatasetSummary | None, with_baselines: bool) -> Result | None:
    """Return the newest result of the run with the same protocol and dataset, and with baselines if they are needed."""
    for result in reversed(read_results(run.folder / RESULTS, [])):
        is_same = result.task == task and result.dataset == dataset and result.protocol.includes(PROTOCOLS[task])
        has_rows = "encoder" in result.rows and (len(result.rows) > 1 or not with_baselines)
        if is_same and has_rows and metric in result.values():
            return result
    return None


def _describe(metric: str, value: float) -> str:
    """Return a value for the log: "linear 95.2 %"."""
    if metric == "seconds":
        return format_duration(value) if math.isfinite(value) else "no step"
    return f"{metric} {value:.1f}" if metric == "effective rank" else f"{metric.partition(',')[0]} {100 * value:.1f} %"


def _means(
    measured: Mapping[str, Sequence[Mapping[str, float]]], baselines: Mapping[str, Mapping[str, float]]
) -> dict[str, list[Metric]]:
    """Return variant -> means over its runs, best linear accuracy first; then the baselines."""
    longest = max(values["seconds"] for runs in measured.values() for values in runs)
    unit, size = ("minutes", 60) if longest >= 600 else ("seconds", 1)
    rows = {}
    for name, runs in measured.items():
        trials = [
            {k: v for k, v in values.items() if k != "seconds"} | {unit: values["seconds"] / size} for values in runs
        ]
        if trials:
            rows[name] = mean_metrics(trials, {"effective rank": "count", unit: "count"})
    rows = dict(sorted(rows.items(), key=lambda item: -item[1][0].value if item[1][0].name == "linear" else 0))
    return rows | {name: mean_metrics([values]) for name, values in baselines.items()}


def _note(counts: Mapping[str, int], remarks: Sequence[str]) -> str:
    """Return the number of seeds of the means, and further remarks, a line each."""
    most = max(counts.values())
    fewer = ", ".join(f"{name}: {count}" for name, count in counts.items() if 0 < count < most)
    seeds = (
        f"mean ± standard deviation over {most} seeds" if most > 1 else "one seed, so that differences may be chance"
    )
    return "\n".join([f"{seeds}{f' ({fewer})' if fewer else ''}", *remarks])


def _write_report(data: DataLike, runs: Sequence[Run], out: Path) -> Path | None:
    """Write the page of all runs, on rank 0. A reason that it cannot be written is logged, and the results remain."""
    if not is_rank_zero():
        return None
    logger.info(f"report: drawing features and views of {len(runs)} runs")
    try:
        with _brief_log():
            return write_report(runs, out / "report.html", None if is_path(data) else data)
    except InputError as error:
        logger.warning(f"no report: {error}")
        return None
