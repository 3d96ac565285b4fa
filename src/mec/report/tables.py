"""Tables of the report: settings, environment and evaluations of the runs, side by side.

Contains only published numbers that were read in the source itself; the paper's tables have more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple

import numpy as np

from mec.pretraining.recipe_files import make_recipe
from mec.report.record import METRICS, Record
from mec.results import NO_VALUE, Metric, Result, cells, titles, to_metrics

MAIN_SETTINGS = (
    "encoder", "view_transform", "backbone", "image_size", "epochs", "minutes", "steps", "batch_size", "objective",
    "objective.name", "objective.form", "objective.distortion", "objective.rate_weight", "objective.order",
    "projector.output_dim", "teacher.enabled", "optimizer.name", "optimizer.lr", "seed",
)  # fmt: skip
"""Settings in the table of a single run."""
MEC_CODE, SIMSIAM = "official code's README", "SimSiam paper (Chen and He, CVPR 2021)"
UNITRACK = "UniTrack's docs/RESULTS.md"
IMAGENET = {"train": 1_281_167, "test": 50_000, "classes": 1000}
VOC = {"train": 16_551, "test": 4_952, "classes": 20}
COCO = {"train": 118_287, "test": 5_000, "classes": 80}
OTB = {"sequences": 100, "frames": 59_035}
"""OTB's own evaluation omits the first five of the 59,040 frames, which are those of Tiger1."""
DAVIS = {"sequences": 30, "frames": 1_999}
PROBE = {"optimizer": "LARS", "batch_size": 4096, "schedule": "cosine", "image_size": 224}
PAPER_PROBE = {**PROBE, "head": "BatchNorm and linear", "head_lr": 0.03, "epochs": 100}
SIMSIAM_PROBE = {**PROBE, "head": "linear", "head_lr": 0.02, "epochs": 90}
C4 = {"batch_size": 16, "lr": 0.02, "test_short_side": 800}
VOC_C4 = {
    **C4, "detector": "Faster R-CNN C4", "max_steps": 24_000, "train_short_side": [480, 800],
    "metric": "VOC2007 (11 points)",
}  # fmt: skip
COCO_C4 = {
    **C4, "detector": "Mask R-CNN C4", "max_steps": 90_000, "train_short_side": [640, 800], "metric": "COCO",
}  # fmt: skip
SOT = {"corrected": False, "search_size": 520, "cells": 65}
VOS = {"neighbors": 10, "context": 5, "radius": 12, "temperature": 0.05}


@dataclass(frozen=True)
class PublishedTable:
    """Published results, and the conditions for a result to be comparable with them."""

    protocol: str  # identifier of the result's protocol
    settings: Mapping[str, Any]  # settings that the result's protocol must include
    counts: Mapping[str, int]  # of the result's dataset
    source: str  # the publication and its table
    metrics: tuple[str, ...]  # columns
    rows: Mapping[str, tuple[float, ...]]  # description -> values of the columns
    row: str = "encoder"  # a row that the result must have: the rows of sot are different trackers


TABLES = (
    PublishedTable("linear-paper", PAPER_PROBE, IMAGENET, MEC_CODE, ("top-1",), {
        "MEC, ResNet-50, 100 epochs of ImageNet": (0.708,),
    }),
    PublishedTable("linear-simsiam", SIMSIAM_PROBE, IMAGENET, f"{SIMSIAM}, Table 4", ("top-1",), {
        "SimSiam, ResNet-50, 100 epochs of ImageNet": (0.681,),
        "SimSiam, ResNet-50, 200 epochs of ImageNet": (0.700,),
        "SimSiam, ResNet-50, 400 epochs of ImageNet": (0.708,),
        "SimSiam, ResNet-50, 800 epochs of ImageNet": (0.713,),
    }),
    PublishedTable("detect-voc07+12", VOC_C4, VOC, f"{SIMSIAM}, Table 5", ("AP50", "AP", "AP75"), {
        "ImageNet with labels, ResNet-50, Faster R-CNN C4, mean of 5 trials": (0.813, 0.535, 0.588),
        "MoCo v2, ResNet-50, Faster R-CNN C4, mean of 5 trials": (0.823, 0.570, 0.633),
        "SimSiam, ResNet-50, Faster R-CNN C4, mean of 5 trials": (0.824, 0.570, 0.637),
    }),
    PublishedTable("detect-coco-1x", COCO_C4, COCO, f"{SIMSIAM}, Table 5", ("AP50", "AP", "AP75"), {
        "ImageNet with labels, ResNet-50, Mask R-CNN C4": (0.582, 0.382, 0.412),
        "MoCo v2, ResNet-50, Mask R-CNN C4": (0.588, 0.392, 0.425),
        "SimSiam, ResNet-50, Mask R-CNN C4": (0.593, 0.392, 0.421),
    }),
    PublishedTable("sot-unitrack", SOT, OTB, UNITRACK, ("AUC",), {
        "xcorr with ResNet-18, ImageNet with labels, s3": (0.555,),
    }, row="xcorr"),
    PublishedTable("sot-unitrack", SOT, OTB, UNITRACK, ("AUC",), {
        "dcf with ResNet-18, ImageNet with labels, s3": (0.618,),
    }, row="dcf"),
    PublishedTable("vos-unitrack", VOS, DAVIS, UNITRACK, ("J mean",), {
        "ResNet-18, ImageNet with labels, s3": (0.584,),
    }),
)  # fmt: skip


