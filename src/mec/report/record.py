"""Read run folders: settings, environment, metrics, probes and evaluations. Damaged files are skipped and noted."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mec.errors import InputError
from mec.results import RESULTS, Result

RECIPE, ENVIRONMENT, METRICS, PROBES = "recipe.yaml", "environment.json", "metrics.csv", "probes.csv"
CORRUPT, ENCODER = "corrupt.csv", "encoder.safetensors"
RECORD_FILES = (RECIPE, ENVIRONMENT, METRICS, PROBES, RESULTS, CORRUPT, ENCODER)

Columns = dict[str, NDArray[np.float64]]
"""Columns of a csv file by name, all of one length, NaN for empty cells."""


@dataclass(frozen=True)
class Record:
    """The contents of a run folder.

    Attributes:
        folder: absolute path.
        name: last parts of the path, unique among the runs of the report.
        recipe: setting (``optimizer.lr``) -> value; empty for folders with evaluations only.
        environment: contents of environment.json.
        metrics: columns of metrics.csv.
        probes: columns of probes.csv.
        results: valid lines of results.jsonl, oldest first.
        num_corrupt: number of corrupt images.
        finished: whether the trained encoder has been written.
        notes: sentences about files that cannot be read.
    """

    folder: Path
    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    metrics: Columns
    probes: Columns
    results: list[Result]
    num_corrupt: int
    finished: bool
    notes: list[str]

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps per epoch; None if the environment is not recorded."""
        images, batch_size = self.environment.get("images"), self.environment.get("batch_size")
        if not isinstance(images, int) or not isinstance(batch_size, int) or batch_size < 1:
            return None
        return images // batch_size or None

    @property
    def last_update(self) -> datetime | None:
        """Time of the last write to metrics.csv, UTC; None if there is no such file."""
        try:
            return datetime.fromtimestamp((self.folder / METRICS).stat().st_mtime, timezone.utc)
        except OSError:
            return None


def read_records(runs: Sequence[str | os.PathLike[str]]) -> list[Record]:
    """Read run folders in order, without duplicates.

    Raises:
        InputError: ``runs`` is empty, or a folder contains neither a recipe nor results.
    """
    folders = list(dict.fromkeys(Path(run).expanduser().resolve() for run in runs))
    if not folders:
        raise InputError("runs: expected at least one run folder")
    return [read_record(folder, name) for folder, name in zip(folders, _unique_names(folders), strict=True)]


def read_record(folder: Path, name: str) -> Record:
    """Read a run folder under a name. Raises InputError like ``read_records``."""
    if not any((folder / file).is_file() for file in (RECIPE, RESULTS)):
        raise InputError(f"runs: {folder} contains no run (no {RECIPE})")
    notes: list[str] = []
    return Record(
        folder=folder,
        name=name,
        recipe=_flatten(_mapping(folder / RECIPE, yaml.safe_load, notes)),
        environment=_mapping(folder / ENVIRONMENT, json.loads, notes),
        metrics=_columns(folder / METRICS),
        probes=_columns(folder / PROBES),
        results=_results(folder / RESULTS, notes),
        num_corrupt=max(0, len(_read_text(folder / CORRUPT).splitlines()) - 1),  # without the header
        finished=(folder / ENCODER).is_file(),
        notes=notes,
    )


def _unique_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest path suffixes, all with the same number of parts, that are distinct."""
    max_depth = max(len(folder.parts) for folder in folders)
    for depth in range(1, max_depth + 1):
        names = ["/".join(folder.parts[-depth:]).lstrip("/") or "/" for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _mapping(path: Path, parse: Callable[[str], Any], notes: list[str]) -> dict[str, Any]:
    text = _read_text(path)
    try:
        values = parse(text) if text else {}
    except (ValueError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        notes.append(f"{path.name} cannot be read.")
        return {}
    return {str(key): value for key, value in values.items()}


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: {"optimizer": {"lr": 1}} -> {"optimizer.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        is_nested = isinstance(value, dict) and value
        flat |= _flatten(value, f"{prefix}{name}.") if is_nested else {f"{prefix}{name}": value}
    return flat


def _columns(path: Path) -> Columns:
    """Read a csv file. Incomplete rows are skipped: the run may be writing the last one."""
    lines = _read_text(path).replace("\0", "").rpartition("\n")[0].splitlines()
    names, *rows = list(csv.reader(lines)) or [[]]
    if "step" not in names:
        return {}
    values = np.array([[_number(field) for field in row] for row in rows if len(row) == len(names)], dtype=np.float64)
    values = values.reshape(-1, len(names))
    values = values[np.isfinite(values[:, names.index("step")])]
    return {name: values[:, i] for i, name in enumerate(names)} if len(values) else {}


def _number(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return math.nan


def _results(path: Path, notes: list[str]) -> list[Result]:
    results: list[Result] = []
    invalid: list[int] = []
    lines = _read_text(path).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            results.append(Result.from_dict(json.loads(line)))
        except ValueError:
            invalid.append(number)
    if invalid:
        numbers = ", ".join(map(str, invalid[:10])) + (", ..." if len(invalid) > 10 else "")
        notes.append(f"{path.name}: skipped {len(invalid)} invalid line{'s' if len(invalid) > 1 else ''} ({numbers}).")
    return results
