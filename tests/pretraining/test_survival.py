"""Runs that are killed at random moments, and resumed."""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec.pretraining import ObjectiveSettings, OptimizerSettings, Recipe, Run, TeacherSettings
from tests.data.transforms.test_geometry import photograph
from tests.pretraining.kills import WRITES, attempt
from tests.pretraining.test_run import TINY


def assert_same(killed: Path, undisturbed: Path) -> None:
    assert (killed / "encoder.safetensors").read_bytes() == (undisturbed / "encoder.safetensors").read_bytes()
    losses = [[(row["step"], row["loss"]) for row in Run(out).metrics()] for out in (killed, undisturbed)]
    assert losses[0] == losses[1]


def test_a_run_killed_28_times_ends_as_if_never_stopped(tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=8, backbone_options={**TINY.backbone_options, "drop_path_rate": 0.3})
    draw = random.Random(0)
    moments = [(kind, draw.randint(1, 2)) for kind in WRITES for _ in range(2)]
    moments += [("held", draw.randint(1, 80_000)) for _ in range(4)]
    moments += [("metrics", draw.randint(1, 250)) for _ in range(4)]
    moments += [("metrics", draw.randint(250, 60_000)) for _ in range(12)]
    draw.shuffle(moments)
    killed, checkpoints = tmp_path / "killed", tmp_path / "killed" / "checkpoints"
    left: set[str] = set()
    for moment in moments:
        assert attempt("digits", killed, recipe, moment) == -signal.SIGKILL, moment
        names = [path.name for path in checkpoints.glob("*")]
        left |= {"a part"} if any(name.startswith(".") for name in names) else set()
        left |= {"without its checksum"} if any("-" not in name for name in names if name[0] != ".") else set()
        left |= {"not pruned"} if len(names) > 3 else set()
    assert left == {"a part", "without its checksum", "not pruned"}
    assert not (killed / "encoder.safetensors").exists()
    assert attempt("digits", killed, recipe) == 0
    assert attempt("digits", tmp_path / "undisturbed", recipe) == 0
    assert_same(killed, tmp_path / "undisturbed")
    steps = [path.name.partition("-")[0] for path in sorted(checkpoints.iterdir())]
    assert steps == ["step=000000038", "step=000000039", "step=000000040"]


PAPERS = Recipe(
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


def photographs(folder: Path) -> Path:
    folder.mkdir()
    for i in range(20):
        Image.fromarray(photograph(60 + 5 * i, 70)).save(folder / f"{i:02}.jpg")
    return folder


def shards(folder: Path) -> Path:
    import tarfile

    images = photographs(folder.with_name("images"))
    folder.mkdir()
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for i in range(shard * 5, shard * 5 + 5):
                archive.add(images / f"{i:02}.jpg", f"{i:02}.jpg")
    return folder


@pytest.mark.parametrize("source", [photographs, shards])
def test_killed_with_loader_processes_teacher_and_momentum(source: object, tmp_path: Path) -> None:
    assert callable(source)
    data = source(tmp_path / "data")
    for moment in (("metrics", 40_000), ("named", 3), ("metrics", 70_000)):
        assert attempt(data, tmp_path / "killed", PAPERS, moment) == -signal.SIGKILL
    # its loader processes may still hold the folder for a moment: that is waited for
    assert attempt(data, tmp_path / "killed", PAPERS) == 0
    assert attempt(data, tmp_path / "undisturbed", replace(PAPERS, workers=0)) == 0
    assert_same(tmp_path / "killed", tmp_path / "undisturbed")
    losses = [row["loss"] for row in Run(tmp_path / "killed").metrics()]
    assert len(losses) == 12
    assert np.isfinite(losses).all()
