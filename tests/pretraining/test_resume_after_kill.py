"""Runs that are killed at random moments and resumed end with the same weights."""

from __future__ import annotations

import random
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec.pretraining import ObjectiveSettings, OptimizerSettings, Recipe, Run, TeacherSettings
from tests.data.transforms.test_geometry import photograph
from tests.pretraining.interrupted_runs import CHECKPOINT_MOMENTS, run_until_killed
from tests.pretraining.test_run import TINY


def assert_same_run(a: Path, b: Path) -> None:
    """Assert equal weights, bit for bit, and equal losses at every step."""
    assert (a / "encoder.safetensors").read_bytes() == (b / "encoder.safetensors").read_bytes()
    losses = [[(row["step"], row["loss"]) for row in Run(out).metrics()] for out in (a, b)]
    assert losses[0] == losses[1]


def test_resume_is_bit_identical_after_9_sigkills(tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=8, backbone_options={**TINY.backbone_options, "drop_path_rate": 0.3})
    rng = random.Random(0)
    moments = [(moment, rng.randint(1, 2)) for moment in CHECKPOINT_MOMENTS]
    moments += [("locked", rng.randint(1, 80_000)), ("metrics opened", rng.randint(1, 250))]
    moments += [("metrics opened", rng.randint(250, 60_000)) for _ in range(3)]
    rng.shuffle(moments)
    killed, checkpoints = tmp_path / "killed", tmp_path / "killed" / "checkpoints"
    leftovers: set[str] = set()
    for moment in moments:
        assert run_until_killed("digits", killed, recipe, moment) == -signal.SIGKILL, moment
        names = [path.name for path in checkpoints.glob("*")]
        leftovers |= {"temporary file"} if any(name.startswith(".") for name in names) else set()
        leftovers |= {"no checksum"} if any("-" not in name for name in names if name[0] != ".") else set()
        leftovers |= {"not pruned"} if len(names) > 3 else set()
    assert leftovers == {"temporary file", "no checksum", "not pruned"}
    assert not (killed / "encoder.safetensors").exists()
    assert run_until_killed("digits", killed, recipe) == 0
    assert run_until_killed("digits", tmp_path / "undisturbed", recipe) == 0
    assert_same_run(killed, tmp_path / "undisturbed")
    steps = [path.name.partition("-")[0] for path in sorted(checkpoints.iterdir())]
    assert steps == ["step=000000038", "step=000000039", "step=000000040"]


PAPER = Recipe(
    backbone="resnet18",
    backbone_options={**TINY.backbone_options, "drop_path_rate": 0.2},
    image_size=32,
    epochs=4,
    batch_size=6,
    log_every=1,
    projector=TINY.projector,
    workers=2,
    precision="32-true",
    objective=ObjectiveSettings("cross", 0.25, 4, 8),
    teacher=TeacherSettings(True, 0.9, 8),
    optimizer=OptimizerSettings("sgd", 0.1, 1e-5, 0.9, 1),
)


def write_photographs(folder: Path) -> Path:
    folder.mkdir()
    for i in range(20):
        Image.fromarray(photograph(60 + 5 * i, 70)).save(folder / f"{i:02}.jpg")
    return folder


def write_shards(folder: Path) -> Path:
    images = write_photographs(folder.with_name("images"))
    folder.mkdir()
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for i in range(shard * 5, shard * 5 + 5):
                archive.add(images / f"{i:02}.jpg", f"{i:02}.jpg")
    return folder


@pytest.mark.parametrize("write_data", [write_photographs, write_shards])
def test_resume_is_bit_identical_with_workers_teacher_and_momentum(
    write_data: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data")
    for moment in (("metrics opened", 40_000), ("with checksum", 3), ("metrics opened", 70_000)):
        assert run_until_killed(data, tmp_path / "killed", PAPER, moment) == -signal.SIGKILL
    # loader processes of the killed run may hold the lock for a moment, which the resumed run waits for
    assert run_until_killed(data, tmp_path / "killed", PAPER) == 0
    assert run_until_killed(data, tmp_path / "undisturbed", replace(PAPER, workers=0)) == 0
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")
    losses = [row["loss"] for row in Run(tmp_path / "killed").metrics()]
    assert len(losses) == 12
    assert np.isfinite(losses).all()
