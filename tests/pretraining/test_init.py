"""Runs that start from trained weights."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import mec
from mec import evaluate
from mec.cli.main import main
from mec.errors import InputError
from mec.models.baseline import find_baseline
from mec.models.encoder import Encoder, create_encoder
from mec.models.io import save_encoder
from mec.pretraining import Run, pretrain
from mec.pretraining.parts import resolve_parts
from mec.pretraining.recipe_files import default_recipe, load_recipe
from tests.pretraining.test_adaptation import SHORT
from tests.pretraining.test_start_encoder import Stop

ADAPT = [
    "--epochs", "2", "--subsample", "4", "--batch_size", "64", "--workers", "0", "--precision", "32-true",
    "--projector.hidden_dim", "16", "--projector.output_dim", "8", "--probe_every", "0",
]  # fmt: skip
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain("digits", tmp_path_factory.mktemp("trained") / "run", SHORT)


@pytest.fixture(scope="module")
def adapted(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("adapted") / "run"
    assert main(["pretrain", "digits", "--out", str(folder), "--init", str(trained.folder), *ADAPT]) == 0
    return Run(folder)


def weights_of(file: Path) -> dict[str, Tensor]:
    return load_file(file)


def test_the_run_starts_from_the_weights_with_the_recipe_adapt(trained: Run, adapted: Run) -> None:
    start, end = weights_of(adapted.folder / "start.safetensors"), weights_of(adapted.folder / "encoder.safetensors")
    expected = weights_of(trained.folder / "encoder.safetensors")
    assert start.keys() == end.keys() == expected.keys()
    assert all(torch.equal(start[name], tensor) for name, tensor in expected.items())
    assert not torch.equal(end["layer4.0.conv1.weight"], start["layer4.0.conv1.weight"])
    recipe, adapt = adapted.recipe(), load_recipe("adapt")
    assert recipe.optimizer == adapt.optimizer
    assert recipe.batch_norm == adapt.batch_norm
    specs = [json.loads((run.folder / "encoder.json").read_text()) for run in (trained, adapted)]
    assert specs[0] == specs[1]
    assert not (adapted.folder / "untrained.safetensors").exists()


def test_evaluations_compare_with_the_start(trained: Run, adapted: Run) -> None:
    result = mec.evaluate.knn("digits", adapted, workers=0)
    expected = mec.evaluate.knn("digits", trained, workers=0)
    assert list(result.rows) == ["encoder", "start", "raw pixels"]
    assert result.rows["start"][0].value == expected.rows["encoder"][0].value


@pytest.mark.parametrize("again", [True, False])
def test_a_stopped_run_resumes_with_or_without_its_start(
    again: bool, trained: Run, adapted: Run, tmp_path: Path
) -> None:
    recipe, folder = adapted.recipe(), tmp_path / "run"
    with pytest.raises(SystemExit):
        pretrain("digits", folder, recipe, callbacks=[Stop()], encoder=trained.encoder())
    init = ["--init", str(trained.folder)] if again else []
    assert main(["pretrain", "digits", "--out", str(folder), "--resume", *init, *([*ADAPT] if again else [])]) == 0
    expected = (adapted.folder / "encoder.safetensors").read_bytes()
    assert (folder / "encoder.safetensors").read_bytes() == expected


def test_resuming_with_another_start_is_an_error(adapted: Run, tmp_path: Path, trained: Run) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        pretrain("digits", folder, adapted.recipe(), callbacks=[Stop()], encoder=trained.encoder())
    with pytest.raises(InputError, match=r"^encoder: expected encoder of .*, got encoder of"):
        pretrain("digits", folder, adapted.recipe(), resume=True, encoder=adapted.encoder())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init", "resnet18"], "mec: init: expected trained weights, got resnet18"),
        (["--init", "no/such/run"], "mec: init: no/such/run does not exist"),
        (["--distill_from", "no/such/run"], "mec: distill_from: no/such/run does not exist"),
        (["--init", "RUN", "--backbone", "resnet50"], "mec pretrain: --backbone: expected none with --init"),
    ],
)
def test_a_wrong_start_is_one_line(
    arguments: list[str], message: str, trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(trained.folder) if argument == "RUN" else argument for argument in arguments]
    try:
        status = main(["pretrain", "digits", "--out", str(tmp_path / "run"), *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (tmp_path / "run").exists()


def test_the_recipe_depends_on_whether_the_encoder_is_trained(trained: Run) -> None:
    assert default_recipe("digits", trained.encoder()) == "adapt"
    assert default_recipe("digits", create_encoder("resnet18", 16, 1)) == "digits"
    assert default_recipe("digits", mec.load_encoder("resnet18")) == "digits"


def vit(tmp_path: Path) -> Encoder:
    torch.manual_seed(0)
    save_encoder(create_encoder("vit_tiny_patch16_224", 32, 1, False, options=VIT), tmp_path)
    return mec.load_encoder(tmp_path)


def test_position_embeddings_are_resampled_for_another_image_size(tmp_path: Path) -> None:
    start = vit(tmp_path / "vit")
    recipe = replace(SHORT, image_size=16, steps=1, backbone_options={}, small_stem=None)
    run = pretrain("digits", tmp_path / "run", recipe, encoder=start)
    embedding = start.state_dict()["backbone.pos_embed"]
    grid = embedding[:, 1:].reshape(1, 8, 8, 32).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True)
    expected = torch.cat([embedding[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 16, 32)], dim=1)
    checkpoint = next((run.folder / "checkpoints").glob("*.ckpt"))
    trained = mec.load_encoder(checkpoint)
    assert trained(torch.rand(2, 1, 16, 16)).shape == (2, 32)
    # one step of warm-up changes the weights a little
    torch.testing.assert_close(trained.state_dict()["backbone.pos_embed"], expected, rtol=0, atol=0.05)
    # the start keeps its size, that of its row in evaluations
    saved = mec.load_encoder(run.folder / "start.safetensors")
    assert saved.image_size == start.image_size == 32
    assert torch.equal(saved.state_dict()["backbone.pos_embed"], embedding)


def test_the_start_is_evaluated_at_its_own_size(trained: Run, tmp_path: Path) -> None:
    start = trained.encoder()
    recipe = replace(SHORT, image_size=start.image_size // 2, steps=1, batch_norm="frozen")
    run = pretrain("digits", tmp_path / "run", recipe, encoder=start)
    result = evaluate.knn("digits", run, k=[20])
    expected = evaluate.knn("digits", start, k=[20], baselines=False)
    assert result.metric("k=20", "start").value == expected.metric("k=20").value
    sizes = {name: encoder.image_size for name, encoder in find_baseline(run.encoder()).items()}
    assert sizes == {"start": start.image_size}


def test_an_encoder_of_one_size_has_no_smaller_views(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mec")
    start = vit(tmp_path / "vit")
    assert load_recipe("adapt").evaluation_scale > 1
    recipe, _ = resolve_parts(load_recipe("adapt"), encoder=start)
    assert (recipe.image_size, recipe.evaluation_scale) == (32, 1)
    assert "evaluation_scale: 1, because vit_tiny_patch16_224 takes images of 32 px only" in caplog.text
    recipe, _ = resolve_parts(load_recipe("adapt"), encoder=create_encoder("resnet18", 224, 1))
    assert (recipe.image_size, recipe.evaluation_scale) == (128, 1.75)
    for size in range(16, 100, 7):
        recipe, _ = resolve_parts(load_recipe("adapt"), encoder=create_encoder("resnet18", size, 1))
        assert recipe.evaluation_size == size


def test_views_have_the_size_of_the_encoder_unless_the_recipe_has_one(tmp_path: Path) -> None:
    recipe = replace(SHORT, image_size=None, steps=1, backbone_options={}, small_stem=None)
    run = pretrain("digits", tmp_path / "run", recipe, encoder=vit(tmp_path / "vit"))
    assert yaml.safe_load((run.folder / "recipe.yaml").read_text())["image_size"] == 32
    assert run.encoder().image_size == 32
