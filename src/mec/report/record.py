"""Read run folders, noting damaged files, and check their health; find the encoder and the training images."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from mec.data.dataset import DataLike
from mec.data.datasets.video import is_video
from mec.errors import InputError
from mec.models.checkpoint_files import checkpoint_step, is_intact, sorted_by_step
from mec.models.io import WEIGHTS_FILE
from mec.models.own_network import MODULE_PREFIX
from mec.pretraining.health import CHECKS, PATIENCE, HealthMonitor
from mec.pretraining.outcome import OUTCOME_FILE, Outcome, read_outcome
from mec.pretraining.recipe import Recipe
from mec.pretraining.run_folder import DATA_OBJECT, ENVIRONMENT_FILE, RECIPE_FILE
from mec.pretraining.start_guard import GUARD_FILE
from mec.results import RESULTS, Result

logger = logging.getLogger("mec")

METRICS, PROBES, CORRUPT = "metrics.csv", "probes.csv", "corrupt.csv"
RECORD_FILES = (RECIPE_FILE, ENVIRONMENT_FILE, METRICS, PROBES, RESULTS, CORRUPT, WEIGHTS_FILE)
PROBE_NAMES = {"knn_top1": "kNN", "linear_top1": "linear"}
DATA_HINT = "pass their current location with --data"

Columns = dict[str, NDArray[np.float64]]
"""Columns of a csv file by name, all of one length, NaN for empty cells."""


@dataclass(frozen=True)
class Missing:
    """Stands for content that is not available. ``reason`` is a sentence for the reader of the page."""

    reason: str


class HealthMessage(NamedTuple):
    """The outcome of a health check of a run, in one or two sentences."""

    run: str
    level: Literal["ok", "note", "warning"]
    text: str


@dataclass(frozen=True)
class Record:
    """The contents of a run folder."""

    folder: Path  # absolute
    name: str  # last parts of the path, unique among the runs of the report
    recipe: dict[str, Any]  # setting ("optimizer.lr") -> value; empty for folders with evaluations only
    environment: dict[str, Any]  # contents of environment.json
    metrics: Columns  # of metrics.csv
    probes: Columns  # of probes.csv
    results: list[Result]  # valid lines of results.jsonl, oldest first
    outcome: Outcome | None  # of outcome.json
    checks: str  # the last row of guard.csv against the first, as a sentence; empty without
    num_corrupt: int  # images
    finished: bool  # whether the trained encoder has been written
    notes: list[str]  # sentences about files that cannot be read

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps per epoch; None if the environment is not recorded."""
        images, batch_size = self.environment.get("images"), self.environment.get("batch_size")
        if not isinstance(images, int) or not isinstance(batch_size, int) or batch_size < 1:
            return None
        return images // batch_size or None

    @property
    def objective(self) -> str:
        """Name of the recipe's objective, or description of an own one."""
        return str(self.recipe.get("objective") or self.recipe.get("objective.name", "mec"))

    @property
    def has_own_network(self) -> bool:
        """Whether the encoder is a network that is not from timm, which commands cannot load."""
        return str(self.recipe.get("backbone")).startswith(MODULE_PREFIX)

    @property
    def steps_logged(self) -> int:
        """Number of steps up to the last row of metrics.csv, whether its rows count from 0 or from 1."""
        steps = self.metrics.get("step", np.empty(0))
        return int(steps[-1]) + int(steps[0] == 0) if len(steps) else 0

    @property
    def steps(self) -> int:
        """Number of completed steps. The last of them may have no row in metrics.csv."""
        return (self.finished and self.planned_steps) or self.steps_logged

    @property
    def planned_steps(self) -> int | None:
        """Number of steps of the finished run; None if it is unknown."""
        steps, epochs = self.recipe.get("steps"), self.recipe.get("epochs")
        if isinstance(steps, int):
            return steps
        return self.steps_per_epoch * epochs if self.steps_per_epoch and isinstance(epochs, int) else None

    @property
    def planned_epochs(self) -> int | None:
        """Number of epochs of the finished run, of which the last may be incomplete; None if it is unknown."""
        return -(-self.planned_steps // self.steps_per_epoch) if self.planned_steps and self.steps_per_epoch else None


def read_records(runs: Sequence[str | os.PathLike[str]]) -> list[Record]:
    """Read run folders in order, without duplicates. Folders with neither a recipe nor results are passed over with a
    warning. Raise InputError if no other is left, or if one does not exist."""
    given = list(dict.fromkeys(Path(run).expanduser().resolve() for run in runs))
    if not given:
        raise InputError("runs: expected at least one run folder")
    folders = [folder for folder in given if any((folder / file).is_file() for file in (RECIPE_FILE, RESULTS))]
    others = [str(folder) for folder in given if folder not in folders]
    gone = [folder for folder in others if not os.path.lexists(folder)]
    if gone:
        raise InputError(f"runs: {gone[0]} does not exist")
    if not folders:
        hint = f"; its folders do: {others[0]}/*" if any(Path(others[0]).glob(f"*/{RECIPE_FILE}")) else ""
        raise InputError(f"runs: {others[0]} contains no run (no {RECIPE_FILE}){hint}")
    if others:
        logger.warning(f"runs: passed over {len(others)} of {len(given)} that contain no run: {', '.join(others)}")
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]).lstrip("/") or "/" for folder in folders]
        if len(set(names)) == len(names):  # the shortest ends of the paths, all with as many parts, that are distinct
            break
    return [_read_record(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read_record(folder: Path, name: str) -> Record:
    notes: list[str] = []
    return Record(
        folder=folder,
        name=name,
        recipe=_read_recipe(folder, notes),
        environment=_mapping(folder / ENVIRONMENT_FILE, json.loads, notes),
        metrics=_columns(folder / METRICS, notes),
        probes=_columns(folder / PROBES, notes),
        results=read_results(folder / RESULTS, notes),
        outcome=_read_outcome(folder, notes),
        checks=_describe_checks(_columns(folder / GUARD_FILE, notes)),
        num_corrupt=max(0, len(_read_text(folder / CORRUPT, notes).splitlines()) - 1),  # without the header
        finished=(folder / WEIGHTS_FILE).is_file(),
        notes=notes,
    )


def _describe_checks(columns: Columns) -> str:
    """Return the last check of a run against its start as a sentence; empty without one."""
    if len(columns.get("score", ())) < 2:
        return ""
    start, best, last = columns["score"][0], columns["score"].max(), columns["score"][-1]
    kept = f", and {columns['kept_neighbors'][-1]:.0%} of the start's nearest neighbors kept"
    return (
        f"Checks on training images, from 0 to 1: {last:.3f} at the end, {start:.3f} with the encoder at the start"
        f"{f', at most {best:.3f} in between' if best > max(start, last) else ''}{kept}. Higher is better; without "
        "labels, it shows that the encoder was not spoiled, not that it is better for your classes."
    )


def _read_outcome(folder: Path, notes: list[str]) -> Outcome | None:
    values = _mapping(folder / OUTCOME_FILE, json.loads, notes)
    outcome = read_outcome(values)
    if values and outcome is None:
        notes.append(f"{OUTCOME_FILE} is not shown: it is damaged, or of another version.")
    return outcome


def _read_recipe(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return the settings by dotted name; first the objects that were passed in their place, as "objective" and not
    "parts.objective"."""
    settings = _flatten(_mapping(folder / RECIPE_FILE, yaml.safe_load, notes))
    parts = {name.removeprefix("parts."): text for name, text in settings.items() if name.startswith("parts.")}
    return parts | {name: value for name, value in settings.items() if name.removeprefix("parts.") not in parts}


def _read_text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror}).")
        return ""


def _mapping(path: Path, parse: Callable[[str], Any], notes: list[str]) -> dict[str, Any]:
    text = _read_text(path, notes)
    with suppress(ValueError, yaml.YAMLError):
        values = parse(text) if text else {}
        if isinstance(values, dict):
            return {str(key): value for key, value in values.items()}
    notes.append(f"{path.name} cannot be read.")
    return {}


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: {"optimizer": {"lr": 1}} -> {"optimizer.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        is_nested = isinstance(value, dict) and value
        flat |= _flatten(value, f"{prefix}{name}.") if is_nested else {f"{prefix}{name}": value}
    return flat


def _columns(path: Path, notes: list[str]) -> Columns:
    """Read a csv file of numbers. Damaged lines are noted, except an incomplete last one: the run may be writing it."""
    lines = _read_text(path, notes).replace("\0", "").rpartition("\n")[0].splitlines()
    reader = csv.reader(lines)
    names = next(reader, [])
    if "step" not in names:
        if lines:
            notes.append(f"{path.name} is not shown: it has no column named step.")
        return {}
    values: list[list[float]] = []
    damaged: list[int] = []
    for row in reader:
        try:
            numbers = [float(field or math.nan) for field in row]
        except ValueError:
            numbers = []
        if len(numbers) == len(names) and math.isfinite(numbers[names.index("step")]):
            values.append(numbers)
        else:
            damaged.append(reader.line_num)
    _note_damaged(path, damaged, notes)
    return dict(zip(names, np.array(values).T, strict=True)) if values else {}


def _note_damaged(path: Path, lines: Sequence[int], notes: list[str]) -> None:
    if lines:
        numbers = ", ".join(map(str, lines[:10])) + (", ..." if len(lines) > 10 else "")
        notes.append(f"{path.name}: skipped {len(lines)} damaged line{'s' if len(lines) > 1 else ''} ({numbers}).")


def read_results(path: Path, notes: list[str]) -> list[Result]:
    """Read the valid lines of a results.jsonl, oldest first. Damaged ones are noted."""
    results: list[Result] = []
    invalid: list[int] = []
    for number, line in enumerate(_read_text(path, notes).split("\n"), 1):
        try:
            if line.strip():
                results.append(Result.from_dict(json.loads(line)))
        except ValueError:
            invalid.append(number)
    _note_damaged(path, invalid, notes)
    return results


def check_health(record: Record) -> list[HealthMessage]:
    """Return a warning for each failed check, or one message of level ok. Empty for folders without a recipe."""
    metrics = record.metrics
    if not record.recipe:
        return []
    if not metrics:
        return [HealthMessage(record.name, "note", "No step has been written to metrics.csv yet.")]
    monitor = HealthMonitor(record.recipe.get)
    for row in np.stack(list(metrics.values()), axis=1).tolist():
        monitor.add(dict(zip(metrics, row, strict=True)))
    warnings = [HealthMessage(record.name, "warning", monitor.verdicts[k]) for k in CHECKS if k in monitor.verdicts]
    return warnings or [HealthMessage(record.name, "ok", _describe_trend(record))]


def _describe_trend(record: Record) -> str:
    """Compare the means of the first and the last measurements after the warm-up."""
    nothing = np.full(len(record.metrics["step"]), np.nan)
    lr, rank, loss = (record.metrics.get(name, nothing) for name in ("lr", "effective_rank", "loss"))
    start = int(np.nanargmax(lr)) if np.isfinite(lr).any() else 0
    rank, loss = (values[start:][np.isfinite(values[start:])] for values in (rank, loss))
    count = min(len(rank), len(loss))
    if count >= 2 * PATIENCE:
        return (
            "No problem found. Since the warm-up, the effective rank of the codes went from "
            f"{rank[:PATIENCE].mean():.1f} to {rank[-PATIENCE:].mean():.1f} and the loss from "
            f"{loss[:PATIENCE].mean():.3f} to {loss[-PATIENCE:].mean():.3f} (means of {PATIENCE} measurements)."
        )
    if record.finished:
        return f"No problem found. Measurements after the warm-up: {count}, too few for a trend; lower log_every."
    return f"No problem found so far. The learning rate {'has just peaked' if count > 1 else 'is still warming up'}."


def find_weights(run: Path) -> tuple[Path, str] | Missing:
    """Return file and description of a finished run's encoder, or of an unfinished one's newest intact checkpoint."""
    if (run / WEIGHTS_FILE).exists():
        return run / WEIGHTS_FILE, "the trained encoder"
    with suppress(OSError):  # the run is still training and has deleted a checkpoint
        for path in reversed(sorted_by_step(run / "checkpoints")):
            if is_intact(path):
                return path, f"the encoder after {checkpoint_step(path):,} steps"
            logger.warning(f"passed over {path}: the checkpoint is damaged")
    return Missing("The run has no checkpoint yet. Training writes one every few minutes.")


def find_data(run: Path, data: DataLike | None) -> DataLike | Missing:
    """Return ``data``, or the dataset that the run was trained on if ``data`` is None."""
    if data is not None:
        return os.fspath(data) if isinstance(data, os.PathLike) else data
    try:
        environment = json.loads((run / ENVIRONMENT_FILE).read_text())
        if DATA_OBJECT in environment:
            return Missing("The training images were passed as an object; pass their location with --data.")
        recorded = str(environment["data"])
        # a relative path is relative to the folder that the run was started in
        absolute = Path(environment.get("working_directory", ".")) / recorded
        return str(absolute) if absolute.exists() and not Path(recorded).exists() else recorded
    except (OSError, ValueError, KeyError, TypeError):
        return Missing(f"The run has no record of its training images; {DATA_HINT}.")


def frame_stride(recipe: Recipe, data: DataLike) -> int | None:
    return recipe.frame_stride if isinstance(data, str) and is_video(Path(data).expanduser()) else None


def missing_data(data: DataLike | None, error: InputError) -> Missing:
    """Return the reason that the training images cannot be opened. Raise ``error`` if the user passed ``data``."""
    if data is not None:
        raise error
    reason = str(error).splitlines()[-1].removeprefix("data: ")
    return Missing(f"The training images cannot be opened ({reason}); {DATA_HINT}.")


def clip(value: object, max_length: int) -> str:
    """Shorten text to ``max_length`` characters by cutting out the middle."""
    text, tail = str(value), max_length // 3
    return text if len(text) <= max_length else f"{text[: max_length - tail - 1]}…{text[-tail:]}"
