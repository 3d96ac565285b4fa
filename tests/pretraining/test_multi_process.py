"""The same global batch gives the same training on 1, 2 and 4 processes, whatever the source."""

import multiprocessing
import os
import socket
import time
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from mec.pretraining import ObjectiveSettings, OptimizerSettings, Recipe, TeacherSettings, pretrain
from tests.data.datasets.shard_files import write_tar
from tests.pretraining.test_run import TINY

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

IMAGES, BATCH, STEPS = 163, 32, 20
TIME_LIMIT = 300.0
POOLED = replace(
    TINY,
    backbone_options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "zero_init_last": False},
    channels=3,
    batch_size=BATCH,
    accelerator="cpu",
    precision="32-true",
)
TOLERANCES = {torch.float64: (1e-11, 1e-10), torch.float32: (1e-5, 1e-4)}
"""Of losses, and of weights, against the largest of their tensor where that is above 1.

What differs between numbers of processes is the order of sums. In float64 that stays rounding over 20 steps; in
float32 training multiplies it (SGD at ten times this rate a millionfold), so that the learning rate must be small.
"""
PAPER = replace(
    POOLED,
    objective=ObjectiveSettings("cross", 0.25, 4, 8),
    teacher=TeacherSettings(True, 0.9, 8),
    optimizer=OptimizerSettings("sgd", 0.04, 1e-5, 0.9, 1),
)
IN_CHUNKS = replace(
    PAPER, backbone="vit_tiny_patch16_224", backbone_options={"embed_dim": 8, "depth": 1, "num_heads": 2}
)


def gently(recipe: Recipe) -> Recipe:
    return replace(recipe, optimizer=replace(recipe.optimizer, lr=recipe.optimizer.lr / 20))


RUNS = {  # name: source, recipe, precision; in chunks on several processes only
    "arrays, pooled": ("arrays.npz", POOLED, torch.float64),
    "folder, paper": ("folder", PAPER, torch.float64),
    "shards, pooled": ("shards", gently(POOLED), torch.float32),
    "table, paper": ("table.parquet", gently(PAPER), torch.float32),
    "arrays, in chunks": ("arrays.npz", IN_CHUNKS, torch.float64),
}


def write_sources(folder: Path) -> None:
    """Coarse patterns, which a network tells apart: files of many sizes, which do not rest in memory, and arrays."""
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


class Watched(lightning.Callback):
    """Makes the network that of a precision, and notes each step's loss and images and the weights at the end."""

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


def train(rank: int, processes: int, folder: Path, port: int) -> None:
    """All runs, one after another, as torchrun starts one of ``processes``."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"}
    for number, (source, recipe, dtype) in enumerate(RUNS.values()):
        watched = Watched(dtype)
        if recipe is IN_CHUNKS and processes > 1:
            recipe = replace(recipe, chunk_size=3)
        out = folder / f"{number} on {processes}"
        pretrain(folder / source, out, recipe, console=Console(file=StringIO()), callbacks=[watched])
        torch.save([watched.losses, watched.images, watched.weights], out / f"{rank}.pt")


def in_processes(processes: int, folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports everything once for all of them
    started = [context.Process(target=train, args=(rank, processes, folder, port)) for rank in range(processes)]
    deadline = time.monotonic() + TIME_LIMIT
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
    assert [process.exitcode for process in started] == [0] * processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_sources(folder)
    for processes in (1, 2, 4):
        in_processes(processes, folder)
    return folder


def results(folder: Path, name: str, processes: int) -> list[Any]:
    out = folder / f"{list(RUNS).index(name)} on {processes}"
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", RUNS)
def test_the_same_training_on_any_number_of_processes(folder: Path, name: str, processes: int) -> None:
    ((losses, images, weights),) = results(folder, name, 1)
    several = results(folder, name, processes)
    of_losses, of_weights = TOLERANCES[RUNS[name][2]]
    assert len(losses) == STEPS
    for step in range(STEPS):
        assert [i for _, own, _ in several for i in own[step]] == images[step]
    for own_losses, _, own_weights in several:
        assert own_losses == several[0][0]
        np.testing.assert_allclose(own_losses, losses, rtol=0, atol=of_losses)
        for tensor_name, tensor in weights.items():
            assert torch.equal(own_weights[tensor_name], several[0][2][tensor_name])
            largest = max(1.0, float(tensor.abs().max()))
            assert float((own_weights[tensor_name] - tensor).abs().max()) <= of_weights * largest, tensor_name
