"""Which objective learns most from the same compute, tuned and with its published settings?

Every run has the same encoder, projector, views, optimizer and number of FLOPs; only the objective differs, and the
learning rate, which no paper gives for this encoder. ``rate`` compares four learning rates for the published settings
of each objective on held-out train images, ``tune`` compares its trials at the best of them. ``test`` trains on all
train images with the published settings and with the best trial, and looks at the test images. A run whose row is in
the json already is not repeated.

python benchmarks/objectives.py rate --scale .5 --cifar10 FOLDER --caltech101 FOLDER --fashion_mnist FILE.npz
python benchmarks/objectives.py tune --scale .5 --cifar10 FOLDER ...
python benchmarks/objectives.py test --seeds [0,1,2] --cifar10 FOLDER ...
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from machine import write
from mec.objectives import create_objective
from run_pool import read_rows, run_jobs, without_row
from short_runs import DATASETS, METRICS, EncoderName, Run, create, evaluate, load_images, pretrain, split_images

Stage = Literal["rate", "tune", "test"]

NAME = "objectives"
QUESTION = "which objective learns most from the same compute, with published settings and tuned"
LR_FACTORS = (0.25, 0.5, 1.0, 2.0)
BEYOND = {0.25: 0.125, 2.0: 4.0}
"""A fifth learning rate, where the best of the four is the lowest or the highest; tried if ``rate`` is run again."""
SETTINGS = ("stage", "encoder", "views", "scale")
"""Settings of a row that are those of a summary."""


@dataclass(frozen=True)
class Trial:
    """An objective with its options. ``momentum`` is that of the teacher of objectives that have one."""

    objective: str
    options: dict[str, Any] = field(default_factory=dict)
    momentum: float = 0.99

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name, value in self.options.items()]
        return ", ".join(parts + [f"momentum {self.momentum}"] * (self.objective == "byol")) or "default"


# The first trial of each objective has its published settings; all that have settings have four trials. MEC is listed
# four times: the default, whose distortion sweeps, constants, the pooled form, whose rate had the weight 1 before, and
# the paper's, with a predictor and a teacher.
TRIALS = {
    "MEC": [
        Trial("mec", {"distortion": ends})
        for ends in ([1 / 2048, 1 / 8], [1 / 2048, 1.0], [1 / 16384, 1 / 8], [1 / 128, 1.0])
    ],
    "MEC, constant": [Trial("mec", {"distortion": d}) for d in (1 / 32, 1 / 128, 1 / 512, 1 / 2048)],
    "MEC, pooled": [
        Trial("mec", {"form": "pooled", "distortion": 1 / 32, "rate_weight": w}) for w in (1.0, 0.7, 2.0, 3.0)
    ],
    "MEC, the paper's": [
        Trial("mec", {"form": "cross", "order": 4, "distortion": d, "warmup_factor": 8.0}, momentum=0.996)
        for d in (1 / 32, 1 / 8, 1 / 16, 1 / 4)
    ],
    "SimCLR": [Trial("simclr", {"temperature": t}) for t in (0.1, 0.05, 0.2, 0.5)],
    "VICReg": [
        Trial("vicreg", {"invariance": i, "variance": v, "covariance": c})
        for i, v, c in ((25.0, 25.0, 1.0), (25.0, 25.0, 5.0), (10.0, 25.0, 1.0), (10.0, 25.0, 5.0))
    ],
    "Barlow Twins": [Trial("barlow-twins", {"redundancy": r}) for r in (0.005, 0.00125, 0.02, 0.08)],
    "SIGReg": [Trial("sigreg", {"weight": w}) for w in (0.05, 0.02, 0.1, 0.2)],
    "BYOL": [Trial("byol", momentum=m) for m in (0.99, 0.9, 0.95, 0.98)],
    "SimSiam": [Trial("simsiam")],
    "untrained": [Trial("untrained")],
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A run. ``scale`` multiplies the budget of the dataset."""

    dataset: str
    method: str
    trial: Trial
    lr_factor: float
    stage: Stage
    encoder: EncoderName
    views: int
    scale: float
    seed: int

    def as_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"trial": str(self.trial)}


