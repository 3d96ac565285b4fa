"""The loggers of a training: names or lightning loggers, and W&B and MLflow runs that a resumed training continues."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mec.engine.run_folder import flatten_settings
from mec.errors import InputError, did_you_mean
from mec.files import atomic_write

logger = logging.getLogger("mec")

LoggersLike = str | Logger | Sequence[str | Logger] | None
"""Names, also as "csv,wandb", or lightning loggers; None is DEFAULT_LOGGERS."""
LOGGERS, DEFAULT_LOGGERS = ("csv", "tensorboard", "wandb", "mlflow"), ("csv", "tensorboard")
IDS_FILE = "loggers.json"
"""Ids of the W&B and MLflow runs of a run folder."""
PROJECT = "mec"
"""Project of W&B and experiment of MLflow, where the environment names none."""
FINISH_TIMEOUT = 60.0
"""Seconds to wait at the end for W&B's upload. What is missing is on disk, for ``wandb sync``."""
STEP = "trainer/global_step"
"""Metric under which lightning logs the step to W&B."""


def check_loggers(loggers: LoggersLike) -> list[str | Logger]:
    """Return names and loggers, without repetitions. Raise InputError for an unknown name or a missing package."""
    if loggers is None:
        return [*DEFAULT_LOGGERS]
    if isinstance(loggers, str):
        loggers = [name.strip() for name in loggers.split(",")]
    checked: list[str | Logger] = []
    for entry in [loggers] if isinstance(loggers, Logger) or not isinstance(loggers, Sequence) else loggers:
        if not isinstance(entry, Logger) and entry not in LOGGERS:
            suggestion = did_you_mean(str(entry), LOGGERS)
            raise InputError(f"loggers: expected {', '.join(LOGGERS)} or a lightning logger, got {entry!r}{suggestion}")
        if entry in ("wandb", "mlflow"):
            spec = find_spec(str(entry))
            if spec is None or spec.origin is None:  # a folder of that name is no package
                raise InputError(f"loggers: {entry} is not installed; pip install 'mec-ssl[{entry}]'")
        if entry not in checked:
            checked.append(entry)
    return checked


@contextmanager
def open_loggers(
    trainer: lightning.Trainer, loggers: Sequence[str | Logger], out: Path, settings: Mapping[str, Any], resume: bool
) -> Iterator[None]:
    """Give the trainer its loggers, log the settings to them, and finish them at the end of the block. ``out`` is a run
    folder that exists; with ``resume``, the W&B and MLflow runs of its loggers.json are continued."""
    ids: dict[str, str] = json.loads((out / IDS_FILE).read_text()) if resume and (out / IDS_FILE).exists() else {}
    parameters = flatten_settings(settings)
    opened: list[Logger] = []
    wandb_run, owns_run = None, False
    for entry in loggers:
        if isinstance(entry, Logger):
            opened.append(entry)
            entry.log_hyperparams(parameters)
        elif entry == "tensorboard":  # the settings are beside it, in recipe.yaml
            opened.append(TensorBoardLogger(out, name="", version="tensorboard"))
        elif entry == "wandb":
            if trainer.is_global_zero:
                wandb_run, owns_run = _start_wandb(out, ids.get("wandb"))
                ids["wandb"] = wandb_run.id
            opened.append(WandbLogger(save_dir=out, experiment=wandb_run))
            opened[-1].log_hyperparams(parameters)
        elif entry == "mlflow":
            opened.append(_open_mlflow(trainer, out, ids, parameters))
    if ids and trainer.is_global_zero:
        with atomic_write(out / IDS_FILE) as path:
            path.write_text(json.dumps(ids, indent=2) + "\n")
    trainer.loggers = opened
    try:
        yield
    except BaseException as error:
        if owns_run:
            _finish_wandb(wandb_run, error)
        raise
    if owns_run:
        _finish_wandb(wandb_run)


def _start_wandb(out: Path, run_id: str | None) -> tuple[Any, bool]:
    """Return the W&B run, and whether it was started here: an open run of the caller is used. Without a login the run
    is offline, because a question would block a batch job."""
    import wandb

    if wandb.run is not None:
        return wandb.run, False
    mode: Any = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
    try:
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            if os.environ.get("WANDB_MODE") == "online":
                raise InputError("loggers: expected a login for wandb with WANDB_MODE=online; run wandb login")
            mode = "offline"
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", out.resolve().name),
            dir=out,
            id=run_id,
            resume="allow" if run_id else None,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", finish_timeout=FINISH_TIMEOUT),
        )
    except wandb.Error as error:
        raise _start_error("wandb", error, "set WANDB_MODE=offline") from error
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    if run.offline:
        logger.info(f"wandb: offline; upload with: wandb sync {Path(run.dir).parent}")
    elif run.url:
        logger.info(f"wandb: {run.url}")
    return run, True


def _finish_wandb(run: Any, error: BaseException | None = None) -> None:
    if isinstance(error, SystemExit):  # preempted, and to be resumed
        run.mark_preempting()
    run.finish(exit_code=int(error is not None))


def _open_mlflow(
    trainer: lightning.Trainer, out: Path, ids: dict[str, str], parameters: Mapping[str, Any]
) -> MLFlowLogger:
    """Return a logger of the run in ``ids``, or of a new one, which gets the parameters and is added to ``ids``."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        # a database needs more packages than the mlflow extra installs; MLflow asks for this variable to write files
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (out / "mlflow").resolve().as_uri()
    experiment, run_id = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), ids.get("mlflow")
    try:
        mlflow_logger = MLFlowLogger(experiment, out.resolve().name, uri, run_id=run_id)
        if trainer.is_global_zero:
            client = MlflowClient(uri)
            if run_id:
                client.update_run(run_id, "RUNNING")
            elif client.get_experiment_by_name(experiment) is None:
                client.create_experiment(experiment)
            ids["mlflow"] = str(mlflow_logger.run_id)
            if not run_id:  # MLflow refuses other values, such as those of the machine that a run is resumed on
                mlflow_logger.log_hyperparams(dict(parameters))
    except (MlflowException, OSError) as error:
        hint = "a database needs pip install mlflow" if "sql" in uri else f"MLFLOW_TRACKING_URI is {uri}"
        raise _start_error("mlflow", error, hint) from error
    return mlflow_logger


def _start_error(name: str, error: Exception, hint: str) -> InputError:
    return InputError(f"loggers: {name} did not start ({' '.join(str(error).split())}); {hint}")
