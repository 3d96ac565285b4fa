"""Where the encoder and the images of a run are."""

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

ADVICE = "--data says where they are now"


class Weights(NamedTuple):
    """A file that holds an encoder, and which one that is, in words."""

    file: Path
    words: str


class Sampling(NamedTuple):
    """Arguments of ``open_dataset`` that select images or frames of a dataset."""

    subsample: int | None
    frame_stride: int | None


def weights_of(run: Path) -> Weights | Missing:
    """Of the encoder of a run that has ended, else of its newest checkpoint that is whole."""
    if (run / WEIGHTS_FILE).exists():
        return Weights(run / WEIGHTS_FILE, "the trained encoder")
    try:
        for path in reversed(sorted_by_step(run / "checkpoints")):
            if is_intact(path):
                return Weights(path, f"the encoder after {checkpoint_step(path):,} steps")
    except OSError:  # the run, which goes on, has removed one
        pass
    return Missing("The run has no checkpoint yet; it keeps one every few minutes.")


def source_of(run: Path, data: str | os.PathLike[str] | None) -> str | Missing:
    """``data``, or what the run has learned from."""
    if data is not None:
        return os.fspath(data)
    try:
        environment = json.loads((run / ENVIRONMENT_FILE).read_text())
        typed = str(environment["data"])
        # a relative path was meant from where the run was started
        there = Path(environment.get("working_directory", ".")) / typed
        return str(there) if there.exists() and not Path(typed).exists() else typed
    except (OSError, ValueError, KeyError, TypeError):
        return Missing(f"The run does not say which images it learned from; {ADVICE}.")


def sampling_of(run: Path, source: str) -> Sampling:
    """Return the ``subsample`` of the run's recipe and, if ``source`` is a video, its ``frame_stride``."""
    try:
        recipe = Run(run).recipe()
    except (InputError, OSError):
        return Sampling(None, None)
    return Sampling(recipe.subsample, recipe.frame_stride if is_video(Path(source).expanduser()) else None)


def not_opened(data: str | os.PathLike[str] | None, error: InputError) -> Missing:
    """Of the run's own images, why they are not shown; those of ``data`` were asked for: raises the error."""
    if data is not None:
        raise error
    reason = str(error).splitlines()[-1].removeprefix("data: ")
    return Missing(f"The images it learned from cannot be opened ({reason}); {ADVICE}.")
