"""The order of training: global batches do not depend on the number of processes and workers."""

import io
import itertools
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from mec.data import ArrayDataset, PixelFormat, TwoViews, open_dataset
from mec.data.loaders import TrainingLoader, training_loader, training_sampler
from mec.data.order import EpochSampler, StepSampler, choose_num_lanes
from mec.data.transforms.crop import Batch
from tests.data.datasets.shard_files import CPU, encode_image, write_tar

SIZES = (40, 3, 61, 17)
TOTAL, GLOBAL_BATCH, STEPS = 121, 24, 5
CORRUPT = [5, *range(50, 62), 118]
TRUNCATED = range(98, 104)
"""The end of the third shard."""

CONTENTS = [b"no image" if i in CORRUPT else encode_image(i) for i in range(TOTAL)]


def shards(folder: Path) -> Any:
    first = 0
    for shard, size in enumerate(SIZES):
        members = [(f"{i:04}.jpg", CONTENTS[i]) for i in range(first, first + size)]
        write_tar(folder / f"{shard}.tar", members)
        first += size
    with tarfile.open(folder / "2.tar") as tar:
        position = tar.getmember(f"{TRUNCATED[0]:04}.jpg").offset_data
    with (folder / "2.tar").open("r+b") as file:
        file.truncate(position)
    (folder / "sizes.json").write_text(json.dumps({f"{shard}.tar": size for shard, size in enumerate(SIZES)}))
    return open_dataset(folder, "pretrain")


def files(folder: Path) -> Any:
    folder.mkdir()
    for i, content in enumerate(CONTENTS):
        (folder / f"{i:04}.jpg").write_bytes(content)
    return open_dataset(folder)


