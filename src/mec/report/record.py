"""What a run folder says: settings, machine, metrics, probes and evaluations, as far as they can be read."""

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
READ = (RECIPE, ENVIRONMENT, METRICS, PROBES, RESULTS, CORRUPT, ENCODER)

Columns = dict[str, NDArray[np.float64]]
"""Of a table: name -> values, NaN where there is none; all of one length."""


@dataclass(frozen=True)
class Record:
    """A run folder.

    Attributes:
        folder: where it is.
        name: what it is called among the runs beside it.
        recipe: setting, such as optimizer.lr -> value; empty where nothing was trained.
        environment: of environment.json.
        metrics: of metrics.csv. probes: of probes.csv.
        results: lines of results.jsonl that are results, the oldest first.
        skipped: images that could not be read.
        ended: the encoder is written.
        notes: what could not be read, in sentences.
    """

    folder: Path
    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    metrics: Columns
    probes: Columns
    results: list[Result]
    skipped: int
    ended: bool
    notes: list[str]

    @property
    def steps_per_epoch(self) -> int | None:
        """None where the run does not say."""
        images, batch = self.environment.get("images"), self.environment.get("batch_size")
        if not isinstance(images, int) or not isinstance(batch, int) or batch < 1:
            return None
        return images // batch or None

    @property
    def written(self) -> datetime | None:
        """When the last row of metrics.csv was, UTC."""
        try:
            return datetime.fromtimestamp((self.folder / METRICS).stat().st_mtime, timezone.utc)
        except OSError:
            return None


def read_records(runs: Sequence[str | os.PathLike[str]]) -> list[Record]:
    """Each run once, in the order given.

    Raises:
        InputError: none is given, or one holds neither a recipe nor results.
    """
    folders = list(dict.fromkeys(Path(run).expanduser().resolve() for run in runs))
    if not folders:
        raise InputError("runs: expected at least one run folder")
    return [read_record(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def read_record(folder: Path, name: str) -> Record:
    """See ``read_records``."""
    if not any((folder / file).is_file() for file in (RECIPE, RESULTS)):
        raise InputError(f"runs: {folder} holds no run (no {RECIPE})")
    notes: list[str] = []
    return Record(
        folder=folder,
        name=name,
        recipe=_flat(_mapping(folder / RECIPE, yaml.safe_load, notes)),
        environment=_mapping(folder / ENVIRONMENT, json.loads, notes),
        metrics=_columns(folder / METRICS),
        probes=_columns(folder / PROBES),
        results=_results(folder / RESULTS, notes),
        skipped=max(0, len(_text(folder / CORRUPT).splitlines()) - 1),
        ended=(folder / ENCODER).is_file(),
        notes=notes,
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many before it as tell the folders apart."""
    deepest = max(len(folder.parts) for folder in folders)
    for parts in range(1, deepest + 1):
        names = ["/".join(folder.parts[-parts:]).lstrip("/") or "/" for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _mapping(path: Path, parse: Callable[[str], Any], notes: list[str]) -> dict[str, Any]:
    text = _text(path)
    try:
        read = parse(text) if text else {}
    except (ValueError, yaml.YAMLError):
        read = None
    if not isinstance(read, dict):
        notes.append(f"{path.name} cannot be read.")
        return {}
    return {str(key): value for key, value in read.items()}


def _flat(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Of settings within settings: optimizer.lr -> value."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) and value else {f"{above}{name}": value}
    return flat


def _columns(path: Path) -> Columns:
    """A row that is being written has no end of line, or fewer fields than there are columns: it is left out."""
    whole = _text(path).replace("\0", "").rpartition("\n")[0].splitlines()
    names, *rows = list(csv.reader(whole)) or [[]]
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
    foreign: list[int] = []
    lines = _text(path).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            results.append(Result.from_dict(json.loads(line)))
        except ValueError:
            foreign.append(number)
    if foreign:
        which = ", ".join(map(str, foreign[:10])) + (", ..." if len(foreign) > 10 else "")
        what = "line is" if len(foreign) == 1 else f"{len(foreign)} lines are"
        notes.append(f"{path.name}: {what} not a result and left out (line {which}).")
    return results
