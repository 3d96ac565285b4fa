"""The same images in the same joined batches, however many processes and workers load them."""

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
from mec.data.samplers import EpochSampler, StepSampler
from mec.data.streaming import lanes_of
from mec.data.transforms.crop import Batch
from tests.data.datasets.shard_files import CPU, image, write_tar

SIZES = (40, 3, 61, 17)
TOTAL, JOINED, STEPS = 121, 24, 5
BROKEN = [5, *range(50, 62), 118]
LOST = range(98, 104)
"""The end of the third shard, which is cut off."""

CONTENTS = [b"no image" if i in BROKEN else image(i) for i in range(TOTAL)]


def shards(folder: Path) -> Any:
    first = 0
    for shard, size in enumerate(SIZES):
        members = [(f"{i:04}.jpg", CONTENTS[i]) for i in range(first, first + size)]
        write_tar(folder / f"{shard}.tar", members)
        first += size
    with tarfile.open(folder / "2.tar") as tar:
        at = tar.getmember(f"{LOST[0]:04}.jpg").offset_data
    with (folder / "2.tar").open("r+b") as file:
        file.truncate(at)
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
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("order")
    return {make.__name__: make(folder / make.__name__) for make in (shards, files, arrays)}


def loader_of(images: Any, rank: int = 0, processes: int = 1, workers: int = 0) -> TrainingLoader:
    sampler = training_sampler(images, JOINED // processes, 0, rank, processes)
    return training_loader(images, TwoViews(16, seed=3), sampler, PixelFormat(), CPU, workers)


def joined(images: Any, processes: int = 1, workers: int = 0, epoch: int = 1) -> list[dict[str, Any]]:
    """The batches of an epoch, of all processes together."""
    loaders = [loader_of(images, rank, processes, workers) for rank in range(processes)]
    for loader in loaders:
        loader.sampler.set_epoch(epoch)
        assert len(loader) == STEPS
    return [together(batches) for batches in zip(*loaders, strict=True)]


def together(batches: tuple[Batch, ...]) -> dict[str, Any]:
    assert len({len(b.indices) for b in batches}) == 1
    assert {b.epoch for b in batches} == {1}
    return {
        "indices": [i for b in batches for i in b.indices.tolist()],
        "shown": [i for b in batches for i in b.shown.tolist()],
        "lost": {lost.title for b in batches for lost in b.lost},
        "images": torch.cat([b.images for b in batches]),
    }


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert [a[k] for k in ("indices", "shown", "lost")] == [b[k] for k in ("indices", "shown", "lost")]
        assert torch.equal(a["images"], b["images"])


WORKERS = [(2, 0), (4, 0), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (4, 1), (4, 3)]
LOADED = [(source, *each) for source in ("shards", "files") for each in WORKERS]


@pytest.mark.parametrize(("source", "processes", "workers"), [*LOADED, ("arrays", 2, 0), ("arrays", 4, 0)])
def test_processes_and_workers_change_nothing(
    sources: dict[str, Any], source: str, processes: int, workers: int
) -> None:
    assert_same(joined(sources[source], processes, workers), joined(sources[source]))


@pytest.mark.parametrize("source", ["shards", "files", "arrays"])
def test_each_image_is_shown_at_most_once(sources: dict[str, Any], source: str) -> None:
    batches = joined(sources[source])
    asked = [i for b in batches for i in b["indices"]]
    assert len(set(asked)) == len(asked) == STEPS * JOINED == TOTAL - 1
    assert set(asked) < set(range(TOTAL))
    lost = set(BROKEN) | (set(LOST) if source == "shards" else set())
    for batch in batches if source != "arrays" else ():
        for index, shown in zip(batch["indices"], batch["shown"], strict=True):
            assert shown not in lost
            assert (shown == index) == (index not in lost)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize("source", ["shards", "files", "arrays"])
def test_an_epoch_resumes_at_any_step(sources: dict[str, Any], source: str, step: int, workers: int) -> None:
    images = sources[source]
    whole = joined(images)
    loader = loader_of(images, workers=workers)
    order = getattr(loader.sampler, "steps", loader.sampler)
    order.resume_at(1, step)
    early, late = iter(loader), iter(loader)  # lightning asks before it says which epoch it is
    loader.sampler.set_epoch(1)
    assert len(loader) == STEPS
    assert_same([together((b,)) for b in late], whole[step:])
    # once only
    assert_same([together((b,)) for b in early], whole)


@pytest.mark.parametrize("sampler", [EpochSampler, StepSampler])
def test_another_epoch_is_not_resumed(sampler: Any) -> None:
    order = sampler(40, 4, seed=0)
    whole = {}
    for epoch in (2, 3):
        order.set_epoch(epoch)
        whole[epoch] = list(order)
    order.resume_at(3, 7)
    order.set_epoch(2)
    assert list(order) == whole[2]
    order.set_epoch(3)
    assert list(order) == whole[3][7:]
    assert list(order) == whole[3]


class Seen(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        self.seen.append((batch.epoch, batch.indices.tolist()))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_on_slices(sources: dict[str, Any], tmp_path: Path) -> None:
    images = sources["shards"]
    module = Seen()
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
    trainer.fit(module, loader_of(images, workers=2))
    assert [epoch for epoch, _ in module.seen] == [0] * STEPS + [1] * STEPS
    assert [indices for _, indices in module.seen[STEPS:]] == [b["indices"] for b in joined(images)]


def test_lanes_divide_batches_and_are_shared_by_processes() -> None:
    for shards, joined in itertools.product((1, 5, 16, 1000), (1, 6, 24, 96, 250, 256, 1000, 1024)):
        lanes = {p: lanes_of(shards, joined, p) for p in range(1, joined + 1) if joined % p == 0}
        for processes, n in lanes.items():
            assert joined % n == n % processes == 0
            assert n // processes <= 64
        assert len({lanes[p] for p in (1, 2, 4, 8) if p in lanes}) == 1
    assert [lanes_of(1000, 256, p) for p in (1, 8, 16, 64)] == [64, 64, 128, 256]
    assert [lanes_of(shards, 256, 2) for shards in (1, 4, 5, 16)] == [8, 16, 16, 64]
    assert [lanes_of(1000, 250, p) for p in (1, 2, 5, 125)] == [50, 50, 50, 250]
    assert math.lcm(8, 3) == lanes_of(1, 24, 3) == 24


def test_a_lane_mixes_what_it_reads(tmp_path: Path) -> None:
    """800 images of one shard in 8 lanes: uniform shuffling has no correlation with the order of reading."""
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "png")
    images = open_dataset(write_tar(tmp_path / "a.tar", [(f"{i:05}.png", data.getvalue()) for i in range(800)]))
    sampler = training_sampler(images, 8, 0)
    dataset = training_loader(images, TwoViews(8, seed=3), sampler, PixelFormat(), CPU, workers=0).dataset
    shown = np.array([dataset[0, step, 0].indices for step in range(len(sampler))])
    for lane in range(8):
        read = dataset.stretch(0, lane).tolist()
        places = np.array([read.index(i) for i in shown[:, lane]])
        # displacement: up to 512 places, so nearly uniform over 100
        assert np.corrcoef(places, np.arange(100))[0, 1] < 0.6
        assert sorted(places) == list(range(100))


def test_a_lane_of_broken_images_takes_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.streaming.BUFFER_IMAGES", 8)
    write_tar(tmp_path / "a.tar", [(f"{i}.jpg", b"no image") for i in range(100)])
    write_tar(tmp_path / "b.tar", [(f"{i}.jpg", image(i)) for i in range(100)])
    batches = list(loader_of(open_dataset(tmp_path)))
    assert sum(len(b.indices) for b in batches) == 192
    assert min(b.shown.min() for b in batches) >= 100
