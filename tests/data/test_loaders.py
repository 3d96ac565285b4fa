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

    labels, classes, layout, skipped = None, (), "", {}

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
