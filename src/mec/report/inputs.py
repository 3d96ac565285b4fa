"""Find the encoder and the training images of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from mec.data.datasets.video import is_video
from mec.engine.checkpoints import checkpoint_step, is_intact, sorted_by_step
from mec.errors import InputError
from mec.models.io import WEIGHTS_FILE
from mec.pretraining.run_folder import ENVIRONMENT_FILE, Run
from mec.report.schema import Missing

DATA_HINT = "pass their current location with --data"


class Weights(NamedTuple):
    """A file that contains an encoder, and a description of the encoder."""

    file: Path
    description: str


class Sampling(NamedTuple):
    """Arguments of ``open_dataset`` that select images or frames of a dataset."""

    subsample: int | None
    frame_stride: int | None


def find_weights(run: Path) -> Weights | Missing:
    """Return the trained encoder of a finished run, or the newest intact checkpoint of an unfinished one."""
    if (run / WEIGHTS_FILE).exists():
        return Weights(run / WEIGHTS_FILE, "the trained encoder")
    try:
        for path in reversed(sorted_by_step(run / "checkpoints")):
            if is_intact(path):
                return Weights(path, f"the encoder after {checkpoint_step(path):,} steps")
    except OSError:  # the run is still training and has deleted a checkpoint
        pass
    return Missing("The run has no checkpoint yet. Training writes one every few minutes.")


def find_data(run: Path, data: str | os.PathLike[str] | None) -> str | Missing:
    """Return ``data``, or the dataset that the run was trained on if ``data`` is None."""
    if data is not None:
        return os.fspath(data)
    try:
        environment = json.loads((run / ENVIRONMENT_FILE).read_text())
        recorded = str(environment["data"])
        # a relative path is relative to the folder that the run was started in
        absolute = Path(environment.get("working_directory", ".")) / recorded
        return str(absolute) if absolute.exists() and not Path(recorded).exists() else recorded
    except (OSError, ValueError, KeyError, TypeError):
        return Missing(f"The run has no record of its training images; {DATA_HINT}.")


def read_sampling(run: Path, data: str) -> Sampling:
    """Return the ``subsample`` of the run's recipe and, if ``data`` is a video, its ``frame_stride``."""
    try:
        recipe = Run(run).recipe()
    except (InputError, OSError):
        return Sampling(None, None)
    return Sampling(recipe.subsample, recipe.frame_stride if is_video(Path(data).expanduser()) else None)


def missing_data(data: str | os.PathLike[str] | None, error: InputError) -> Missing:
    """Return the reason that the training images cannot be opened. Raise ``error`` if the user passed ``data``."""
    if data is not None:
        raise error
    reason = str(error).splitlines()[-1].removeprefix("data: ")
    return Missing(f"The training images cannot be opened ({reason}); {DATA_HINT}.")
