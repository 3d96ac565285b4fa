"""W&B, MLflow and other loggers: what is logged, one run over resumes, and messages about wrong names."""

from __future__ import annotations

import csv
import json
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from mec.cli.main import main
from mec.engine import checkpoints
from mec.engine.loggers import check_loggers
from mec.errors import InputError
from mec.pretraining import Run, pretrain
from tests.pretraining.test_run import TINY

RECIPE = replace(TINY, epochs=1, subsample=4, batch_size=64)  # five steps


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Hide variables, logins and settings of the developer."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        home = str(tmp_path_factory.mktemp("home"))
        for name in ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, f"{home}/{name}")
        patch.setenv("WANDB_ERROR_REPORTING", "false")  # its thread would go on calling W&B during other tests
        yield patch


@pytest.fixture(scope="module")
def run(isolated: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that was killed after its second step and resumed."""
    out = tmp_path_factory.mktemp("logged") / "pets"
    isolated.setattr(checkpoints, "SAVE_INTERVAL_SECONDS", 0)
    isolated.setattr(checkpoints, "SAVE_INTERVAL_FACTOR", 0)
    isolated.setattr(checkpoints, "NUM_KEPT", 9)
    pretrain("digits", out, RECIPE, loggers="csv,wandb,mlflow")
    for path in [*sorted((out / "checkpoints").iterdir())[2:], out / "encoder.safetensors"]:
        path.unlink()
    return pretrain("digits", out, replace(RECIPE, workers=1), resume=True, loggers="csv,wandb,mlflow")


def read_wandb(path: Path) -> list[Any]:
    """Return the records of a .wandb file: protocol buffers in blocks of LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, position, content, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(content))
            content = b""
    return records


def wandb_runs(path: Path) -> list[Any]:
    """Return the records of runs of a .wandb file, which a process of W&B may complete after the run has ended."""
    for _ in range(100):
        if runs := [r.run for r in read_wandb(path) if r.WhichOneof("record_type") == "run"]:
            return runs
        time.sleep(0.1)
    return []


def items(entries: Any) -> dict[str, Any]:
    return {entry.key or ".".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def test_wandb_has_the_losses_and_settings_and_a_resume_continues_its_run(run: Run) -> None:
    folders = sorted((run.folder / "wandb").glob("offline-run-*"))
    run_id = json.loads((run.folder / "loggers.json").read_text())["wandb"]
    # two folders of one second differ by a number at the end
    assert [folder.name.split("-")[3] for folder in folders] == [run_id, run_id]
    losses = {int(row["step"]): row["loss"] for row in run.metrics()}
    for folder, steps in zip(folders, ([1, 2, 3, 4, 5], [3, 4, 5]), strict=True):
        records = read_wandb(folder / f"run-{run_id}.wandb")
        (start,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert (start.run_id, start.project, start.display_name) == (run_id, "mec", "pets")
        history = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
        assert [row["trainer/global_step"] for row in history] == steps
        assert [row["loss"] for row in history] == pytest.approx([losses[step] for step in steps], rel=1e-5)
        (config,) = [
            items(r.config.update) for r in records if r.config.update and not r.config.update[0].nested_key[1:]
        ]
        assert config["optimizer.lr"] == RECIPE.optimizer.lr
        assert records[-1].WhichOneof("record_type") == "exit"


def test_mlflow_has_the_metrics_and_settings_of_one_run(run: Run) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient((run.folder / "mlflow").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("mec").experiment_id])
    assert found.info.run_id == json.loads((run.folder / "loggers.json").read_text())["mlflow"]
    assert (found.info.run_name, found.info.status) == ("pets", "FINISHED")
    assert float(found.data.params["optimizer.lr"]) == RECIPE.optimizer.lr
    rows = run.metrics()
    for name in ("loss", "effective_rank", "lr"):
        logged = client.get_metric_history(found.info.run_id, name)
        assert [metric.step for metric in logged] == [1, 2, 3, 4, 5, 3, 4, 5]
        values = {metric.step: metric.value for metric in logged}  # the last ones
        assert [values[row["step"]] for row in rows] == pytest.approx([row[name] for row in rows], rel=1e-5)


def test_the_environment_names_the_project_and_the_store(
    isolated: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    store = (tmp_path / "store").as_uri()
    for name, value in (
        ("WANDB_MODE", "offline"), ("WANDB_PROJECT", "cats"), ("MLFLOW_TRACKING_URI", store),
        ("MLFLOW_EXPERIMENT_NAME", "dogs"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    pretrain("digits", tmp_path / "run", replace(RECIPE, subsample=20), loggers=["mlflow", "wandb"])
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert [run.project for run in wandb_runs(path)] == ["cats"]
    assert MlflowClient(store).get_experiment_by_name("dogs") is not None
    assert not (tmp_path / "run" / "mlflow").exists()
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_wandb_online_without_a_login_is_one_line_before_the_run(
    isolated: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(InputError, match="loggers: expected a login for wandb"):
        pretrain("digits", tmp_path / "run", RECIPE, loggers="wandb")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_lightning_logger_gets_metrics_and_settings(tmp_path: Path) -> None:
    own = CSVLogger(tmp_path / "own", name="", version="")
    run = pretrain("digits", tmp_path / "run", replace(RECIPE, subsample=20), loggers=own)
    with (tmp_path / "own" / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses == pytest.approx([row["loss"] for row in run.metrics()], rel=1e-5)
    assert f"optimizer.lr: {RECIPE.optimizer.lr}" in (tmp_path / "own" / "hparams.yaml").read_text()
    assert not {"tensorboard", "wandb", "mlflow"} & {path.name for path in run.folder.iterdir()}


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        ("csv,wandbb", "loggers: expected csv, .* got 'wandbb'; did you mean wandb"),
        ("", "loggers: expected csv, .* got ''"),
        (["csv", 3], "loggers: .* got 3"),
        (False, "loggers: .* got False"),
    ],
)
def test_an_unknown_logger_is_named(loggers: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_loggers(loggers)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_installation(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["pretrain", "digits", "--out", str(tmp_path / "run"), "--loggers", f"csv,{name}"]) == 2
    assert capsys.readouterr().err == f"mec: loggers: {name} is not installed; pip install 'mec-ssl[{name}]'\n"
    assert not (tmp_path / "run").exists()