def arrays(_: Path) -> ArrayDataset:
    return ArrayDataset("a", np.random.default_rng(0).integers(0, 256, (TOTAL, 8, 8, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("order")
    return {create.__name__: create(folder / create.__name__) for create in (shards, files, arrays)}


def create_loader(dataset: Any, rank: int = 0, world_size: int = 1, workers: int = 0) -> TrainingLoader:
    sampler = training_sampler(dataset, GLOBAL_BATCH // world_size, 0, rank, world_size)
    return training_loader(dataset, TwoViews(16, seed=3), sampler, PixelFormat(), CPU, workers)


def global_batches(dataset: Any, world_size: int = 1, workers: int = 0, epoch: int = 1) -> list[dict[str, Any]]:
    """Return the batches of an epoch, concatenated over the processes."""
    loaders = [create_loader(dataset, rank, world_size, workers) for rank in range(world_size)]
    for loader in loaders:
        loader.sampler.set_epoch(epoch)
        assert len(loader) == STEPS
    return [concatenate(batches) for batches in zip(*loaders, strict=True)]


def concatenate(batches: tuple[Batch, ...]) -> dict[str, Any]:
    assert len({len(b.indices) for b in batches}) == 1
    assert {b.epoch for b in batches} == {1}
    return {
        "indices": [i for b in batches for i in b.indices.tolist()],
        "source_indices": [i for b in batches for i in b.source_indices.tolist()],
        "corrupt": {image.title for b in batches for image in b.corrupt},
        "images": torch.cat([b.images for b in batches]),
    }


def assert_same(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert all(a[key] == b[key] for key in ("indices", "source_indices", "corrupt"))
        assert torch.equal(a["images"], b["images"])


@pytest.fixture(scope="module")
def epochs(datasets: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The batches of one process without workers."""
    return {name: global_batches(dataset) for name, dataset in datasets.items()}


@pytest.mark.parametrize(
    ("name", "world_size", "workers"),
    [("shards", 1, 2), ("shards", 2, 1), ("shards", 4, 0), ("files", 2, 2), ("arrays", 2, 0)],
)
def test_global_batches_do_not_depend_on_processes_and_workers(
    datasets: dict[str, Any], epochs: dict[str, Any], name: str, world_size: int, workers: int
) -> None:
    assert_same(global_batches(datasets[name], world_size, workers), epochs[name])


@pytest.mark.parametrize("name", ["shards", "files", "arrays"])
def test_each_image_comes_at_most_once_per_epoch(epochs: dict[str, Any], name: str) -> None:
    batches = epochs[name]
    indices = [i for b in batches for i in b["indices"]]
    assert len(set(indices)) == len(indices) == STEPS * GLOBAL_BATCH == TOTAL - 1
    assert set(indices) < set(range(TOTAL))
    corrupt = set(CORRUPT) | (set(TRUNCATED) if name == "shards" else set())
    for batch in batches if name != "arrays" else ():
        for index, source_index in zip(batch["indices"], batch["source_indices"], strict=True):
            assert source_index not in corrupt
            assert (source_index == index) == (index not in corrupt)


@pytest.mark.parametrize(
    ("name", "step", "workers"),
    [("shards", 1, 0), ("shards", 3, 2), ("files", 1, 2), ("arrays", 4, 0)],
)
def test_epoch_resumes_at_any_step(
    datasets: dict[str, Any], epochs: dict[str, Any], name: str, step: int, workers: int
) -> None:
    dataset, epoch = datasets[name], epochs[name]
    loader = create_loader(dataset, workers=workers)
    loader.sampler.resume_at(1, step)
    second, first = iter(loader), iter(loader)  # lightning creates the iterator before it sets the epoch
    loader.sampler.set_epoch(1)
    assert len(loader) == STEPS
    assert_same([concatenate((b,)) for b in first], epoch[step:])
    # only the first iteration resumes
    assert_same([concatenate((b,)) for b in second], epoch)


@pytest.mark.parametrize("sampler_class", [EpochSampler, StepSampler])
def test_other_epochs_start_at_their_first_step(sampler_class: Any) -> None:
    sampler = sampler_class(40, 4, seed=0)
    epochs = {}
    for epoch in (2, 3):
        sampler.set_epoch(epoch)
        epochs[epoch] = list(sampler)
    if sampler_class is EpochSampler:
        orders = [[i for batch in epoch for _, i in batch] for epoch in epochs.values()]
        assert orders[0] != orders[1]
        assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    sampler.resume_at(3, 7)
    sampler.set_epoch(2)
    assert list(sampler) == epochs[2]
    sampler.set_epoch(3)
    assert list(sampler) == epochs[3][7:]
    assert list(sampler) == epochs[3]


class RecordBatches(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        self.batches.append((batch.epoch, batch.indices.tolist()))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_on_sliced_batches(datasets: dict[str, Any], epochs: dict[str, Any], tmp_path: Path) -> None:
    dataset = datasets["shards"]
    module = RecordBatches()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, create_loader(dataset, workers=2))
    assert [epoch for epoch, _ in module.batches] == [0] * STEPS + [1] * STEPS
    assert [indices for _, indices in module.batches[STEPS:]] == [b["indices"] for b in epochs["shards"]]


def test_number_of_lanes_divides_the_batch_and_is_a_multiple_of_the_world_size() -> None:
    for num_shards, batch in itertools.product((1, 5, 16, 1000), (1, 6, 24, 96, 250, 256, 1000, 1024)):
        lanes = {p: choose_num_lanes(num_shards, batch, p) for p in range(1, batch + 1) if batch % p == 0}
        for world_size, n in lanes.items():
            assert batch % n == n % world_size == 0
            assert n // world_size <= 64
        assert len({lanes[p] for p in (1, 2, 4, 8) if p in lanes}) == 1
    assert [choose_num_lanes(1000, 256, p) for p in (1, 8, 16, 64)] == [64, 64, 128, 256]
    assert [choose_num_lanes(num_shards, 256, 2) for num_shards in (1, 4, 5, 16)] == [8, 16, 16, 64]
    assert [choose_num_lanes(1000, 250, p) for p in (1, 2, 5, 125)] == [50, 50, 50, 250]
    assert math.lcm(8, 3) == choose_num_lanes(1, 24, 3) == 24


def test_lane_shuffles_its_images(tmp_path: Path) -> None:
    """After uniform shuffling the order of 100 images has no correlation with the order of reading."""
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "png")
    dataset = open_dataset(write_tar(tmp_path / "a.tar", [(f"{i:05}.png", data.getvalue()) for i in range(800)]))
    sampler = training_sampler(dataset, 8, 0)
    batches = training_loader(dataset, TwoViews(8, seed=3), sampler, PixelFormat(), CPU, workers=0).dataset
    indices = np.array([batches[0, step, 0].indices for step in range(len(sampler))])
    for lane in range(8):
        read_order = batches.lane_indices(0, lane).tolist()
        read_positions = np.array([read_order.index(i) for i in indices[:, lane]])
        # an image is delayed by up to 512 positions, so the shuffling of 100 is almost uniform
        assert np.corrcoef(read_positions, np.arange(100))[0, 1] < 0.6
        assert sorted(read_positions) == list(range(100))


def test_lane_of_corrupt_images_takes_substitutes_from_other_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mec.data.order.MAX_BUFFER_IMAGES", 8)
    write_tar(tmp_path / "a.tar", [(f"{i}.jpg", b"no image") for i in range(40)])
    write_tar(tmp_path / "b.tar", [(f"{i}.jpg", encode_image(i)) for i in range(40)])
    batches = list(create_loader(open_dataset(tmp_path)))
    assert sum(len(b.indices) for b in batches) == 72
    assert min(b.source_indices.min() for b in batches) >= 40
