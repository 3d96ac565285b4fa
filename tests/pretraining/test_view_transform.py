import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

import mec
from mec.errors import InputError
from mec.pretraining.contact_sheet import training_views
from mec.pretraining.settings import ObjectiveSettings, ProjectorSettings

RECIPE = replace(
    mec.load_recipe("digits"),
    backbone="test_resnet",
    backbone_options={},
    small_stem=False,
    epochs=1,
    accelerator="cpu",
    precision="32-true",
    workers=0,
    projector=ProjectorSettings(32, 16),
)
AUGMENT = v2.Compose([v2.RandomResizedCrop(16), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
NORMALIZED = v2.Compose([AUGMENT, v2.Normalize([0.3], [0.4])])


def two_views(image: Image.Image) -> list[Tensor]:
    return [NORMALIZED(image), NORMALIZED(image)]


class Scale(nn.Module):
    """Two views of random brightness."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x * torch.rand(len(x), 1, 1, 1) for _ in range(2)]


class FirstInput(lightning.Callback):
    """Records the first batch of views that the encoder is given."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.inputs: list[Tensor] = []
        pl_module.network.encoder.register_forward_pre_hook(lambda _, args: self.inputs.append(args[0]))


def test_a_run_has_the_size_and_normalization_of_its_views(tmp_path: Path) -> None:
    runs, views = [], []
    for name, transform in (("transform", two_views), ("mec", lambda image: [AUGMENT(image), AUGMENT(image)])):
        seen = FirstInput()
        out = tmp_path / name
        runs.append(mec.pretrain("digits", out, RECIPE, callbacks=[seen], view_transform=transform))
        spec = runs[-1].encoder().spec
        assert (spec.image_size, runs[-1].recipe().image_size) == (16, 16)
        views.append(seen.inputs[0] * spec.std[0] + spec.mean[0])
    assert (runs[0].encoder().spec.mean, runs[0].encoder().spec.std) == ((0.3,), (0.4,))
    assert runs[1].encoder().spec.mean != (0.3,)
    torch.testing.assert_close(views[0], views[1])  # both in [0, 1]: normalized once


def test_modules_on_the_device_train_in_chunks_too(tmp_path: Path) -> None:
    run = mec.pretrain("digits", tmp_path / "run", replace(RECIPE, chunk_size=100), view_transform=Scale())
    assert run.recipe().image_size == 8
    assert run.encoder().spec.image_size == 8


def test_mec_trains_with_four_views(tmp_path: Path) -> None:
    recipe = replace(RECIPE, objective=ObjectiveSettings(distortion=1 / 32), epochs=3, log_every=1)
    run = mec.pretrain("digits", tmp_path / "run", recipe, view_transform=lambda x: [AUGMENT(x) for _ in range(4)])
    rows = run.metrics()
    assert len(rows) == 15
    for row in rows:
        assert 0 < row["disagreement"] < 4 / 3
        assert 0 < row["rate_reduction"] < 16 * math.log(3)  # of views that agree, spread over all 16 directions
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.01


def test_nothing_is_written_before_a_transform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="view_transform: "):
        mec.pretrain(
            "digits",
            tmp_path / "run",
            RECIPE,
            view_transform=lambda image: [image] * 2 + [image.rotate(9, expand=True)],
        )
    assert not (tmp_path / "run").exists()


def test_contact_sheets_show_the_views_in_unit_range_of_a_transform(tmp_path: Path) -> None:
    samples = training_views("digits", RECIPE, 2, 2, two_views)
    plain = training_views("digits", RECIPE, 2, 2, lambda image: [AUGMENT(image), AUGMENT(image), AUGMENT(image)])
    for sample, expected in zip(samples, plain, strict=True):
        for views, others in zip(sample.pairs, expected.pairs, strict=True):
            assert [view.shape for view in views] == [(1, 16, 16)] * 2
            torch.testing.assert_close(list(views), list(others[:2]))
    assert not torch.equal(samples[0].pairs[0][0], samples[0].pairs[1][0])  # another epoch
    out = mec.contact_sheet("digits", tmp_path / "a.png", RECIPE, 2, 2, view_transform=two_views)
    wide = mec.contact_sheet("digits", tmp_path / "b.png", RECIPE, 2, 2, view_transform=lambda x: [AUGMENT(x)] * 4)
    assert Image.open(wide).width > Image.open(out).width + 4 * 96
