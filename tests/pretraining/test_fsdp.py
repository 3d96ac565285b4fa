"""Weights sharded over two processes (strategy fsdp) train like one process, and resume exactly."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from mec.engine import checkpoints
from mec.engine.fsdp import full_encoder
from mec.errors import InputError
from mec.models.encoder import create_encoder
from mec.pretraining import (
    ObjectiveSettings,
    OnlineProbe,
    OptimizerSettings,
    Recipe,
    Run,
    TeacherSettings,
    pretrain,
)
from tests.models.own_networks import OwnNetwork
from tests.pretraining.test_run import TINY
from tests.processes import needs_gloo, run_ranks

pytestmark = needs_gloo

PAPER = replace(
    TINY,
    backbone="vit_tiny_patch16_224",
    backbone_options={"depth": 2, "embed_dim": 24, "num_heads": 2},
    epochs=1,
    subsample=2,  # five steps
    batch_size=128,
    teacher=TeacherSettings(True, 0.9, 8),
    objective=ObjectiveSettings("cross", 0.25, 4, 8),
    # AdamW would turn the rounding error of a gradient near zero into a full-size update
    optimizer=OptimizerSettings("sgd", 0.05, 1e-5, 0.9, 1),
)
# so small an lr that training does not amplify rounding errors
RESNET = replace(TINY, epochs=1, subsample=2, batch_size=128, optimizer=replace(TINY.optimizer, name="sgd", lr=1e-3))
SHARDED = replace(PAPER, accelerator="cpu", strategy="fsdp")
LARS = OptimizerSettings("lars", 0.2, 1e-4, 0.9, 1, decay_norms_and_biases=False, layer_decay=0.7)
RUNS = {  # name: (recipe, step to resume from)
    "undisturbed": (SHARDED, 0),
    "in chunks": (replace(SHARDED, chunk_size=20, optimizer=LARS), 0),
    "ResNet": (replace(RESNET, accelerator="cpu", strategy="fsdp"), 0),
    "own network": (replace(RESNET, accelerator="cpu", strategy="fsdp"), 0),
    "resumed": (SHARDED, 3),
}


def train(rank: int, folder: Path) -> None:
    checkpoints.SAVE_INTERVAL_SECONDS = checkpoints.SAVE_INTERVAL_FACTOR = 0
    for name, (recipe, step) in RUNS.items():
        if step and rank == 0:
            shutil.copytree(folder / "undisturbed", folder / name)
            for path in (folder / name / "checkpoints").iterdir():
                if not path.name.startswith(f"step={step:09}"):
                    path.unlink()
            (folder / name / "encoder.safetensors").unlink()
        if dist.is_initialized():
            dist.barrier()
        callbacks = [OnlineProbe("digits", 1, 0)] if name == "in chunks" else []
        pretrain("digits", folder / name, recipe, bool(step), callbacks, encoder=own_network(name))


def own_network(name: str) -> nn.Module | None:
    torch.manual_seed(1)  # FSDP does not make the weights of its processes equal
    return OwnNetwork() if name == "own network" else None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run_ranks(2, train, folder)
    return folder


def read_losses(folder: Path) -> list[float]:
    return [row["loss"] for row in Run(folder).metrics()]


@pytest.mark.parametrize("name", ["undisturbed", "in chunks", "ResNet", "own network"])
def test_sharded_training_equals_that_of_one_process(runs: Path, tmp_path: Path, name: str) -> None:
    recipe: Recipe = replace(RUNS[name][0], strategy="auto", chunk_size=None)
    pretrain("digits", tmp_path, recipe, encoder=own_network(name))
    assert read_losses(runs / name) == pytest.approx(read_losses(tmp_path), abs=1e-4)
    actual, expected = (load_file(f / "encoder.safetensors") for f in (runs / name, tmp_path))
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(actual[key], tensor, rtol=1e-3, atol=1e-4)


def test_resume_of_sharded_weights_is_bit_identical(runs: Path) -> None:
    weights = [(runs / name / "encoder.safetensors").read_bytes() for name in ("undisturbed", "resumed")]
    assert weights[0] == weights[1]
    assert read_losses(runs / "undisturbed") == read_losses(runs / "resumed")


def test_a_checkpoint_of_sharded_weights_stands_for_a_run_that_has_not_ended(runs: Path, tmp_path: Path) -> None:
    final = Run(runs / "resumed").encoder()
    shutil.copytree(runs / "resumed", tmp_path / "run")
    (tmp_path / "run" / "encoder.safetensors").unlink()
    loaded = Run(tmp_path / "run").encoder()
    assert "checkpoint of step 5" in loaded.origin
    for tensor, expected in zip(loaded.parameters(), final.parameters(), strict=True):
        assert torch.equal(tensor, expected)


def test_online_probes_run_on_sharded_weights(runs: Path) -> None:
    assert len((runs / "in chunks" / "probes.csv").read_text().splitlines()) == 3  # header, start, end


def test_an_encoder_that_is_not_sharded_is_returned_as_it_is() -> None:
    encoder = create_encoder("resnet18", 32)
    assert full_encoder(encoder) is encoder


def test_float16_with_fsdp_is_refused() -> None:
    with pytest.raises(InputError, match="precision: expected 32-true or bf16-mixed with strategy fsdp"):
        replace(SHARDED, precision="16-mixed")


def test_an_optimizer_that_was_not_tested_with_fsdp_is_refused() -> None:
    with pytest.raises(InputError, match=r"optimizer.name: expected sgd, .* or muon with strategy fsdp, got 'lion'"):
        replace(SHARDED, optimizer=replace(SHARDED.optimizer, name="lion"))
