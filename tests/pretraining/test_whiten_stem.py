"""Runs whose first convolution is initialized from the images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mec
from mec.evaluate.task import with_baseline
from mec.models.baseline import UNTRAINED_FILE, untrained
from mec.models.encoder import create_encoder
from mec.models.whitening import first_convolution
from mec.pretraining.recipe_files import load_recipe
from mec.pretraining.settings import ProjectorSettings

NARROW = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}
RECIPE = replace(
    load_recipe("digits"),
    backbone_options=NARROW,
    image_size=16,
    small_stem=True,
    whiten_stem=None,
    steps=2,
    projector=ProjectorSettings(16, 8),
    workers=0,
    precision="32-true",
    accelerator="cpu",
)


def first_filters(encoder: mec.Encoder) -> torch.Tensor:
    convolution = first_convolution(encoder)
    assert convolution is not None
    return convolution.weight.detach()


def test_the_start_of_a_run_is_its_untrained_baseline(tmp_path: Path) -> None:
    encoder = mec.pretrain("digits", tmp_path / "run", RECIPE).encoder()
    start = with_baseline(encoder, True)["untrained"]
    assert start.untrained
    assert str(tmp_path / "run") in start.description
    # the digits, 8 px, are interpolated: their smallest components have no variance, and get no filter
    filters = first_filters(start)
    pairs = next(n for n in range(9, 0, -1) if torch.equal(filters[:n], -filters[n : 2 * n]))
    assert 3 <= pairs <= 9
    trained = first_filters(encoder)
    random = first_filters(untrained(create_encoder("resnet18", 16, 1, options=NARROW)))
    # two steps on, the filters are still near those of the start, and far from those of a seed
    assert 10 * (trained - filters).norm() < (trained - random).norm()


def test_the_start_of_an_unfinished_run_is_known(tmp_path: Path) -> None:
    mec.pretrain("digits", tmp_path / "run", RECIPE)
    expected = untrained(mec.load_encoder(tmp_path / "run"))
    (tmp_path / "run" / "encoder.safetensors").unlink()
    start = untrained(mec.load_encoder(tmp_path / "run"))
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), expected.parameters(), strict=True))


def test_the_filters_whiten_the_images_as_large_as_the_views(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)  # white
    start = untrained(mec.pretrain(images, tmp_path / "run", replace(RECIPE, batch_size=8)).encoder())
    patches = torch.nn.functional.unfold(start.normalize(torch.from_numpy(images).permute(0, 3, 1, 2)), 3)
    responses = first_filters(start).flatten(1)[:8] @ patches.transpose(0, 1).flatten(1)
    torch.testing.assert_close(responses @ responses.T / responses.shape[1], torch.eye(8), atol=2e-3, rtol=0)


def test_runs_that_no_seed_determines_store_their_start_only(tmp_path: Path) -> None:
    mec.pretrain("digits", tmp_path / "seeded", replace(RECIPE, whiten_stem=False))
    assert not (tmp_path / "seeded" / UNTRAINED_FILE).exists()
    own = create_encoder("resnet18", 16, 1, options=NARROW)
    run = mec.pretrain("digits", tmp_path / "own", RECIPE, encoder=own)
    assert not (run.folder / UNTRAINED_FILE).exists()
    assert "whiten_stem" not in (run.folder / "recipe.yaml").read_text()


def test_a_run_records_whether_its_first_convolution_is_whitened(tmp_path: Path) -> None:
    overlapping = mec.pretrain("digits", tmp_path / "resnet", RECIPE)
    assert overlapping.recipe().whiten_stem is True
    assert replace(overlapping.recipe(), whiten_stem=None) == replace(RECIPE, channels=1)
    options = {"depth": 1, "embed_dim": 16, "num_heads": 2}
    patches = replace(RECIPE, backbone="vit_tiny_patch16_224", backbone_options=options, image_size=32)
    assert mec.pretrain("digits", tmp_path / "vit", patches).recipe().whiten_stem is False


def test_a_resumed_run_has_the_same_weights(tmp_path: Path) -> None:
    whole = mec.pretrain("digits", tmp_path / "whole", RECIPE).encoder()
    run = mec.pretrain("digits", tmp_path / "run", RECIPE)
    start = (run.folder / UNTRAINED_FILE).read_bytes()
    (run.folder / "encoder.safetensors").unlink()
    resumed = mec.pretrain("digits", run.folder, RECIPE, resume=True).encoder()
    assert (run.folder / UNTRAINED_FILE).read_bytes() == start
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_an_encoder_outlives_the_folder_of_its_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = mec.pretrain("digits", tmp_path / "run", RECIPE).encoder()
    (tmp_path / "run" / UNTRAINED_FILE).unlink()
    start = untrained(encoder)
    assert "was deleted: the untrained encoder has the weights of seed 0" in caplog.text
    assert start.origin.endswith("seed 0")
