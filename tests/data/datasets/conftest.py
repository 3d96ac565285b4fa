import socket
from pathlib import Path

import pytest
import torch

from mec.data import PixelFormat, TwoViews, open_dataset
from mec.data.loaders import EpochSampler, training_loader
from tests.data.datasets.shard_files import CPU, IMAGES, TOTAL, views_of, write_shards


@pytest.fixture(autouse=True)
def _empty_data_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEC_DATA", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MEC_DATA", str(home))
    # datasets reads its environment variables when it is imported
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.fixture
def network_calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Addresses that a test resolves or connects to; all fail, except sockets between processes on this machine."""
    calls: list[object] = []
    connect = socket.socket.connect

    def refuse(*address: object, **_: object) -> None:
        calls.append(address)
        raise OSError("no network")

    def connect_locally(self: socket.socket, address: object) -> None:
        connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return calls


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of ``shards`` as files, in the same order."""
    folder = tmp_path_factory.mktemp("folder")
    for i, content in enumerate(IMAGES):
        (folder / f"{i:04}.jpg").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, torch.Tensor]:
    """The views of each image in epoch 2, loaded from files."""
    sampler = EpochSampler(TOTAL, TOTAL, seed=0)
    sampler.set_epoch(2)
    return views_of(list(training_loader(open_dataset(folder), TwoViews(16, seed=3), sampler, PixelFormat(), CPU, 0)))
