"""Training on 1, 2 and 4 processes is the same for the same global batch, from every kind of dataset."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mec.data.transforms import ExtraViewSettings
from mec.pretraining import ObjectiveSettings, OptimizerSettings, Recipe, TeacherSettings, pretrain
from tests.data.datasets.shard_files import write_tar
from tests.pretraining.test_run import TINY
from tests.processes import needs_gloo, run_ranks

pytestmark = needs_gloo

IMAGES, BATCH, STEPS = 163, 32, 10
DEFAULT = replace(
    TINY,
    backbone_options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "zero_init_last": False},
    channels=3,
    epochs=2,
    batch_size=BATCH,
    accelerator="cpu",
    precision="32-true",
)
TOLERANCES = {torch.float64: (1e-11, 1e-10), torch.float32: (3e-5, 1e-4)}
"""Tolerances of losses and of weights; those of weights relative to the largest of their tensor if that is above 1.

The number of processes changes the order of sums. In float64 the differences remain rounding errors over ten steps. In
float32 training amplifies them (SGD at ten times this lr a millionfold), so that the lr must be small.
"""
PAPER = replace(
    DEFAULT,
    objective=ObjectiveSettings("cross", 0.25, 4, 8),
    teacher=TeacherSettings(True, 0.9, 8),
    optimizer=OptimizerSettings("sgd", 0.04, 1e-5, 0.9, 1),
)
IN_CHUNKS = replace(
    PAPER, backbone="vit_tiny_patch16_224", backbone_options={"embed_dim": 8, "depth": 1, "num_heads": 2}
)
GROWING = replace(
    DEFAULT, image_size=20, resolution_schedule=(14, 20), extra_views=ExtraViewSettings(count=2, image_size=12)
)


def with_small_lr(recipe: Recipe) -> Recipe:
    return replace(recipe, optimizer=replace(recipe.optimizer, lr=recipe.optimizer.lr / 20))


RUNS = {  # name: (data, recipe, dtype); "in chunks" applies to several processes only
    "arrays, default": ("arrays.npz", DEFAULT, torch.float64),
    "folder, paper": ("folder", PAPER, torch.float64),
    "shards, default": ("shards", with_small_lr(DEFAULT), torch.float32),
    "table, paper": ("table.parquet", with_small_lr(PAPER), torch.float32),
    "folder, growing views and local ones": ("folder", GROWING, torch.float64),
    "arrays, in chunks": ("arrays.npz", IN_CHUNKS, torch.float64),
}
CASES = [(name, 2) for name in RUNS] + [("shards, default", 4)]
"""Names of runs, and numbers of processes."""


def write_datasets(folder: Path) -> None:
    """Write coarse random patterns as files of many sizes, which are not loaded into memory, and as arrays."""
    patterns = np.random.default_rng(0).integers(0, 256, (IMAGES, 4, 4, 3), dtype=np.uint8)
    encoded = [png(pattern, (20 + i % 5, 24)) for i, pattern in enumerate(patterns)]
    (folder / "folder").mkdir()
    for i, data in enumerate(encoded):
        (folder / "folder" / f"{i:03}.png").write_bytes(data)
    for shard, numbers in enumerate((range(70), range(70, 90), range(90, IMAGES))):
        write_tar(folder / "shards" / f"{shard}.tar", [(f"{i:03}.png", encoded[i]) for i in numbers])
    pyarrow.parquet.write_table(pyarrow.table({"image": encoded}), folder / "table.parquet")
    np.savez(folder / "arrays.npz", images=patterns.repeat(5, axis=1).repeat(5, axis=2))


def png(pattern: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    file = BytesIO()
    Image.fromarray(pattern).resize(size, Image.Resampling.NEAREST).save(file, "png")
    return file.getvalue()


class Recorder(lightning.Callback):
    """Converts the network to a dtype, and records loss and images of every step and the final weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.losses: list[float] = []
        self.images: list[list[int]] = []
        self.weights: dict[str, torch.Tensor] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.network.to(self.dtype)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(pl_module.step_metrics["loss"]))
        self.images.append(batch.indices.tolist())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights = {name: tensor.clone() for name, tensor in pl_module.network.state_dict().items()}


def train(rank: int, processes: int, folder: Path) -> None:
    """Train the runs of ``CASES`` in one of ``processes`` processes."""
    for number, (name, (data, recipe, dtype)) in enumerate(RUNS.items()):
        if processes > 1 and (name, processes) not in CASES:
            continue
        recorder = Recorder(dtype)
        if recipe is IN_CHUNKS and processes > 1:
            recipe = replace(recipe, chunk_size=3)
        out = folder / f"{number} on {processes}"
        pretrain(folder / data, out, recipe, callbacks=[recorder])
        torch.save([recorder.losses, recorder.images, recorder.weights], out / f"{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_datasets(folder)
    for processes in (1, 2, 4):
        run_ranks(processes, train, processes, folder)
    return folder


def load_results(folder: Path, name: str, processes: int) -> list[Any]:
    out = folder / f"{list(RUNS).index(name)} on {processes}"
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize(("name", "processes"), CASES)
def test_losses_images_and_weights_are_independent_of_the_number_of_processes(
    folder: Path, name: str, processes: int
) -> None:
    ((losses, images, weights),) = load_results(folder, name, 1)
    ranks = load_results(folder, name, processes)
    loss_tolerance, weight_tolerance = TOLERANCES[RUNS[name][2]]
    assert len(losses) == STEPS
    for step in range(STEPS):
        assert [i for _, rank_images, _ in ranks for i in rank_images[step]] == images[step]
    for rank_losses, _, rank_weights in ranks:
        assert rank_losses == ranks[0][0]
        np.testing.assert_allclose(rank_losses, losses, rtol=0, atol=loss_tolerance)
        for tensor_name, tensor in weights.items():
            assert torch.equal(rank_weights[tensor_name], ranks[0][2][tensor_name])
            largest = max(1.0, float(tensor.abs().max()))
            assert float((rank_weights[tensor_name] - tensor).abs().max()) <= weight_tolerance * largest, tensor_name
