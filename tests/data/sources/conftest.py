from pathlib import Path

import pytest
import torch

from mec.data import Reading, TwoViews, open_images
from mec.data.loading import EpochSampler, training_loader
from tests.data.sources.shard_files import CPU, PICTURES, TOTAL, views_of, write_shards


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEC_DATA", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as files, in the same order."""
    folder = tmp_path_factory.mktemp("folder")
    for i, content in enumerate(PICTURES):
        (folder / f"{i:04}.jpg").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, torch.Tensor]:
    """The views of each picture in epoch 2, cropped from files."""
    sampler = EpochSampler(TOTAL, TOTAL, seed=0)
    sampler.set_epoch(2)
    return views_of(list(training_loader(open_images(folder), TwoViews(16, seed=3), sampler, Reading(), CPU, 0)))
