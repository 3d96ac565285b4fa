import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from PIL import Image

import mec
from mec.data import open_dataset
from mec.data.transforms import ExtraViewSettings
from mec.data.transforms.multi_view import MultiView
from mec.errors import InputError
from mec.pretraining import (
    ObjectiveSettings,
    OptimizerSettings,
    ProjectorSettings,
    Recipe,
    Run,
    TeacherSettings,
    load_recipe,
    pretrain,
)
from mec.pretraining.module import Pretraining
from mec.pretraining.recipe_files import default_recipe
from tests.data.transforms.test_geometry import photograph
from tests.processes import run_ranks

TINY = replace(
    load_recipe("digits"),
    backbone_options={"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]},
    image_size=16,
    epochs=4,
    log_every=1,
    projector=ProjectorSettings(32, 16),
    workers=0,
    precision="32-true",
    whiten_stem=None,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain("digits", tmp_path_factory.mktemp("runs") / "run", TINY)


def test_a_run_folder_contains_the_documented_files(run: Run) -> None:
    names = {p.name for p in run.folder.iterdir()}
    assert names == {
        ".lock", "recipe.yaml", "environment.json", "metrics.csv", "tensorboard", "checkpoints",
        "encoder.safetensors", "encoder.json", "untrained.safetensors",
    }  # fmt: skip
    assert run.recipe() == replace(TINY, whiten_stem=True)
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["images"] == 1347
    assert torch.__version__.startswith(environment["packages"]["torch"])
    assert run.encoder().num_features == 16


def test_every_step_is_logged_and_the_loss_falls(run: Run) -> None:
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert all(math.isfinite(v) for row in rows for v in row.values())
    means = {name: [np.mean([row[name] for row in part]) for part in (rows[:4], rows[-4:])] for name in rows[0]}
    assert means["loss"][1] < means["loss"][0] - 0.05
    assert means["disagreement"][1] < means["disagreement"][0] - 0.05
    assert means["rate_reduction"][1] > means["rate_reduction"][0] + 0.1
    assert 1 < rows[-1]["effective_rank"] <= 16
    assert rows[0]["lr"] == 0
    assert max(r["lr"] for r in rows) == pytest.approx(8e-3)


def test_the_distortion_sweeps_in_equal_factors_from_the_first_step_to_the_last(run: Run) -> None:
    first, last = run.recipe().setting("objective.distortion")
    assert first < last / 10
    distortions = [row["distortion"] for row in run.metrics()]
    assert (distortions[0], distortions[-1]) == (first, last)
    np.testing.assert_allclose(distortions, np.geomspace(first, last, 20), rtol=1e-5)


def test_views_differ_between_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[int, torch.Tensor]] = []
    forward = MultiView.forward

    def recording_forward(self: MultiView, images: torch.Tensor, indices: np.ndarray, epoch: int) -> object:
        x1, x2 = forward(self, images, indices, epoch)
        recorded.append((epoch, x1[np.flatnonzero(indices == 7)]))
        return x1, x2

    monkeypatch.setattr(MultiView, "forward", recording_forward)
    pretrain("digits", tmp_path / "run", replace(TINY, epochs=2, batch_size=1347))
    assert [epoch for epoch, _ in recorded] == [0, 1]
    assert not torch.allclose(recorded[0][1], recorded[1][1])


def test_weights_are_bit_identical_for_a_seed_and_differ_between_seeds(run: Run, tmp_path: Path) -> None:
    again = pretrain("digits", tmp_path / "again", TINY)
    other = pretrain("digits", tmp_path / "other", replace(TINY, seed=1))
    weights = [(r.folder / "encoder.safetensors").read_bytes() for r in (run, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_resume_is_bit_identical(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training_step = Pretraining.training_step

    def interrupted_step(self: Pretraining, batch: object, batch_idx: int) -> torch.Tensor:
        if self.global_step == 13:
            raise RuntimeError("power cut")
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr("mec.engine.checkpoints.SAVE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("mec.engine.checkpoints.SAVE_INTERVAL_FACTOR", 0)
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "training_step", interrupted_step)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain("digits", tmp_path, TINY)
    assert not (tmp_path / "encoder.safetensors").exists()
    resumed = pretrain("digits", tmp_path, TINY, resume=True)
    assert (tmp_path / "encoder.safetensors").read_bytes() == (run.folder / "encoder.safetensors").read_bytes()
    assert [r["step"] for r in resumed.metrics()] == list(range(1, 21))
    for name in ("loss", "distortion", "rate_reduction"):
        assert [r[name] for r in resumed.metrics()] == [r[name] for r in run.metrics()]
    steps = sorted(p.name.partition("-")[0] for p in (tmp_path / "checkpoints").iterdir())
    assert steps == ["step=000000018", "step=000000019", "step=000000020"]


def test_unusable_folders_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, resume, recipe, message in (
        (run.folder, False, TINY, "already contains a run"),
        (tmp_path / "file", False, TINY, "expected a folder, got the file"),
        (run.folder, True, replace(TINY, epochs=9), r"settings differ .* epochs: 4 -> 9"),
    ):
        with pytest.raises(InputError, match=message):
            pretrain("digits", out, recipe, resume)


def test_nothing_is_written_if_the_data_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(InputError, match="data: "):
            pretrain(data, tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("warmup_epochs", "first"), [(1, 2.0), (0, 0.25)])
def test_distortion_warms_up_in_the_papers_form(warmup_epochs: int, first: float, tmp_path: Path) -> None:
    recipe = replace(
        TINY,
        epochs=2,
        objective=ObjectiveSettings("cross", 0.25, 4, 8),
        teacher=TeacherSettings(True, 0.9, 8),
        optimizer=OptimizerSettings("sgd", 0.1, 1e-5, 0.9, warmup_epochs),
    )
    rows = pretrain("digits", tmp_path / "run", recipe).metrics()
    # the warm-up, a quarter of ten steps, lowers the distortion from eight times its final value
    assert rows[0]["distortion"] == pytest.approx(first)
    assert {row["distortion"] for row in rows[2:]} == {0.25}


def test_photographs_of_different_sizes_are_loaded_by_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(10):
        Image.fromarray(photograph(100 + 5 * i, 140)).save(tmp_path / f"{i}.jpg")
    recipe = Recipe(
        backbone="resnet18", backbone_options=TINY.backbone_options, image_size=32, epochs=2, batch_size=4, workers=2,
        log_every=1, projector=ProjectorSettings(16, 8), precision="32-true",
    )  # fmt: skip
    rows = pretrain(tmp_path, tmp_path / "run", recipe).metrics()
    assert len(rows) == 4
    assert "10 images, no labels" in capsys.readouterr().err


def test_gradient_accumulation_by_a_callback_is_refused(tmp_path: Path) -> None:
    scheduler = GradientAccumulationScheduler({0: 1, 1: 2})
    with pytest.raises(InputError, match=r"^callbacks: .*accumulate_grad_batches = 2.*chunk_size"):
        pretrain("digits", tmp_path / "run", replace(TINY, epochs=2), callbacks=[scheduler])


def test_a_dataset_smaller_than_the_batch_size_is_one_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", images=np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    rows = pretrain(tmp_path / "few.npz", tmp_path / "run", replace(TINY, channels=None, epochs=1)).metrics()
    assert len(rows) == 1


# an lr so small that training does not amplify differences between two runs
SMALL_LR = replace(TINY, epochs=1, batch_size=200, optimizer=replace(TINY.optimizer, lr=1e-7))


def pretrain_rank(_: int, data: str | Path, out: Path, recipe: Recipe, parts: dict[str, Any]) -> None:
    pretrain(data, out, replace(recipe, devices=2, accelerator="cpu"), **parts)


def pretrain_in_two_processes(data: str | Path, out: Path, recipe: Recipe, **parts: Any) -> Run:
    run_ranks(2, pretrain_rank, data, out, recipe, parts)
    return Run(out)


def test_corrupt_images_of_both_processes_are_listed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i in range(16):
        Image.fromarray(photograph(100, 140)).save(tmp_path / "data" / f"{i:02}.jpg")
    corrupt = [tmp_path / "data" / f"{i:02}.jpg" for i in (3, 7, 12)]
    for path in corrupt:
        path.write_bytes(b"")
    recipe = replace(SMALL_LR, channels=3, batch_size=8, epochs=2, workers=1, max_corrupt=0.2)
    run = pretrain_in_two_processes(tmp_path / "data", tmp_path / "run", recipe)
    rows = (run.folder / "corrupt.csv").read_text().splitlines()
    assert rows[0] == "image,reason"
    assert sorted(rows[1:]) == [f"{path},the file is empty" for path in corrupt]


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    two = pretrain_in_two_processes("digits", tmp_path / "two", SMALL_LR)
    one = pretrain("digits", tmp_path / "one", SMALL_LR)
    losses = [[row["loss"] for row in r.metrics()] for r in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 6
    # the global batch and its loss are the same; BatchNorm, which PyTorch synchronizes on GPUs only, is not
    np.testing.assert_allclose(losses[0], losses[1], atol=0.02)


@pytest.mark.parametrize(
    ("has_gpu", "expected"),
    [(True, ["digits", "cifar10-resnet18", "small"]), (False, ["digits", "cifar10-cpu", "small-cpu"])],
)
def test_the_default_recipe_fits_dataset_and_machine(
    has_gpu: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert [default_recipe(d) for d in ("digits", "cifar10", "photos/")] == expected
    assert len(open_dataset("digits")) == 1347


def test_a_killed_loader_process_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill_itself(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    (tmp_path / "data").mkdir()
    for i in range(8):
        Image.fromarray(photograph(100, 140)).save(tmp_path / "data" / f"{i}.jpg")
    # the loader process is forked from this one
    monkeypatch.setattr("mec.data.transforms.crop.crop_and_resize", kill_itself)
    recipe = replace(TINY, channels=3, workers=1, batch_size=4)
    with pytest.raises(InputError, match=r"workers: a loader process ended .* fewer workers"):
        pretrain(tmp_path / "data", tmp_path / "run", recipe)


@pytest.mark.parametrize(("size", "count"), [(16, 0), (24, 1)])
def test_bfloat16_is_refused_for_views_too_small_for_a_cpu(size: int, count: int, tmp_path: Path) -> None:
    extra = ExtraViewSettings(count=count, image_size=16)
    recipe = replace(TINY, image_size=size, extra_views=extra, precision="bf16-mixed", accelerator="cpu")
    with pytest.raises(InputError, match=r"precision: expected 32-true for views of up to 16 px on a CPU"):
        pretrain("digits", tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


def test_folder_names_with_markup_and_tilde_are_handled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = pretrain("digits", "~/[b]runs", replace(TINY, epochs=1))
    assert run.folder == tmp_path / "[b]runs"
    assert f"encoder written to {run.folder}" in capsys.readouterr().err
    assert mec.load_encoder("~/[b]runs").num_features == 16
    with pytest.raises(InputError, match=r"^out: .*already contains a run"):
        pretrain("digits", "~/[b]runs", "~/[b]runs/recipe.yaml")
