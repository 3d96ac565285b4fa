"""Runs whose targets are the features of a trained encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import mec
from mec import objectives
from mec.cli.main import main
from mec.data.dataset import read_image
from mec.embedding.extract import extract
from mec.errors import InputError
from mec.models.encoder import create_encoder
from mec.pretraining import ObjectiveSettings, Run, TeacherSettings, pretrain
from mec.pretraining.distillation import principal_components
from mec.pretraining.recipe_files import default_recipe, load_recipe
from tests.pretraining.test_extra_views import losses
from tests.pretraining.test_resume_after_kill import assert_same_run
from tests.pretraining.test_run import TINY, pretrain_in_two_processes
from tests.pretraining.test_start_encoder import Stop
from tests.processes import needs_gloo

RECIPE = replace(TINY, epochs=2, batch_size=128)


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain("digits", tmp_path_factory.mktemp("teacher") / "run", replace(RECIPE, seed=5, image_size=24))


def expected_targets(features: Tensor, dim: int) -> np.ndarray:
    """Return principal components by a singular value decomposition in float64, up to the sign of each."""
    centered = features.double().numpy() - features.double().numpy().mean(axis=0)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    return np.asarray(left[:, :dim] * values[:dim])


def assert_equal_up_to_signs(components: np.ndarray, expected: np.ndarray) -> None:
    signs = np.sign((components * expected).sum(axis=0))
    np.testing.assert_allclose(components * signs, expected, atol=1e-4 * np.abs(expected).max())


def assert_equal_up_to_rotation(targets: np.ndarray, expected: np.ndarray) -> None:
    """Assert equal inner products of all pairs."""
    products = expected @ expected.T
    np.testing.assert_allclose(targets @ targets.T, products, atol=1e-4 * np.abs(products).max())


@pytest.mark.parametrize("dim", [5, 12])
def test_principal_components_are_those_of_a_decomposition(dim: int) -> None:
    features = torch.randn(700, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1, 12) + 7
    components, explained = principal_components(features, dim)
    expected = expected_targets(features, dim)
    assert_equal_up_to_signs(components.numpy(), expected)
    assert explained == pytest.approx((expected**2).sum() / float(features.double().var(dim=0).sum() * 699), abs=1e-6)


def test_few_images_span_few_directions() -> None:
    features = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    components, explained = principal_components(features, 12)
    assert_equal_up_to_signs(components.numpy()[:, :5], expected_targets(features, 5))
    assert components[:, 5:].abs().max() < 1e-5  # six centered rows span five directions
    assert explained == pytest.approx(1)


class Recording(torch.nn.Module):
    """An objective (codes, targets) that records its arguments."""

    calls: ClassVar[list[tuple[list[Tensor], list[Tensor]]]] = []

    def forward(self, codes: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        self.calls.append(([z.detach().clone() for z in codes], [t.clone() for t in targets]))
        return torch.stack([(z - targets[0][:, : z.shape[1]]).square().mean() for z in codes]).mean()


def test_every_view_of_an_image_has_the_features_of_the_whole_image_as_its_target(
    teacher_run: Run, tmp_path: Path
) -> None:
    teacher = teacher_run.encoder()
    batches: list[np.ndarray] = []

    class Batches(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            batches.append(batch.indices)

    Recording.calls.clear()
    run = pretrain(
        "digits", tmp_path / "run", RECIPE, callbacks=[Batches()], distill_from=teacher, objective=Recording()
    )
    dataset = mec.open_dataset("digits", "pretrain")
    targets = np.load(run.folder / "targets.npy")
    features, _ = extract(dataset, teacher, workers=0)
    assert_equal_up_to_rotation(targets, expected_targets(features, 16))
    variances, of_components = targets.var(axis=0), expected_targets(features, 16).var(axis=0)
    assert variances.max() / variances.min() < 0.1 * of_components.max() / of_components.min()
    _, *calls = Recording.calls  # the first one is a check with random codes
    assert len(calls) == len(batches) == 2 * (1347 // 128)
    for (codes, given), indices in zip(calls, batches, strict=True):
        assert len(codes) == len(given) == 2
        for target in given:
            np.testing.assert_array_equal(target, targets[indices])


def test_the_loss_is_the_mean_of_the_losses_of_each_view_and_the_targets() -> None:
    torch.manual_seed(0)
    codes, target = torch.randn(2, 64, 16), torch.randn(64, 16)
    mec_loss = objectives.MEC()
    expected = torch.stack([mec_loss((z, target)) for z in codes]).mean()
    torch.testing.assert_close(mec_loss(tuple(codes), (target, target)), expected)


def test_a_run_resumes_without_its_teacher(teacher_run: Run, tmp_path: Path) -> None:
    whole = pretrain("digits", tmp_path / "whole", RECIPE, distill_from=teacher_run.encoder())
    with pytest.raises(SystemExit):
        pretrain("digits", tmp_path / "run", RECIPE, callbacks=[Stop()], distill_from=teacher_run.encoder())
    assert "distill_from: encoder of" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert main(["pretrain", "digits", "--out", str(tmp_path / "run"), "--resume", "--probe_every", "0"]) == 0
    assert_same_run(tmp_path / "run", whole.folder)
    (tmp_path / "run" / "targets.npy").unlink()
    with pytest.raises(InputError, match=r"distill_from: the recipe is that of a run with encoder of .*pass it to mec"):
        pretrain("digits", tmp_path / "run", resume=True)


def test_chunks_have_the_losses_of_the_whole_batch(teacher_run: Run, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, optimizer=replace(RECIPE.optimizer, lr=1e-5))
    runs = [
        pretrain("digits", tmp_path / str(chunk), replace(recipe, chunk_size=chunk), distill_from=teacher_run.encoder())
        for chunk in (None, 50)
    ]
    # BatchNorm of the encoder normalizes a chunk
    np.testing.assert_allclose(losses(runs[1]), losses(runs[0]), atol=0.03)


@needs_gloo
def test_two_processes_have_the_targets_of_one(teacher_run: Run, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, optimizer=replace(RECIPE.optimizer, lr=1e-5))
    two = pretrain_in_two_processes("digits", tmp_path / "two", recipe, distill_from=teacher_run.encoder())
    one = pretrain("digits", tmp_path / "one", recipe, distill_from=teacher_run.encoder())
    targets = [np.load(run.folder / "targets.npy") for run in (two, one)]
    assert_equal_up_to_rotation(*targets)
    np.testing.assert_allclose(losses(two), losses(one), atol=0.03)


def test_a_corrupt_image_has_no_target_and_moves_no_other(teacher_run: Run, tmp_path: Path) -> None:
    dataset = mec.open_dataset("digits", "pretrain")
    data = tmp_path / "data"
    data.mkdir()
    for number in range(60):  # too large for the memory of a run, so that it reads the files
        image = Image.fromarray(read_image(dataset, number).squeeze())
        image.resize((150 + number, 180)).save(data / f"{number:02}.png")
    (data / "07.png").write_bytes(b"\x89PNG")
    recipe = replace(RECIPE, channels=1, batch_size=16, epochs=1)
    run = pretrain(data, tmp_path / "run", recipe, distill_from=teacher_run.encoder())
    targets = np.load(run.folder / "targets.npy")
    assert len(targets) == 60
    assert not targets[7].any()
    features, indices = extract(mec.open_dataset(data, "pretrain"), teacher_run.encoder(), workers=0)
    assert indices.tolist() == [i for i in range(60) if i != 7]
    assert_equal_up_to_rotation(targets[indices], expected_targets(features, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": ObjectiveSettings(name="byol")}, "objective: expected mec, or one of .* got BYOL"),
        ({"objective": ObjectiveSettings(name="simclr")}, "objective: expected mec, or one of .* got SimCLR"),
        ({"teacher": TeacherSettings(True)}, "teacher.enabled: expected false with distill_from"),
    ],
)
def test_settings_without_targets_are_refused(
    settings: dict[str, Any], message: str, teacher_run: Run, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        pretrain("digits", tmp_path / "run", replace(RECIPE, **settings), distill_from=teacher_run.encoder())
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="distill_from: expected trained weights, got resnet18"):
        pretrain("digits", tmp_path / "run", RECIPE, distill_from=create_encoder("resnet18", 16, 1))
    assert main(["pretrain", "digits", "--out", str(tmp_path / "run"), "--distill_from", "resnet18"]) == 2
    assert "distill_from: expected trained weights, got resnet18, an architecture" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_default_recipe_is_distill(teacher_run: Run, tmp_path: Path) -> None:
    teacher = teacher_run.encoder()
    assert default_recipe("digits", None, teacher) == "distill"
    assert default_recipe("digits", teacher, teacher) == "adapt"
    folder, options = tmp_path / "run", ["--subsample", "20", "--steps", "2", "--workers", "0", "--probe_every", "0"]
    arguments = ["pretrain", "digits", "--out", str(folder), "--distill_from", str(teacher_run.folder), *options]
    assert main(arguments) == 0
    recipe = Run(folder).recipe()
    assert (recipe.backbone, recipe.view_1) == ("compact_resnet_s4", load_recipe("distill").view_1)


def test_codes_have_at_most_the_dimension_of_the_features(teacher_run: Run, tmp_path: Path) -> None:
    wide = replace(RECIPE, epochs=1, projector=replace(RECIPE.projector, output_dim=64))
    run = pretrain("digits", tmp_path / "run", wide, distill_from=teacher_run.encoder())
    assert run.recipe().projector.output_dim == teacher_run.encoder().num_features == 16
    assert np.load(run.folder / "targets.npy").shape == (1347, 16)
