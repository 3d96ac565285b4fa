"""Runs whose views grow."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mec.data.transforms.multi_view import MultiView
from mec.errors import InputError
from mec.models.encoder import create_encoder
from mec.pretraining import Recipe, pretrain
from mec.pretraining.recipe_files import make_recipe
from tests.pretraining.interrupted_runs import run_until_killed
from tests.pretraining.test_extra_views import PHOTOGRAPHS
from tests.pretraining.test_resume_after_kill import assert_same_run, write_photographs
from tests.pretraining.test_run import TINY

GROWING = replace(TINY, image_size=24, resolution_schedule=(16, 24), epochs=3)


@pytest.mark.parametrize(
    ("sizes", "epochs", "expected"),
    [
        ((16, 24), 4, [16, 16, 24, 24]),
        ((16, 24), 3, [16, 24, 24]),
        ((16, 24), 1, [24]),
        ((12, 16, 24), 7, [12, 12, 16, 16, 24, 24, 24]),
        ((16, 16, 16, 24), 8, [16] * 6 + [24] * 2),
        (None, 2, [24, 24]),
    ],
)
def test_sizes_fill_equal_parts_and_the_last_one_is_never_missed(
    sizes: tuple[int, ...] | None, epochs: int, expected: list[int]
) -> None:
    recipe = Recipe(image_size=24, resolution_schedule=sizes)
    assert [recipe.view_size(epoch, epochs) for epoch in range(epochs)] == expected
    assert recipe.view_size(epochs, epochs) == 24  # a plan of minutes may end sooner


def record_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Return a list to which epoch and sides of the two views of each step are appended."""
    sizes: list[tuple[int, int, int]] = []
    forward = MultiView.forward

    def recording_forward(self: MultiView, images: torch.Tensor, indices: np.ndarray, epoch: int) -> Any:
        views = forward(self, images, indices, epoch)
        sizes.append((epoch, views[0].shape[-1], views[1].shape[-1]))
        return views

    monkeypatch.setattr(MultiView, "forward", recording_forward)
    return sizes


def test_images_in_memory_get_the_sizes_of_their_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = record_sizes(monkeypatch)
    pretrain("digits", tmp_path / "run", GROWING)
    assert sizes == [(epoch, side, side) for epoch, side in ((0, 16), (1, 24), (2, 24)) for _ in range(5)]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_crop_with_the_sizes_of_their_epochs(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = record_sizes(monkeypatch)
    recipe = replace(PHOTOGRAPHS, image_size=24, resolution_schedule=(16, 24), epochs=2, workers=workers)
    pretrain(write_photographs(tmp_path / "photographs"), tmp_path / "run", recipe)
    assert {(epoch, side) for epoch, side, _ in sizes} == {(0, 16), (1, 24)}


def test_a_run_killed_before_and_after_the_switch_resumes_bit_identically(tmp_path: Path) -> None:
    data = write_photographs(tmp_path / "photographs")
    recipe = replace(PHOTOGRAPHS, image_size=24, resolution_schedule=(16, 24), epochs=4)
    for moment in (("with checksum", 1), ("with checksum", 1), ("half written", 2)):
        assert run_until_killed(data, tmp_path / "killed", recipe, moment) == -signal.SIGKILL
    assert run_until_killed(data, tmp_path / "killed", recipe) == 0
    # in a process of the same kind: other numbers of threads round differently
    assert run_until_killed(data, tmp_path / "whole", recipe) == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_views_of_a_transform_keep_their_size(tmp_path: Path) -> None:
    run = pretrain("digits", tmp_path / "run", replace(GROWING, epochs=2), view_transform=nn.Upsample(24))
    assert run.recipe().image_size == 24
    assert "resolution_schedule" not in (run.folder / "recipe.yaml").read_text()


def test_an_encoder_is_trained_with_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = record_sizes(monkeypatch)
    encoder = create_encoder("resnet18", 32, 1, options=GROWING.backbone_options)
    run = pretrain("digits", tmp_path / "run", replace(GROWING, epochs=2, evaluation_scale=1.5), encoder=encoder)
    assert {side for _, side, _ in sizes} == {16, 24}
    assert run.encoder().image_size == 36


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution_schedule": [16, 32]}, r"resolution_schedule: expected sides from 8 to 96, the last 96"),
        ({"resolution_schedule": [4, 96]}, r"resolution_schedule: expected sides from 8 to 96"),
        ({"resolution_schedule": [128, 96]}, r"resolution_schedule: expected sides from 8 to 96"),
        ({"resolution_schedule": []}, r"resolution_schedule: expected sides from 8 to 96"),
        (
            {"resolution_schedule": [16, 96], "extra_views": {"count": 2, "image_size": 32}},
            r"resolution_schedule: expected sides from 32 to 96",
        ),
        ({"resolution_schedule": [48, 96], "views": "reference"}, r"views: expected fast with resolution_schedule"),
    ],
)
def test_invalid_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_recipe(settings)


def test_an_encoder_of_a_single_size_is_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(24 * 24, 8))
    with pytest.raises(InputError, match=r"^resolution_schedule: expected null for .* images of 24 px, got one"):
        pretrain("digits", tmp_path / "run", GROWING, encoder=network)
    assert not (tmp_path / "run").exists()