class Row(NamedTuple):
    """A row of the table of settings or environments: its name, and a cell for each run."""

    name: str
    cells: list[str]


class EvaluationRow(NamedTuple):
    """A row of the table of an evaluation."""

    kind: Literal["encoder", "baseline", "published"]
    run: str  # empty for published results and for baselines that all runs share
    name: str  # of the baseline, or description of the published result
    cells: list[str]
    source: str = ""  # publication of a published result


class EvaluationTable(NamedTuple):
    """Results of one task, protocol and dataset."""

    task: str
    protocol: str
    dataset: str
    columns: list[str]
    rows: list[EvaluationRow]  # encoders of the runs, baselines, published results
    details: list[str]  # of each result


def settings_rows(records: Sequence[Record]) -> list[Row]:
    """Return the settings that differ between the runs, or the main settings of a single run."""
    trained = [r for r in records if r.recipe]
    names = dict.fromkeys(name for r in trained for name in r.recipe)
    if len(trained) > 1:
        names = dict.fromkeys(n for n in names if len({repr(r.recipe.get(n, "-")) for r in trained}) > 1)
    else:
        names = dict.fromkeys(n for n in MAIN_SETTINGS if n in names)
    return [Row(n, [_describe_setting(n, r.recipe) if n in r.recipe else NO_VALUE for r in records]) for n in names]


def _describe_setting(name: str, recipe: Mapping[str, Any]) -> str:
    """Return a setting, and for those that determine the spread of the codes also where they come from."""
    value, form = recipe[name], recipe.get("objective.form", "reduction")
    if name == "objective.distortion":
        text = " to ".join(map(_format_fraction, value if isinstance(value, list) else [value]))
        is_default = value == make_recipe({"objective": {"form": form}}).setting(name)
        return f"{text}, {f'the default of the {form} form' if is_default else 'chosen in the recipe'}"
    if name == "objective.rate_weight" and value == 1:
        return "1, from the bound" if form == "pooled" else "none: the form needs no weight"
    return format_value(value)


def _format_fraction(value: float) -> str:
    inverse = 1 / value
    return (
        f"1/{inverse:.0f}" if inverse > 1.5 and abs(inverse - round(inverse)) < 1e-6 * inverse else format_value(value)
    )


def run_rows(records: Sequence[Record]) -> list[Row]:
    """Return data, duration, machine and versions of the runs, without rows that are empty for all of them."""
    descriptions = [_describe_run(record) for record in records]
    rows = [Row(name, [d[name] or NO_VALUE for d in descriptions]) for name in descriptions[0]]
    return [row for row in rows if set(row.cells) != {NO_VALUE}]


def _describe_run(record: Record) -> dict[str, str]:
    def recorded(name: str) -> str:
        return format_value(record.environment.get(name, ""))

    return {
        "status": _status(record),
        "data": recorded("data"),
        "images": _images(record),
        "batch size": recorded("batch_size"),
        "duration": _duration(record),
        "started": _format_time(recorded("started")),
        "machine": recorded("platform"),
        "CPU cores": recorded("cpu_cores"),
        "GPUs": recorded("gpus"),
        "processes": recorded("world_size"),
        "precision": recorded("precision"),
        "Python": recorded("python"),
        "packages": recorded("packages"),
        "command": recorded("command"),
        "folder": str(record.folder),
    }


