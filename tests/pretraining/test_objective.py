"""Objectives of users in ``pretrain``: in one process and two, in chunks, stopped and resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mec
from mec.cli.main import main
from mec.engine.checkpoints import latest_checkpoint
from mec.errors import InputError
from mec.models import load_encoder
from mec.models.checkpoint_files import checkpoint_step
from mec.pretraining import OptimizerSettings, Run
from mec.report import write_report
from tests.pretraining.own_objectives import (
    RECIPE,
    STEPS_PER_EPOCH,
    Codes,
    Recorder,
    VICReg,
    recorded_run,
    simclr,
    single_line,
)
from tests.processes import FORKSERVER, exit_status, needs_gloo, run_ranks, use_fork

# One process and two


PROCESS_RUNS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "function": (lambda: simclr, {}),
    "module": (VICReg, {}),
    "module, in chunks": (VICReg, {"backbone": "vit_tiny_patch16_224", "chunk_size": 5}),
}


def train(rank: int, processes: int, folder: Path) -> None:
    for name, (create, changes) in PROCESS_RUNS.items():
        if processes == 1:
            changes = {key: value for key, value in changes.items() if key != "chunk_size"}
        if "backbone" in changes:
            changes = changes | {"backbone_options": {"embed_dim": 8, "depth": 1, "num_heads": 2}}
        recipe = replace(RECIPE, epochs=1, **changes)
        out = folder / f"{name} on {processes}"
        recorder = recorded_run(out, recipe, torch.float64, objective=create())
        torch.save([recorder.losses, recorder.weights], out / f"{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    train(0, 1, folder)
    run_ranks(2, train, 2, folder)
    return folder


@needs_gloo
@pytest.mark.parametrize("name", PROCESS_RUNS)
def test_an_objective_without_distributed_code_trains_equally_in_two_processes(folder: Path, name: str) -> None:
    losses, weights = torch.load(folder / f"{name} on 1" / "0.pt", weights_only=True)
    assert len(losses) == STEPS_PER_EPOCH
    for rank in range(2):
        rank_losses, rank_weights = torch.load(folder / f"{name} on 2" / f"{rank}.pt", weights_only=True)
        np.testing.assert_allclose(rank_losses, losses, rtol=1e-9)
        assert rank_weights.keys() == weights.keys()
        for key, tensor in weights.items():
            torch.testing.assert_close(rank_weights[key], tensor, rtol=1e-7, atol=1e-9, msg=key)
    one, two = (Run(folder / f"{name} on {processes}").metrics() for processes in (1, 2))
    for a, b in zip(one, two, strict=True):
        compared = a.keys() - {"images_per_second", "data_wait_fraction", "seconds"}
        assert {key: b[key] for key in compared} == pytest.approx({key: a[key] for key in compared}, rel=1e-5)


def test_simclr_of_a_user_has_value_and_gradient_of_lightly(tmp_path: Path) -> None:
    loss = pytest.importorskip("lightly.loss", reason="lightly comes with the extra bench")
    criterion = loss.NTXentLoss(temperature=0.5)
    z = torch.randn(2, 40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = [simclr(z.unbind()), criterion(*z)]
    gradients = [torch.autograd.grad(value, z)[0] for value in values]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)
    # as an argument, lightly's loss needs a lambda only
    recipe = replace(RECIPE, epochs=1, optimizer=OptimizerSettings("sgd", 0.005))
    own = recorded_run(tmp_path / "own", recipe, objective=simclr)
    other = recorded_run(tmp_path / "lightly", recipe, objective=lambda codes: criterion(*codes))
    assert own.losses == pytest.approx(other.losses, abs=1e-5)
    assert own.losses[0] == pytest.approx(other.losses[0], abs=1e-6)


# A module with all optional attributes


def start(out: Path, kill_at: int | None = None) -> int:
    """Start or resume a run of VICReg in a process of its own, and return the exit status."""
    process = FORKSERVER.Process(target=_start, args=(out, kill_at))
    process.start()
    return exit_status(process)


def _start(out: Path, kill_at: int | None) -> None:
    use_fork()
    mec.engine.checkpoints.SAVE_INTERVAL_SECONDS = 0.0
    mec.engine.checkpoints.SAVE_INTERVAL_FACTOR = 0
    callbacks = [Recorder(kill_at=kill_at)]
    mec.pretrain("digits", out, RECIPE, resume=True, callbacks=callbacks, objective=VICReg(10.0))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert start(out) == 0
    return Run(out)


def test_resume_after_sigkill_within_an_epoch_is_bit_identical(undisturbed: Run, tmp_path: Path) -> None:
    assert start(tmp_path, STEPS_PER_EPOCH + 2) == -signal.SIGKILL
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint_step(checkpoint) == STEPS_PER_EPOCH + 2
    assert not (tmp_path / "encoder.safetensors").exists()
    assert start(tmp_path) == 0
    folders = tmp_path, undisturbed.folder
    encoders = [(folder / "encoder.safetensors").read_bytes() for folder in folders]
    assert encoders[0] == encoders[1]
    a, b = map(last_state, folders)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows = [
        [(row["step"], row["loss"], row["deviation"], row["done"]) for row in Run(folder).metrics()]
        for folder in folders
    ]
    assert rows[0] == rows[1]


def last_state(run: Path) -> dict[str, Tensor]:
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=False)["state_dict"]
    return state


def test_metrics_schedules_and_parameters_of_an_objective(undisturbed: Run) -> None:
    rows = undisturbed.metrics()
    assert len(rows) == 2 * STEPS_PER_EPOCH
    assert rows[0].keys() >= {
        "loss",
        "deviation",
        "warm",
        "done",
        "rows",
        "effective_rank",
        "rankme",
        "alpha_req",
        "lr",
    }
    assert "coding_length" not in rows[0]
    assert {row["rows"] for row in rows} == {32}
    assert all(0.01 < row["deviation"] < 10 for row in rows)
    # half an epoch of warm-up: two steps, from 0 to 1
    assert [row["warm"] for row in rows] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert [row["done"] for row in rows] == pytest.approx([step / 7 for step in range(8)])
    state = last_state(undisturbed.folder)
    (weight,) = [value for name, value in state.items() if name.endswith("log_weight")]
    assert weight != 0
    assert not any("projector.7" in name for name in state)  # batch_norm = False
    assert load_encoder(undisturbed.folder).num_features > 0


def test_recipe_and_report_name_the_objective_and_no_settings_of_mec(undisturbed: Run, tmp_path: Path) -> None:
    described = f"{VICReg.__module__}.VICReg(variance=10.0)"
    assert undisturbed.recipe().parts == {"objective": described}
    text = (undisturbed.folder / "recipe.yaml").read_text()
    assert f"parts:\n  objective: {described}\n" in text
    assert not any(name in text for name in ("distortion", "form:", "order:", "warmup_factor"))
    page = write_report([undisturbed.folder], tmp_path / "report.html").read_text()
    assert described in page
    assert "objective.distortion" not in page


def test_a_run_is_not_resumed_with_another_objective(undisturbed: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for other in (VICReg(11.0), simclr, None):
        with pytest.raises(InputError, match=r"^objective: .*VICReg\(variance=10.0\)") as error:
            mec.pretrain("digits", undisturbed.folder, resume=True, objective=other)
        single_line(error)
    capsys.readouterr()
    assert main(["pretrain", "digits", "--out", str(undisturbed.folder), "--resume"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "objective: the recipe is that of a run with" in line
    assert "VICReg(variance=10.0); pass it to mec.pretrain" in line


def test_the_object_of_the_user_stays_unchanged(tmp_path: Path) -> None:
    objective = VICReg()
    first = recorded_run(tmp_path / "first", objective=objective)
    assert (objective.log_weight.item(), objective.warm, objective.done) == (0, -1, -1)
    again = recorded_run(tmp_path / "again", objective=objective)
    assert first.losses == again.losses


class EmptyList(nn.ModuleList):
    """An objective that is false: its length is 0."""

    def forward(self, codes: Codes) -> Tensor:
        return simclr(codes)


def test_an_objective_of_length_0_is_used(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    runs = [recorded_run(tmp_path / str(i), recipe, objective=f) for i, f in enumerate((EmptyList(), simclr))]
    assert runs[0].losses == runs[1].losses


def test_chunks_give_the_losses_of_the_whole_batch(tmp_path: Path) -> None:
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    recipe = replace(RECIPE, backbone="vit_tiny_patch16_224", backbone_options=options)
    whole = recorded_run(tmp_path / "whole", recipe, objective=VICReg())
    chunks = recorded_run(tmp_path / "chunks", replace(recipe, chunk_size=9), objective=VICReg())
    assert chunks.losses == pytest.approx(whole.losses, rel=1e-5)
    name = "objective.function.objective.log_weight"
    assert float(chunks.weights[name]) == pytest.approx(float(whole.weights[name]), rel=1e-4)