def run_job(job: Job, folder: Path) -> dict[str, Any]:
    """Train and evaluate."""
    dataset, trial = DATASETS[job.dataset], job.trial
    held_out = 0 if job.stage == "test" else dataset.held_out
    x, labels, queries, query_labels = split_images(torch.load(folder / f"{job.dataset}.pt"), held_out)
    if trial.objective == "untrained":
        torch.manual_seed(job.seed)
        encoder, figures = create(job.encoder, dataset, x), {}
    else:
        budget = dataset.tflop * job.scale
        run = Run(job.encoder, job.views, budget, job.seed, trial.momentum, job.lr_factor)
        objective = create_objective(trial.objective, trial.options)
        if trial.options.get("form") == "cross":
            objective.targets = "teacher"  # type: ignore[assignment]
        encoder, figures = pretrain(run, objective, dataset, x)
    return figures | evaluate(encoder, dataset, x, labels, queries, query_labels)


def score(row: dict[str, Any]) -> float:
    """Accuracy by which trials are chosen: the mean of kNN and linear."""
    return float(row["kNN"] + row["linear"]) / 2


def best(key: str, rows: list[dict[str, Any]], **expected: Any) -> Any:
    """Return the value of ``key`` with the best mean score among the rows that are as expected; None without rows."""
    scores: dict[Any, list[float]] = {}
    for row in rows:
        if all(row[name] == value for name, value in expected.items()):
            scores.setdefault(row[key], []).append(score(row))
    return max(scores, key=lambda value: float(np.mean(scores[value])), default=None)


def jobs_of(
    stage: Stage, dataset: str, method: str, rows: list[dict[str, Any]], encoder: EncoderName, *rest: Any
) -> list[Job]:
    """Return the jobs of a method in a stage, which depend on the rows of the stages before; ``rest`` ends a Job."""
    trials = TRIALS[method]
    chosen = {"dataset": dataset, "method": method, "encoder": encoder}
    factors = LR_FACTORS if trials[0].objective != "untrained" else (1.0,)
    if stage != "rate":
        factors = (best("lr_factor", rows, stage="rate", **chosen) or 1.0,)
    if stage == "test":
        tuned = best("trial", rows, stage="tune", **chosen)
        trials = trials[:1] + [trial for trial in trials[1:] if str(trial) == tuned]
    if stage == "rate":
        trials = trials[:1]
        edge = BEYOND.get(best("lr_factor", rows, stage="rate", **chosen))
        factors = factors if edge is None else (*factors, edge)
    return [Job(dataset, method, t, f, stage, encoder, *rest) for t, f in itertools.product(trials, factors)]


def main(
    stage: Stage,
    cifar10: str | None = None,
    caltech101: str | None = None,
    fashion_mnist: str | None = None,
    digits: str | None = "digits",
    methods: list[str] | None = None,
    seeds: list[int] = [0],  # noqa: B006
    scale: float = 1.0,
    encoder: EncoderName = "compact",
    views: int = 2,
) -> None:
    """Run the trials that are not in the json yet, one on each core, and print the means over seeds.

    Args:
        stage: rate: learning rates, on held-out train images; tune: all trials, on the same; test: published settings
            and the best trial, on test images.
        cifar10: folder or name of the dataset; null leaves it out, as for the others.
        caltech101: folder of the dataset.
        fashion_mnist: folder, .npz file or name of the dataset.
        digits: name of the dataset.
        methods: names of the methods; null: all.
        seeds: seeds of weights, batches and views.
        scale: factor of the budget of each dataset.
        encoder: compact, or the narrow resnet18.
        views: number of views of each image.
    """
    sources = {"cifar10": cifar10, "caltech101": caltech101, "fashion-mnist": fashion_mnist, "digits": digits}
    rows = read_rows(NAME)
    jobs = [
        job
        for dataset, source in sources.items()
        for seed, method in itertools.product(seeds, methods or TRIALS)
        for job in jobs_of(stage, dataset, method, rows, encoder, views, scale, seed)
        if source is not None
    ]
    if missing := without_row(jobs, rows):
        with tempfile.TemporaryDirectory() as folder:
            for dataset in {job.dataset for job in missing}:
                torch.save(load_images(str(sources[dataset]), DATASETS[dataset]), Path(folder) / f"{dataset}.pt")
            rows = run_jobs(NAME, QUESTION, missing, partial(run_job, folder=Path(folder)))
    summaries = [summarize(rows, *key) for key in sorted({tuple(row[name] for name in SETTINGS) for row in rows})]
    write(NAME, QUESTION, rows=rows, summaries=summaries)
    selected = [row for row in rows if tuple(row[name] for name in SETTINGS) == (stage, encoder, views, scale)]
    print_table(selected)
    print_summary(summarize(rows, stage, encoder, views, scale))


