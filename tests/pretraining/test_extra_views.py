"""Extra views (multi-crop): their pixels, their roles, and training with them."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from mec.data.pixels import PixelFormat
from mec.data.transforms import ExtraViewSettings, ViewSettings
from mec.data.transforms.crop import Cropper, Item
from mec.data.transforms.multi_view import MultiView
from mec.errors import InputError
from mec.models import Predictor, Projector, Siamese
from mec.pretraining import Run, pretrain
from mec.pretraining.contact_sheet import contact_sheet
from mec.pretraining.module import create_views
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import make_recipe
from tests.pretraining.interrupted_runs import run_until_killed
from tests.pretraining.test_resume_after_kill import assert_same_run, write_photographs, write_shards
from tests.pretraining.test_run import TINY, pretrain_in_two_processes
from tests.processes import needs_gloo

LOCAL = ExtraViewSettings(count=3, image_size=8, blur=0.0)
RECIPE = replace(TINY, epochs=2, extra_views=LOCAL)
PHOTOGRAPHS = replace(RECIPE, channels=3, batch_size=8)


def test_local_views_are_those_of_a_smaller_size() -> None:
    settings = [ViewSettings()] * 2 + [ExtraViewSettings()] * 2
    images = torch.randint(0, 256, (5, 3, 40, 50), dtype=torch.uint8)
    indices = torch.arange(5)
    views = MultiView(24, settings, seed=3, local_sizes=(16, 12))(images, indices, 1)
    assert [tuple(view.shape[2:]) for view in views] == [(24, 24), (24, 24), (16, 16), (12, 12)]
    for size, view in enumerate(views):
        side = view.shape[-1]
        assert torch.equal(view, MultiView(side, settings, seed=3)(images, indices, 1)[size])


def test_local_views_of_worker_crops_match_those_of_whole_images() -> None:
    plain = ExtraViewSettings(color_jitter=0, grayscale=0, blur=0, crop_scale=(0.3, 0.6))
    views = MultiView(24, [plain] * 4, seed=3, local_sizes=(16, 16))
    rows, columns = np.mgrid[0:60, 0:80]
    image = np.stack([rows * 3, columns * 2, (rows + columns)], axis=-1).astype(np.uint8)
    items = [Item(i, lambda: image, "") for i in range(3)]
    batch = Cropper(views, PixelFormat())(items, 2, lambda _: iter(()))
    assert batch.images.shape == (3, 3 * (2 * 24**2 + 2 * 16**2))
    whole = torch.from_numpy(np.stack([image] * 3)).permute(0, 3, 1, 2)
    expected = views(whole, batch.indices, 2)
    for actual, view in zip(views(*batch[:3]), expected, strict=True):
        assert actual.shape == view.shape
        assert mse_loss(actual, view) < 1e-5  # crops are rounded to 8 bits


class Pool(nn.Module):
    """An encoder of images of any size, with the running statistics of a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))


@pytest.mark.parametrize("targets", [None, "student", "teacher"])
def test_local_views_pass_together_and_have_no_targets(targets: Any) -> None:
    torch.manual_seed(0)
    encoder, projector = Pool(), Projector(4, 8, 5)
    network = Siamese(encoder, projector, Predictor(5, 4) if targets else None, targets, num_global=2).double()
    x1, x2 = torch.randn(2, 6, 3, 9, 9).double()
    local = tuple(torch.randn(3, 6, 3, 5, 5).double())
    features = network.features(x1, x2, *local)
    norm = encoder.norm
    mean, count = norm.running_mean.clone(), norm.num_batches_tracked.clone()
    norm.reset_running_stats()
    expected = [encoder(x1), encoder(x2)]
    torch.testing.assert_close(norm.running_mean, mean)
    assert int(count) == 2
    together = torch.cat(local)
    z = encoder.conv(together)
    z = (z - z.mean((0, 2, 3), keepdim=True)) / (z.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected += torch.relu(z).mean((2, 3)).split(6)
    for actual, f in zip(features, expected, strict=True):
        torch.testing.assert_close(actual, f)
    codes, target_codes = network(x1, x2, *local)
    assert len(codes) == 5
    assert (target_codes is None) == (targets is None)
    assert target_codes is None or len(target_codes) == 2


@pytest.mark.parametrize(("size", "count", "expected"), [(8, 3, 2), (16, 3, None), (None, 3, None), (8, 0, None)])
def test_smaller_views_are_local(size: int | None, count: int, expected: int | None) -> None:
    recipe = replace(TINY, extra_views=ExtraViewSettings(count=count, image_size=size))
    objective, views = recipe.create_objective(), create_views(recipe)
    assert objective.global_views == expected
    assert (views.num_views, views.num_global) == (2 + count, expected or 2 + count)


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.metrics()]


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": {"name": "mec"}},
        {"objective": {"name": "simclr"}},
        {"objective": {"form": "cross"}, "teacher": {"enabled": True}},
        {"extra_views": {"count": 2, "image_size": 16}},
        {"chunk_size": 100},
        {"gradient_checkpointing": True},
    ],
)
def test_a_run_trains_with_extra_views(settings: dict[str, Any], tmp_path: Path) -> None:
    base = RECIPE.as_dict()
    merged = {k: base[k] | v if isinstance(v, dict) and k == "extra_views" else v for k, v in settings.items()}
    run = pretrain("digits", tmp_path / "run", make_recipe(base | merged))
    assert np.isfinite(losses(run)).all()
    assert run.recipe().extra_views.count == merged.get("extra_views", {"count": 3})["count"]


