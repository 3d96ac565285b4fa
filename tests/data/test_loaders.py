from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mec.data import ArrayDataset, ImageDataset, TwoViews, open_dataset
from mec.data.analysis import load_into_memory
from mec.data.dataset import read_image
from mec.data.loaders import EpochSampler, evaluation_loader, training_loader
from mec.data.pixels import PixelFormat
from tests.data.transforms.test_geometry import photograph

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(12):
        Image.fromarray(photograph(100 + 7 * i, 150 - 3 * i)).save(folder / f"{i:02}.png")
    return folder


def test_each_epoch_has_every_image_once_in_a_new_order() -> None:
    sampler = EpochSampler(100, 20, seed=1)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 5
        assert {e for batch in batches for e, _ in batch} == {epoch}
        orders.append([i for batch in batches for _, i in batch])
        assert sorted(orders[-1]) == list(range(100))
    assert orders[0] != orders[1] != orders[2]


def test_global_batches_do_not_depend_on_the_world_size() -> None:
    expected = [sorted(batch) for batch in EpochSampler(103, 20, seed=1)]
    per_rank = [list(EpochSampler(103, 10, seed=1, rank=r, world_size=2)) for r in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*per_rank, strict=True)] == expected


def test_workers_do_not_change_the_views(photographs: Path) -> None:
    dataset, views = open_dataset(photographs), TwoViews(32, seed=3)
    results = []
    for workers in (0, 2):
        loader = training_loader(dataset, views, EpochSampler(12, 4, seed=0), PixelFormat(), CPU, workers)
        loader.sampler.set_epoch(5)
        batches = list(loader)
        assert all(b.images.shape == (4, 2, 3, 32, 32) and b.epoch == 5 for b in batches)
        results.append(batches)
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a.indices, b.indices)
        assert torch.equal(a.images, b.images)


def test_views_of_worker_crops_match_views_of_whole_images() -> None:
    """Crops are uint8 in a worker and float in a batch: the views differ by rounding only."""
    images = np.stack([photograph(64, 64)] * 4)
    views, sampler = TwoViews(32, seed=3), EpochSampler(4, 4, seed=0)
    dataset = ArrayDataset("a", images)
    (whole,) = training_loader(dataset, views, sampler, PixelFormat(), CPU)
    assert whole.images.shape == (4, 3, 64, 64)

    loader = training_loader(LoadedDataset(dataset), views, sampler, PixelFormat(), CPU, workers=0)
    (cropped,) = loader
    for a, b in zip(views(*whole[:3]), views(*cropped[:3]), strict=True):
        # rounding decides whether values near the solarization threshold are inverted
        assert (a - b).abs().median() < 1 / 255
        assert ((a - b).abs() > 4 / 255).float().mean() < 0.02


class LoadedDataset(ImageDataset):
    """An array dataset that is not in memory, so that workers load and crop it."""

    labels, classes, ignored_files = None, (), 0

    def __init__(self, dataset: ArrayDataset) -> None:
        self.name, self.dataset = dataset.name, dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> np.ndarray:
        return self.dataset.load(index)

    def title(self, index: int) -> str:
        return self.dataset.title(index)


def test_small_images_are_loaded_into_memory(tmp_path: Path, photographs: Path) -> None:
    for i in range(5):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / f"{i}.png")
    in_memory, corrupt = load_into_memory(open_dataset(tmp_path), PixelFormat())
    assert not corrupt
    assert isinstance(in_memory, ArrayDataset)
    assert in_memory.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    Image.new("RGB", (17, 16)).save(tmp_path / "odd.png")
    assert not isinstance(load_into_memory(open_dataset(tmp_path), PixelFormat())[0], ArrayDataset)
    assert not isinstance(load_into_memory(open_dataset(photographs), PixelFormat())[0], ArrayDataset)


def test_evaluation_loader_yields_every_image_once(photographs: Path) -> None:
    dataset = open_dataset(photographs)
    batches = list(evaluation_loader(dataset, PixelFormat(), 48, batch_size=5, workers=2))
    assert sorted(i for b in batches for i in b.indices) == list(range(12))
    (first,) = [b.images[0] for b in batches if b.indices[0] == 0]
    from torchvision.transforms import CenterCrop

    center = CenterCrop(100)(Image.fromarray(read_image(dataset, 0)))
    expected = np.asarray(center.resize((48, 48), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(first.numpy().astype(int) - expected).max() <= 1


def test_evaluation_crop_matches_resize_256_center_crop_224(photographs: Path) -> None:
    from torchvision import transforms

    dataset = open_dataset(photographs)
    (batch,) = evaluation_loader(dataset, PixelFormat(), 224, batch_size=12, workers=0)
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    for i in (0, 7):
        theirs = np.asarray(reference(Image.fromarray(read_image(dataset, i)))).transpose(2, 0, 1).astype(float)
        # one resize instead of two steps: the same region within a pixel
        assert np.abs(batch.images[i].numpy() - theirs).mean() < 3
