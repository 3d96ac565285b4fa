"""Objectives of users, and all built-in ones, in ``pretrain``: in one process and two, in chunks, with targets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize, relu
from torchvision.transforms import v2

import mec
from mec.cli.main import main
from mec.engine.checkpoints import latest_checkpoint
from mec.errors import InputError
from mec.models import load_encoder
from mec.models.checkpoint_files import checkpoint_step
from mec.objectives import MEC, OBJECTIVES
from mec.pretraining import ObjectiveSettings, OptimizerSettings, ProjectorSettings, Recipe, Run, TeacherSettings
from mec.report import write_report
from tests.processes import FORKSERVER, exit_status, needs_gloo, run_ranks, use_fork

RECIPE = replace(
    mec.load_recipe("digits"),
    backbone="test_resnet",
    backbone_options={},
    image_size=16,
    subsample=10,
    batch_size=32,
    epochs=2,
    log_every=1,
    projector=ProjectorSettings(32, 16),
    teacher=TeacherSettings(predictor_hidden_dim=8),
    optimizer=OptimizerSettings("sgd", 0.05, warmup_epochs=0.5),
    accelerator="cpu",
    precision="32-true",
    workers=0,
)
STEPS_PER_EPOCH = 4  # of 135 images, 32 at a time
Codes = Sequence[Tensor]


def simclr(codes: Codes) -> Tensor:
    """SimCLR of a user, for one process."""
    z = normalize(torch.cat([*codes]))
    similarity = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
    m = len(codes[0])
    return cross_entropy(similarity, torch.arange(2 * m).roll(m))


class VICReg(nn.Module):
    """VICReg of a user, with all optional attributes, noise, and a trained weight of the invariance."""

    batch_norm = False

    def __init__(self, variance: float = 25.0) -> None:
        super().__init__()
        self.variance, self.log_weight, self.progress = variance, nn.Parameter(torch.zeros(())), -1.0

    def forward(self, codes: Codes) -> Tensor:
        invariance = mse_loss(*(z + 0.1 * torch.randn_like(z) for z in codes))
        spread = sum(relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in codes)
        covariances = [z.T.cov() for z in codes]
        redundancy = sum((C - C.diag().diag()).square().sum() / len(C) for C in covariances)
        return 25 * (invariance * self.log_weight.exp() - self.log_weight) + self.variance * spread + redundancy

    def health(self, codes: Codes) -> dict[str, Any]:
        return {"deviation": codes[0].std(0).mean(), "progress": self.progress, "rows": len(codes[0])}

    def warmup(self, progress: float) -> None:
        self.progress = progress


def cosine(codes: Codes, targets: Codes) -> Tensor:
    """Distance of predictions and targets, of a user."""
    assert not any(t.requires_grad for t in targets)
    a, b, s, t = map(normalize, (*codes, *targets))
    return 2 - (a * t + b * s).sum(1).mean()


def of_all_views(codes: Codes) -> Tensor:
    """Variance between four views, and the logarithm of the variances of their mean."""
    views = torch.stack([*codes])
    assert len(views) == 4
    return views.var(0).mean() - views.mean(0).var(0).add(1e-4).log().mean()


class Recorder(lightning.Callback):
    """Records the module, its losses and the final weights, in float64 if ``dtype`` says so; kills at a step."""

    def __init__(self, dtype: torch.dtype = torch.float32, kill_at: int | None = None) -> None:
        self.dtype, self.kill_at, self.losses = dtype, kill_at, []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.module = pl_module.to(self.dtype)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(pl_module.step_metrics["loss"]))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        names = ("network.", "objective.")
        self.weights = {name: t.clone() for name, t in pl_module.state_dict().items() if name.startswith(names)}


def recorded_run(out: Path, recipe: Recipe = RECIPE, dtype: torch.dtype = torch.float32, **arguments: Any) -> Recorder:
    recorder = Recorder(dtype)
    mec.pretrain("digits", out, recipe, callbacks=[recorder], **arguments)
    return recorder


def single_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert " at 0x" not in message
    return message


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
    rows = [[(row["step"], row["loss"], row["deviation"]) for row in Run(folder).metrics()] for folder in folders]
    assert rows[0] == rows[1]


def last_state(run: Path) -> dict[str, Tensor]:
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=False)["state_dict"]
    return state


def test_metrics_warm_up_and_parameters_of_an_objective(undisturbed: Run) -> None:
    rows = undisturbed.metrics()
    assert len(rows) == 2 * STEPS_PER_EPOCH
    assert rows[0].keys() >= {"loss", "deviation", "progress", "rows", "effective_rank", "rankme", "alpha_req", "lr"}
    assert "coding_length" not in rows[0]
    assert {row["rows"] for row in rows} == {32}
    assert all(0.01 < row["deviation"] < 10 for row in rows)
    # half an epoch of warm-up: two steps, from 0 to 1
    assert [row["progress"] for row in rows] == [0, 1, 1, 1, 1, 1, 1, 1]
    state = last_state(undisturbed.folder)
    (weight,) = [value for name, value in state.items() if name.endswith("log_weight")]
    assert weight != 0
    assert not any("projector.7" in name for name in state)  # batch_norm = False
    assert load_encoder(undisturbed.folder).num_features > 0


def test_recipe_and_report_name_the_objective_and_no_settings_of_mec(undisturbed: Run, tmp_path: Path) -> None:
    described = f"{__name__}.VICReg(variance=10.0)"
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
    assert (objective.log_weight.item(), objective.progress) == (0, -1)
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


# Targets and views


def with_attributes(function: Callable[..., Tensor], **attributes: Any) -> Callable[..., Tensor]:
    def objective(*arguments: Any) -> Tensor:
        return function(*arguments)

    vars(objective).update(attributes)
    return objective


TEACHER = TeacherSettings(True, 0.9, 8)
NETWORKS: dict[str, tuple[Any, TeacherSettings, tuple[bool, bool, bool]]] = {
    # objective, teacher settings, whether the network has a predictor, a teacher and a last BatchNorm
    "of a user, teacher": (cosine, TEACHER, (True, True, True)),
    "of a user, no predictor": (
        with_attributes(cosine, targets="teacher", predictor=False),
        TEACHER,
        (False, True, True),
    ),
    "of a user, student": (with_attributes(cosine, targets="student"), RECIPE.teacher, (True, False, True)),
    "of a user, no BatchNorm": (with_attributes(simclr, batch_norm=False), RECIPE.teacher, (False, False, False)),
    "simsiam": ("simsiam", RECIPE.teacher, (True, False, True)),
    "byol": ("byol", RECIPE.teacher, (True, True, False)),
    "simdino": ("simdino", RECIPE.teacher, (False, True, False)),
    "vicreg": ("vicreg", RECIPE.teacher, (False, False, False)),
    "mec": ("mec", RECIPE.teacher, (False, False, True)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_objective_determines_the_heads_and_targets(name: str, tmp_path: Path) -> None:
    objective, teacher, expected = NETWORKS[name]
    recipe = replace(RECIPE, epochs=1, teacher=teacher)
    if isinstance(objective, str):
        recipe, objective = replace(recipe, objective=ObjectiveSettings(name=objective)), None
    run = recorded_run(tmp_path, recipe, objective=objective)
    network = run.module.network
    has_batch_norm = isinstance(network.projector[-1], nn.BatchNorm1d)
    assert (network.predictor is not None, network.teacher is not None, has_batch_norm) == expected
    assert Run(tmp_path).recipe().teacher.enabled == expected[1]
    assert np.isfinite(run.losses).all()
    assert np.ptp(run.losses) > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_built_in_objectives_train_by_name(name: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, subsample=20, epochs=1, objective=ObjectiveSettings(name=name))
    rows = mec.pretrain("digits", tmp_path, recipe).metrics()
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert ("coding_length" in rows[0]) == (name == "mec")


AUGMENT = v2.Compose([v2.RandomResizedCrop(16, (0.5, 1.0)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def four_views(image: Any) -> list[Tensor]:
    return [AUGMENT(image) for _ in range(4)]


@pytest.mark.parametrize("objective", [of_all_views, None])
def test_objectives_are_given_four_views(objective: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, objective=ObjectiveSettings(name="simclr"))
    run = recorded_run(tmp_path, recipe, objective=objective, view_transform=four_views)
    assert run.module.views.num_views == 4
    assert np.isfinite(run.losses).all()


def test_mec_with_four_views_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^objective: .*MEC: .* of 4 views: .*two") as error:
        mec.pretrain("digits", tmp_path / "run", RECIPE, view_transform=four_views)
    single_line(error)
    assert not (tmp_path / "run").exists()


# Errors


def raises(codes: Codes) -> Tensor:
    raise RuntimeError("two\nlines")


class Copied:
    """An objective that cannot be copied."""

    def __call__(self, codes: Codes) -> Tensor:
        return simclr(codes)

    def __deepcopy__(self, memo: Any) -> Copied:
        raise TypeError("holds a lock")


REFUSED = {
    "not callable": (7, r"expected a callable .*got 7"),
    "a name": ("simclr", r"got 'simclr'; the setting objective.name"),
    "a class": (VICReg, r"expected a callable .*got the class .*VICReg; create an object of it"),
    "a vector": (lambda codes: codes[0].sum(1), r"expected a scalar tensor, got a tensor of shape \(32,\)"),
    "None": (lambda codes: None, r"expected a scalar tensor, got NoneType"),
    "an error": (raises, r"raises: failed for codes of 2 views: two lines"),
    "no gradient": (lambda codes: codes[0].detach().sum(), r"gradient"),
    "no gradient in the codes": (lambda codes: torch.ones((), requires_grad=True) + 0, r"gradient"),
    "not finite": (lambda codes: simclr(codes) / 0, r"finite"),
    "infinite gradient": (lambda codes: (codes[0] * 0).sum().sqrt(), r"finite"),
    "needs targets": (cosine, r"'targets'; for targets, set teacher.enabled"),
    "unknown targets": (with_attributes(cosine, targets="techer"), r"targets: expected .*'teacher', got 'techer'"),
    "cannot be copied": (Copied(), r"cannot be copied: holds a lock"),
    "health, no numbers": (with_attributes(simclr, health=lambda codes: {"a": "b"}), r"health: expected numbers"),
    "health, vectors": (with_attributes(simclr, health=lambda codes: {"a": codes[0]}), r"health: expected numbers"),
    "health, no mapping": (with_attributes(simclr, health=lambda codes: 3), r"health: expected a mapping"),
    "health, other column": (with_attributes(simclr, health=lambda codes: {"lr": 3}), r"health: .*'lr'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_objective_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    objective, message = REFUSED[name]
    with pytest.raises(InputError, match=rf"^objective: .*{message}") as error:
        mec.pretrain("digits", tmp_path / "run", RECIPE, objective=objective)
    single_line(error)
    assert not (tmp_path / "run").exists()


def test_metrics_that_change_during_the_run_are_refused(tmp_path: Path) -> None:
    calls: list[int] = []

    def health(codes: Codes) -> dict[str, float]:
        calls.append(1)
        return {"first": 0.0} if len(calls) < 3 else {}

    with pytest.raises(InputError, match=r"health: expected .*first at every step") as error:
        mec.pretrain("digits", tmp_path, RECIPE, objective=with_attributes(simclr, health=health))
    single_line(error)


def test_fsdp_does_not_shard_an_objective(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^strategy: expected ddp .*objective") as error:
        mec.pretrain("digits", tmp_path / "run", replace(RECIPE, strategy="fsdp"), objective=VICReg())
    single_line(error)
    assert not (tmp_path / "run").exists()


def test_an_objective_that_joins_processes_is_given_the_codes_of_its_process(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, replace(RECIPE, epochs=1), objective=MEC(0.25))
    assert isinstance(run.module.objective.function, MEC)
    expected = recorded_run(tmp_path / "named", replace(RECIPE, epochs=1, objective=ObjectiveSettings(distortion=0.25)))
    assert run.losses == expected.losses