def test_workers_shards_and_memory_have_the_same_roles(tmp_path: Path) -> None:
    folder, shards = write_photographs(tmp_path / "photographs"), write_shards(tmp_path / "shards")
    alone = pretrain(folder, tmp_path / "alone", PHOTOGRAPHS)
    assert_same_run(pretrain(folder, tmp_path / "two", replace(PHOTOGRAPHS, workers=2)).folder, alone.folder)
    sliced = pretrain(shards, tmp_path / "sliced", replace(PHOTOGRAPHS, workers=2))
    assert_same_run(pretrain(shards, tmp_path / "shards-alone", PHOTOGRAPHS).folder, sliced.folder)


def test_a_killed_run_resumes_bit_identically(tmp_path: Path) -> None:
    data = write_photographs(tmp_path / "photographs")
    recipe = replace(PHOTOGRAPHS, epochs=3)
    for moment in (("with checksum", 2), ("half written", 1)):
        assert run_until_killed(data, tmp_path / "killed", recipe, moment) == -signal.SIGKILL
    assert run_until_killed(data, tmp_path / "killed", recipe) == 0
    # in a process of the same kind: other numbers of threads round differently
    assert run_until_killed(data, tmp_path / "whole", recipe) == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


class NoNorm(nn.Module):
    """A network without BatchNorm, whose features do not depend on the chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))


@needs_gloo
def test_chunks_and_two_processes_have_the_losses_of_the_whole_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NoNorm()
    whole = pretrain("digits", tmp_path / "whole", RECIPE, encoder=network)
    chunked = pretrain("digits", tmp_path / "chunked", replace(RECIPE, chunk_size=100), encoder=network)
    np.testing.assert_allclose(losses(chunked), losses(whole), rtol=2e-3)
    slow = replace(RECIPE, optimizer=replace(RECIPE.optimizer, lr=1e-4))
    two = pretrain_in_two_processes("digits", tmp_path / "two", slow)
    # BatchNorm, which PyTorch synchronizes on GPUs only, is not that of one process
    np.testing.assert_allclose(losses(two), losses(pretrain("digits", tmp_path / "one", slow)), atol=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extra_views": {"count": -1}}, r"extra_views.count: expected at least 0, got -1"),
        ({"extra_views": {"image_size": 4}}, r"extra_views.image_size: expected at least 8 pixels"),
        ({"extra_views": {"count": 1, "image_size": 128}}, r"extra_views.image_size: expected at most the image_size"),
        ({"extra_views": {"crop_scale": [0.5, 0.1]}}, r"extra_views.crop_scale: expected"),
        (
            {"extra_views": {"count": 1}, "views": "reference"},
            r"views: expected fast with extra_views, got 'reference'",
        ),
    ],
)
def test_invalid_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_recipe(settings)


def test_a_recipe_without_extra_views_does_not_mention_them() -> None:
    assert "extra_views" not in Recipe().as_dict()
    assert make_recipe(RECIPE.as_dict()) == RECIPE


def test_the_contact_sheet_names_the_size_of_local_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []
    module = __import__("mec.pretraining.contact_sheet", fromlist=["Cell"])
    cell = module.Cell

    def record(caption: str, *arguments: Any) -> Any:
        captions.append(caption)
        return cell(caption, *arguments)

    monkeypatch.setattr(module, "Cell", record)
    contact_sheet("digits", tmp_path / "views.png", RECIPE, images=1, pairs=1)
    assert "view 2, view 3 (8 px)" in captions[1]