def format_value(value: Any) -> str:
    """Format a setting as in YAML; lists and mappings without brackets, unless they are empty."""
    if value in ([], {}):
        return str(value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(format_value(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {format_value(v)}" for k, v in value.items())
    return str(value)


def find_published(result: Result) -> list[tuple[str, list[Metric], str]]:
    """Return description, metrics and source of published results of the same protocol, settings and dataset."""
    return [
        (description, to_metrics(dict(zip(table.metrics, values, strict=True))), table.source)
        for table in TABLES
        if table.protocol == result.protocol.id
        and result.protocol.includes(table.settings)
        and table.row in result.rows
        and result.dataset.counts == table.counts
        for description, values in table.rows.items()
    ]


def evaluation_tables(records: Sequence[Record]) -> list[EvaluationTable]:
    """Group the newest result of each run and encoder by task, protocol and dataset, in order of first appearance."""
    groups: dict[tuple[str, str, str], dict[tuple[str, str], Result]] = {}
    for record in records:
        for result in record.results:  # oldest first, so that a newer one replaces it
            key = (result.task, result.protocol.describe(), str(result.dataset))
            groups.setdefault(key, {})[record.name, result.encoder] = result
    tables = []
    for key, newest in groups.items():
        counts = Counter(run for run, _ in newest)  # more than 1: a run has results of several encoders
        by_run = {run if counts[run] == 1 else f"{run}: {encoder}": result for (run, encoder), result in newest.items()}
        columns = titles(row for result in newest.values() for row in result.rows.values())
        details = [_details(run, result) for run, result in by_run.items()]
        rows = _evaluation_rows(by_run, columns)
        tables.append(EvaluationTable(*key, list(columns.values()), rows, details))
    return tables


def _evaluation_rows(results: Mapping[str, Result], columns: Mapping[str, str]) -> list[EvaluationRow]:
    encoders: list[EvaluationRow] = []
    baselines: dict[tuple[str, ...], EvaluationRow] = {}
    published: dict[tuple[str, str], EvaluationRow] = {}
    for run, result in results.items():
        for name, metrics in result.rows.items():
            values = cells(metrics, columns)
            if name == "encoder":
                encoders.append(EvaluationRow("encoder", run, "", values))
            else:
                # a baseline that is the same for several runs, such as raw pixels, has one row without a run name
                is_shared = (name, *values) in baselines
                baselines[(name, *values)] = EvaluationRow("baseline", "" if is_shared else run, name, values)
        for name, metrics, source in find_published(result):
            published[name, source] = EvaluationRow("published", "", name, cells(metrics, columns), source)
    return [*encoders, *baselines.values(), *published.values()]


def _details(run: str, result: Result) -> str:
    time, seconds = _format_time(result.time), _format_seconds(result.seconds)
    details = [f"{run}: {result.encoder}", time, seconds, result.note, result.command]
    if result.skipped:
        name, reason = next(iter(result.skipped.items()))
        details.append(f"skipped sequences: {len(result.skipped)}, the first: {name}: {reason}")
    return "; ".join(filter(None, details))


def _status(record: Record) -> str:
    if not record.recipe:
        return "evaluations only"
    if record.finished:
        return "finished"
    metrics = record.folder / METRICS
    if not metrics.is_file():
        return "not finished"
    last_update = datetime.fromtimestamp(metrics.stat().st_mtime, timezone.utc)
    return f"not finished; last update {last_update:%Y-%m-%d %H:%M} UTC"


def _images(record: Record) -> str:
    images, classes = (record.environment.get(name) for name in ("images", "classes"))
    descriptions = [f"{images:,}"] if isinstance(images, int) else []
    if isinstance(classes, int) and classes:
        descriptions.append(f"{classes:,} classes, not used for training")
    if record.num_corrupt:
        descriptions.append(f"{record.num_corrupt:,} corrupt (corrupt.csv)")
    return "; ".join(descriptions)


def _duration(record: Record) -> str:
    steps, seconds = record.steps, record.metrics.get("seconds", np.empty(0))
    descriptions = []
    if len(seconds) and math.isfinite(seconds[-1]) and record.steps_logged:
        # the steps after the last row of metrics.csv took as long as those before
        descriptions.append(_format_seconds(float(seconds[-1]) * steps / record.steps_logged))
    if steps:
        descriptions.append(f"{steps:,} step{'s' if steps > 1 else ''}")
        if record.steps_per_epoch:
            epoch = math.ceil(steps / record.steps_per_epoch)
            descriptions.append(f"epoch {epoch:,} of {format_value(record.planned_epochs)}")
    return ", ".join(descriptions)


def _format_time(time: str) -> str:
    return time.replace("T", " ").replace("+00:00", " UTC")


def _format_seconds(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 2 else f"{seconds:.0f} s"
