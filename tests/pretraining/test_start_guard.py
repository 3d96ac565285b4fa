"""Checks of a run against the trained encoder that it started from."""

from __future__ import annotations

import csv
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import mec
from mec.errors import InputError
from mec.pretraining import Run, pretrain, start_guard
from mec.pretraining.recipe_files import load_recipe
from mec.pretraining.settings import ProjectorSettings
from mec.pretraining.start_guard import kept, own_class, reciprocal_rank, two_crops, worse
from mec.report.record import read_records
from tests.pretraining.test_adaptation import SHORT
from tests.pretraining.test_start_encoder import Stop

GENTLE = replace(
    load_recipe("adapt"), epochs=2, subsample=4, projector=ProjectorSettings(16, 8), workers=0, precision="32-true"
)
# a learning rate that destroys the weights in a few steps
HARSH = replace(GENTLE, optimizer=replace(GENTLE.optimizer, lr=30.0, backbone_lr=30.0, heads_first=0.0), epochs=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain("digits", tmp_path_factory.mktemp("trained") / "run", replace(SHORT, epochs=16, subsample=None))


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "guard.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def equal(first: Path, second: Path) -> bool:
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_the_votes_of_neighbors_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = []
    for i in range(40):
        order = sorted((float(-unit[i] @ unit[j]), j) for j in range(40) if j != i)[:10]
        votes = [sum(np.exp(-s / 0.07) for s, j in order if labels[j] == c) for c in range(3)]
        expected.append(float(np.argmax(votes) == labels[i]))
    assert own_class(torch.from_numpy(features).float(), torch.from_numpy(labels)).tolist() == expected


def test_the_rank_of_the_other_crop_counts_nearer_and_equal_ones() -> None:
    first = torch.eye(4)
    assert reciprocal_rank(first, first).tolist() == [1, 1, 1, 1]
    assert reciprocal_rank(first, first[[0, 1, 3, 2]]).tolist() == [1, 1, 0.25, 0.25]
    assert reciprocal_rank(torch.ones(4, 2), torch.ones(4, 2)).tolist() == [0.25] * 4  # collapsed
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    top, bottom = two_crops(images)
    assert top.shape == bottom.shape == (1, 1, 8, 8)
    # the crops are rows and columns 0 to 5, and 2 to 7: shifted by 2 rows and 2 columns
    torch.testing.assert_close(bottom - top, torch.full_like(top, 18 / 255))


def test_worse_by_two_standard_errors_of_the_paired_difference() -> None:
    rng = np.random.default_rng(0)
    others = rng.uniform(size=500)
    for shift in (0.0, 0.005, 0.02, 0.05):
        scores = others - shift + rng.normal(scale=0.2, size=500)
        difference = others - scores
        expected = difference.mean() / (difference.std(ddof=1) / np.sqrt(500)) > 2
        assert worse(torch.from_numpy(scores), torch.from_numpy(others)) == expected
    assert expected
    noise = rng.normal(size=500)
    scores = others + noise - noise.mean() - 1.5 * noise.std(ddof=1) / np.sqrt(500)
    assert worse(torch.from_numpy(scores), torch.from_numpy(others), 1.0)
    assert not worse(torch.from_numpy(scores), torch.from_numpy(others))
    same = torch.from_numpy(others)
    assert not worse(same, same)
    assert not worse(same, same - 0.1)


def test_neighbors_of_the_start_are_counted_in_any_order() -> None:
    assert kept(torch.tensor([[1, 2], [0, 2]]), torch.tensor([[2, 1], [2, 3]])) == 0.75


def test_a_gentle_run_is_checked_and_its_last_encoder_kept(
    trained: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mec")
    gentle = replace(GENTLE, optimizer=replace(GENTLE.optimizer, backbone_lr=1e-5))
    run = pretrain("digits", tmp_path / "run", gentle, encoder=trained.encoder())
    checks = rows(run.folder)
    assert "the encoder has hardly changed in 10 steps" in caplog.text
    (record,) = read_records([run.folder])
    last, first = checks[-1]["score"], checks[0]["score"]
    assert f"{last:.3f} at the end, {first:.3f} with the encoder at the start" in record.checks
    assert [row["step"] for row in checks] == [0, 2, 4, 6, 8, 10]
    assert checks[0]["kept_neighbors"] == 1
    assert "the encoder is as good as the one it started from" in caplog.text or "is better than" in caplog.text
    assert not (run.folder / "best.safetensors").exists()


@pytest.mark.parametrize("with_labels", [True, False])
def test_a_destructive_run_keeps_its_start(
    with_labels: bool, trained: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = mec.open_dataset("digits", "pretrain", subsample=4)
    images = np.stack([np.asarray(image) for image in dataset.images])
    data: Any = "digits" if with_labels else images
    recipe = HARSH if with_labels else replace(HARSH, subsample=None)
    run = pretrain(data, tmp_path / "run", recipe, encoder=trained.encoder())
    assert equal(run.folder / "encoder.safetensors", trained.folder / "encoder.safetensors")
    assert "the last encoder is worse than that at the start" in caplog.text
    assert [row["step"] for row in rows(run.folder)] == [0, 4, 8, 12, 16, 20]
    assert rows(run.folder)[-1]["score"] < rows(run.folder)[0]["score"]


def test_images_that_cannot_be_read_are_counted(trained: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    for index in range(30):
        # too large to be held in memory, where the corrupt one would be missing already
        Image.fromarray(rng.integers(0, 256, (100, 100), dtype=np.uint8)).save(tmp_path / f"{index:02}.png")
    (tmp_path / "07.png").write_bytes(b"no image")
    recipe = replace(GENTLE, subsample=None, steps=1, batch_size=8)
    pretrain(tmp_path, tmp_path / "run", recipe, encoder=trained.encoder())
    assert "checks of the encoder: 1 of 30 images cannot be read" in caplog.text


def test_patience_stops_the_run(trained: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = pretrain("digits", tmp_path / "run", replace(HARSH, patience=2), encoder=trained.encoder())
    assert len(rows(run.folder)) < 6
    assert "patience: stopped, because 2 checks in a row" in caplog.text
    assert equal(run.folder / "encoder.safetensors", trained.folder / "encoder.safetensors")


def test_patience_without_trained_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^patience: expected null for an encoder without trained weights, got 2"):
        pretrain("digits", tmp_path / "run", replace(SHORT, patience=2))


def test_the_best_encoder_is_kept_also_by_a_resumed_run(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, encoder = replace(GENTLE, epochs=2), trained.encoder()
    expected = pretrain("digits", tmp_path / "whole", replace(recipe, steps=None), encoder=encoder)
    weights: dict[int, dict[str, Tensor]] = {}
    # the encoder is best at step 2, when the run is stopped
    measure = start_guard.StartGuard._measure

    def scored(self: Any, encoder: Any, trainer: Any) -> dict[str, Any]:
        weights[trainer.global_step] = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
        count = {0: 20, 2: 60}.get(trainer.global_step, 30)
        scores = (torch.arange(337) < count).double()
        monkeypatch.setattr(start_guard, "own_class", lambda features, labels: scores)
        return measure(self, encoder, trainer)

    monkeypatch.setattr(start_guard.StartGuard, "_measure", scored)
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        pretrain("digits", folder, recipe, callbacks=[Stop()], encoder=encoder)
    assert (folder / "best.safetensors").exists()
    run = pretrain("digits", folder, recipe, resume=True)
    best = load_file(run.folder / "encoder.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in weights[2].items())
    assert [row["step"] for row in rows(folder)] == [row["step"] for row in rows(expected.folder)]
