"""The result of a run: its accuracy against raw pixels and the untrained encoder."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from mec.errors import InputError
from mec.models.baseline import START_FILE
from mec.pretraining.advice import FEW_IMAGES, PRETRAINED
from mec.pretraining.run_folder import RECIPE_FILE, Run
from mec.report.record import PROBE_NAMES, Columns, Record, find_data, find_weights
from mec.results import TOP_5, Metric, Result

ROW_NAMES = {"encoder": "trained encoder", "start": "encoder at the start", "untrained": "untrained encoder"}
FEW_STEPS = 1_000
"""Steps below which a run is usually too short."""


class Bar(NamedTuple):
    """A row of the result that is compared: its name, its value as text, and in [0, 1]."""

    name: str
    text: str
    fraction: float


@dataclass(frozen=True)
class Headline:
    """The result of a run."""

    run: str
    level: Literal["ok", "note", "warning"]
    title: str  # the outcome, in a few words
    text: str  # the numbers, in a sentence
    bars: list[Bar]  # encoder first; empty without an evaluation
    details: list[str]  # more sentences: other evaluations with the same outcome, advice
    commands: list[str]  # that run when they are pasted into a shell


class Comparison(NamedTuple):
    """A metric of the encoder, and of the other rows of the same table."""

    result: Result
    metric: Metric
    baselines: dict[str, Metric]

    def below(self) -> list[str]:
        """Return the baselines that have a higher value than the encoder."""
        return [name for name, metric in self.baselines.items() if metric.value > self.metric.value]

    def clearly_below(self) -> list[str]:
        """Return the baselines that exceed the encoder by two standard errors of the difference."""
        return [name for name, m in self.baselines.items() if m.value - self.metric.value > 2 * self._error(m)]

    def not_above(self) -> list[str]:
        """Return the baselines that the encoder does not exceed by two standard errors of the difference."""
        return [name for name, m in self.baselines.items() if self.metric.value - m.value <= 2 * self._error(m)]

    def _error(self, other: Metric) -> float:
        """Return the standard error of a difference of accuracies, 0 where the number of test images is unknown."""
        images = self.result.dataset.counts.get("test", 0)
        variances = [m.value * (1 - m.value) for m in (self.metric, other)]
        return math.sqrt(max(0.0, sum(variances)) / images) if images else 0.0

    @property
    def name(self) -> str:
        return f"{self.result.task} {self.metric.name}"

    def describe(self, rows: Sequence[str]) -> str:
        """Return the values of some rows: "44.4 % with the trained encoder, against 60.3 % with raw pixels"."""
        against = " and ".join(f"{_percent(self.baselines[row])} with {_row_name(row)}" for row in rows)
        return f"{_percent(self.metric)} with the trained encoder" + (f", against {against}" if against else "")


def _percent(metric: Metric) -> str:
    return f"{metric} %"


def _row_name(row: str) -> str:
    return f"the {ROW_NAMES[row]}" if row in ROW_NAMES else row


def newest_results(record: Record) -> list[Result]:
    """Return the newest result of each task, protocol and dataset, newest first; those of the run's own encoder, if the
    folder holds results of several."""
    results = [result for result in record.results if "encoder" in result.rows]
    own = [result for result in results if Path(result.encoder).name == record.folder.name]
    newest = {(r.task, r.protocol.describe(), str(r.dataset)): r for r in own or results}
    return list(reversed(newest.values()))


def comparisons(result: Result) -> list[Comparison]:
    """Compare the encoder with every other row: all accuracies of a classification; else the first metric, because
    lower is better for some of the others."""
    names = [m.name for m in result.rows["encoder"] if m.unit == "fraction" and math.isfinite(m.value)]
    if "classes" not in result.dataset.counts:
        names = names[:1]
    rows = {row: {metric.name: metric for metric in metrics} for row, metrics in result.rows.items()}
    encoder = rows.pop("encoder")
    return [
        Comparison(result, encoder[n], {r: m[n] for r, m in rows.items() if n in m and math.isfinite(m[n].value)})
        for n in names
        if not n.endswith(TOP_5.strip())
    ]


def headline(record: Record) -> Headline:
    """Return the result of a run. Its level is ok if no metric is below raw pixels or the untrained encoder, and the
    first is clearly above."""
    compared = [c for result in newest_results(record) for c in comparisons(result)]
    if not compared:
        return without_evaluation(record)
    below = [c for c in compared if c.below()]
    first = next((c for c in below if c.clearly_below()), next(iter(below), compared[0]))
    images = first.result.dataset.counts.get("test")
    where = f"{images:,} test images of {first.result.dataset.name}" if images else str(first.result.dataset)
    text = f"{first.describe(list(first.baselines))} ({first.name}, {where})."
    compared_rows = {"encoder": first.metric, **first.baselines}
    bars = [Bar(ROW_NAMES.get(name, name), _percent(m), m.value) for name, m in compared_rows.items()]
    details: list[str] = []
    commands: list[str] = []
    level: Literal["ok", "note", "warning"] = "ok"
    if below:
        level = "warning"
        is_clear = bool(first.clearly_below())
        title = f"{'Worse' if is_clear else 'Not better'} than {_join(first.below())}"
        if not is_clear:
            details.append(f"The difference is within two standard errors of {images or 0:,} test images.")
        if others := [f"{c.name}: {c.describe(c.below())}" for c in below[1:]]:
            details.append(f"Also below: {'; '.join(others)}.")
        advice, commands = _advice(record, below_start=any("start" in c.below() for c in below))
        details += advice
    elif not first.baselines:
        level, title = "note", "Not compared with raw pixels and the untrained encoder"
        details.append("An accuracy alone says little. The evaluation compares when --baselines is true.")
    elif ties := first.not_above():
        level, title = "note", f"Not clearly better than {_join(ties)}"
        details.append(f"The difference is within two standard errors of {images or 0:,} test images.")
    else:
        title = f"Better than {_join(list(first.baselines))}"
    if record.outcome is not None:
        details.append(f"At the end of the training, on held-out images: {record.outcome}.")
    return Headline(record.name, level, title, text, bars, details, commands)


def _join(rows: Sequence[str]) -> str:
    return " and ".join(_row_name(row) for row in rows)


def _advice(record: Record, below_start: bool) -> tuple[list[str], list[str]]:
    """Return what to do when an encoder is worse than a baseline, and commands for it."""
    images, details = record.environment.get("images"), []
    commands: list[str] = []
    if record.steps and record.steps < FEW_STEPS and not below_start:
        details.append(f"The run had {record.steps:,} steps, which are few: raise epochs, or lower batch_size.")
    if below_start:
        details.append(
            "The run started from trained weights. Keep more of them: lower optimizer.backbone_lr, raise freeze, or "
            "train for fewer epochs."
        )
    elif isinstance(images, int) and images < FEW_IMAGES and not (record.folder / START_FILE).exists():
        commands += _command(record, "evaluate knn", PRETRAINED)
        command = (
            "; the first command evaluates some (it downloads them), the second one adapts them" if commands else ""
        )
        if commands:
            adapted = str(record.folder.with_name(f"{record.folder.name}-adapted"))
            commands.append(shlex.join(["mec", "pretrain", str(_data(record)), "--out", adapted, "--init", PRETRAINED]))
        details.append(
            f"{images:,} images are few for training from random weights. Weights pretrained on ImageNet are usually "
            f"far better{command}."
        )
    details.append("Check the augmentations: both views of a pair must show the same thing.")
    data, recipe = _data(record), record.folder / RECIPE_FILE
    with suppress(InputError, OSError):  # a recipe that is damaged, or of another version
        Run(record.folder).recipe()
        if data is not None and "view_transform" not in record.recipe:
            sheet = str(record.folder / "views.png")
            commands.append(shlex.join(["mec", "views", data, "--out", sheet, "--recipe", str(recipe)]))
    return details, commands


def without_evaluation(record: Record) -> Headline:
    """Return the result of a run that has no evaluation: its outcome or its last probes, and a first command."""
    probes = last_probes(record.probes)
    values = ", ".join(f"{PROBE_NAMES.get(n, n)} {100 * value:.1f} %" for n, value in probes.items())
    title = "Not compared with raw pixels and the untrained encoder yet" if values else "No accuracy measured yet"
    text = f"Online probes of held-out images, the last ones: {values}." if values else ""
    details: list[str] = []
    commands: list[str] = []
    bars: list[Bar] = []
    level: Literal["ok", "note", "warning"] = "note"
    if (outcome := record.outcome) is not None:
        level, title, text = outcome.level, outcome.verdict[:1].upper() + outcome.verdict[1:], outcome.method
        rows = outcome.accuracies.items()
        bars = [Bar(ROW_NAMES.get(n, n), f"{100 * v:.1f} ± {100 * std:.1f} %", v) for n, (v, std) in rows]
    if not record.recipe:
        title, details = "No accuracy to compare", ["The results below have no row of an encoder with percentages."]
    elif record.environment.get("classes") == 0:
        details = ["The images have no labels to measure an accuracy with. To look for near-duplicates and outliers:"]
        if record.checks:
            text = record.checks
        out = str(record.folder / "embeddings.parquet")
        commands = _command(record, "embed", None, "--out", out, "--near-duplicates", "--outliers")
    elif commands := _command(record, "evaluate knn"):
        details = ["A first evaluation:"]
    return Headline(record.name, level, title, text, bars, details if commands or not record.recipe else [], commands)


def last_probes(probes: Columns) -> dict[str, float]:
    """Return the last finite value of each online probe."""
    finite = {n: v[[math.isfinite(x) for x in v]] for n, v in probes.items() if n not in ("epoch", "step", "seconds")}
    return {name: float(values[-1]) for name, values in finite.items() if len(values)}


def _data(record: Record) -> str | None:
    """Return the images of a run as an argument that is valid in any folder; None if they are not recorded."""
    data = find_data(record.folder, None)
    if not isinstance(data, str):
        return None
    return str(Path(data).resolve()) if Path(data).exists() else data


def _command(record: Record, command: str, encoder: str | None = None, *options: str) -> list[str]:
    """Return a command on the run's images with its encoder, or with another; none if one of them is missing."""
    data, weights = _data(record), find_weights(record.folder)
    if encoder is None and isinstance(weights, tuple):
        encoder = str(record.folder if record.finished else weights[0])
        if not record.finished and command.startswith("evaluate"):  # the result of a checkpoint belongs to the run too
            options = *options, "--out", str(record.folder)
    if data is None or encoder is None or (record.has_own_network and encoder != PRETRAINED):
        return []
    return [shlex.join(["mec", *command.split(), data, "--encoder", encoder, *options])]
