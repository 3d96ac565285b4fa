"""The precision of a run on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mec
from mec.models.encoder import create_encoder
from mec.pretraining import precision
from mec.pretraining.precision import choose_precision
from mec.pretraining.recipe_files import load_recipe
from mec.pretraining.run_folder import recorded_precision
from mec.pretraining.settings import ProjectorSettings

RECIPE = replace(
    load_recipe("digits"),
    backbone_options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "drop_path_rate": 0.2},
    image_size=24,
    steps=2,
    batch_size=64,
    projector=ProjectorSettings(16, 8),
    workers=0,
    accelerator="cpu",
)


@pytest.fixture
def encoder() -> mec.Encoder:
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "drop_path_rate": 0.2}
    return create_encoder("resnet18", 24, channels=1, options=options).train()


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[bool, float]:
    """Seconds of a pass in float32 (False) and bfloat16 (True), in place of measurements."""
    seconds = {False: 0.1, True: 0.1}
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_seconds", lambda network, size, shape, bfloat16: seconds[bfloat16])
    return seconds


@pytest.mark.parametrize(("bfloat16", "expected"), [(0.05, "bf16-mixed"), (0.095, "32-true"), (0.15, "32-true")])
def test_auto_is_clearly_the_faster_one(
    bfloat16: float, expected: str, encoder: mec.Encoder, speeds: dict[bool, float], tmp_path: Path
) -> None:
    speeds[True] = bfloat16
    assert choose_precision(RECIPE, encoder, tmp_path, resume=False) == expected


@pytest.mark.parametrize(
    "changes", [{"devices": 2}, {"nodes": 2}, {"image_size": 16}, {"precision": "32-true"}], ids=str
)
def test_auto_is_not_measured(
    changes: dict[str, Any], encoder: mec.Encoder, speeds: dict[bool, float], tmp_path: Path
) -> None:
    speeds.clear()
    assert choose_precision(replace(RECIPE, **changes), encoder, tmp_path, resume=False) == "32-true"


def test_processes_of_a_launcher_do_not_measure(
    encoder: mec.Encoder, speeds: dict[bool, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds.clear()
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    assert choose_precision(RECIPE, encoder, tmp_path, resume=False) == "32-true"


def test_a_cpu_without_bfloat16_has_32_true(
    encoder: mec.Encoder, speeds: dict[bool, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds.clear()
    monkeypatch.setattr(precision, "native_bfloat16", lambda: False)
    assert choose_precision(RECIPE, encoder, tmp_path, resume=False) == "32-true"


def test_a_given_precision_is_kept(encoder: mec.Encoder, speeds: dict[bool, float], tmp_path: Path) -> None:
    speeds[True] = 1.0
    assert choose_precision(replace(RECIPE, precision="bf16-mixed"), encoder, tmp_path, resume=False) == "bf16-mixed"


def test_a_resumed_run_keeps_its_precision(speeds: dict[bool, float], tmp_path: Path) -> None:
    speeds[True] = 0.05
    mec.pretrain("digits", tmp_path / "run", RECIPE)
    assert recorded_precision(tmp_path / "run") == "bf16-mixed"
    (tmp_path / "run" / "encoder.safetensors").unlink()  # as if it had been stopped before it was written
    speeds[True] = 1.0
    mec.pretrain("digits", tmp_path / "run", RECIPE, resume=True)
    assert recorded_precision(tmp_path / "run") == "bf16-mixed"


def test_measuring_changes_neither_the_encoder_nor_random_numbers(
    encoder: mec.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    before, random_state = {k: v.clone() for k, v in encoder.state_dict().items()}, torch.get_rng_state()
    assert choose_precision(RECIPE, encoder, tmp_path, resume=False) in ("32-true", "bf16-mixed")
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