def summarize(rows: list[dict[str, Any]], stage: str, encoder: str, views: int, scale: float) -> dict[str, Any]:
    """Return the accuracies of each method with its published settings and tuned, on each dataset, as [mean, standard
    deviation] over the seeds, and their means over the datasets. The learning rate is the best of the stage rate."""
    rates = {
        (dataset, method): best("lr_factor", rows, stage="rate", encoder=encoder, dataset=dataset, method=method)
        for dataset, method in itertools.product(DATASETS, TRIALS)
    }
    rows = [row for row in rows if tuple(row[name] for name in SETTINGS) == (stage, encoder, views, scale)]
    methods: dict[str, Any] = {}
    for method, trials in TRIALS.items():
        for kind in ("published", "tuned"):
            by_dataset: dict[str, Any] = {}
            by_seed: dict[int, list[float]] = {}
            for dataset in DATASETS:
                chosen = [row for row in rows if (row["dataset"], row["method"]) == (dataset, method)]
                published = [row for row in chosen if row["trial"] == str(trials[0])]
                if kind == "tuned" and stage == "tune":
                    chosen = [row for row in chosen if row["trial"] == best("trial", chosen)]
                elif kind == "tuned" and stage == "test":  # a row of another trial only if tuning chose it
                    chosen = [row for row in chosen if row["trial"] != str(trials[0])] or published
                elif kind == "published":
                    chosen = published
                else:
                    continue
                if (rate := rates[dataset, method]) is not None:
                    chosen = [row for row in chosen if row["lr_factor"] == rate]
                if chosen:
                    by_dataset[dataset] = _over_seeds(chosen)
                for row in chosen:
                    by_seed.setdefault(row["seed"], []).append(score(row))
            if by_dataset:
                means = [float(np.mean(values)) for values in by_seed.values()]
                overall = {"mean": [float(np.mean(means)), float(np.std(means))]}
                methods.setdefault(method, {})[kind] = by_dataset | overall
    return {**dict(zip(SETTINGS, (stage, encoder, views, scale), strict=True)), "methods": methods}


def _over_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    values = {metric: [row[metric] for row in rows] for metric in METRICS} | {"score": [score(row) for row in rows]}
    return {"seeds": len(rows)} | {name: [float(np.mean(v)), float(np.std(v))] for name, v in values.items()}


def print_summary(summary: dict[str, Any]) -> None:
    """Print kNN / linear of each method and dataset, and the mean over the datasets, best first."""
    kinds = [(m, k, v) for m, values in summary["methods"].items() for k, v in values.items()]
    datasets = [name for name in DATASETS if any(name in values for _, _, values in kinds)]
    table = Table("method", "settings", *datasets, "mean", title="kNN / linear in percent, and their mean")
    for method, kind, values in sorted(kinds, key=lambda item: -item[2]["mean"][0]):
        cells = [
            f"{v['kNN'][0]:.1f} / {v['linear'][0]:.1f} ({v['seeds']})" if (v := values.get(d)) else "" for d in datasets
        ]
        table.add_row(method, kind, *cells, "{:.1f} ± {:.1f}".format(*values["mean"]))
    Console().print(table)


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(title="accuracy in percent, mean over seeds")
    for column in ("dataset", "method", "trial", "seeds", *METRICS):
        table.add_column(column)
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["method"], row["trial"]), []).append(row)
    for group in sorted(groups):
        means = (f"{np.mean([row[metric] for row in groups[group]]):.1f}" for metric in METRICS)
        table.add_row(*group, str(len(groups[group])), *means)
    Console().print(table)


if __name__ == "__main__":
    auto_cli(main)
