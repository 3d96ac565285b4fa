import os
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mec.data import PixelFormat, TwoViews, open_dataset, read_image
from mec.data.dataset import FileDataset
from mec.data.datasets.huggingface import TableDataset
from mec.data.loaders import EpochSampler, training_loader
from tests.data.datasets.table_files import CLASS_NAMES, IMAGES, TOTAL, hub_dataset, write_parquet

pytestmark = pytest.mark.usefixtures("empty_cache", "network_calls")
CPU = torch.device("cpu")
WriteDataset = Callable[[Path], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as files, in a folder for each class."""
    folder = tmp_path_factory.mktemp("folder")
    for i, (content, name) in enumerate(zip(IMAGES, CLASS_NAMES, strict=True)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{i:02}.png").write_bytes(content)
    return folder


def parquet_by_datasets(folder: Path) -> Path:
    hub_dataset().to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def parquet_of_structs(folder: Path) -> Path:
    structs = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(IMAGES)]
    pq.write_table(pa.table({"img": structs, "class": CLASS_NAMES}), folder / "a.parquet")
    return folder / "a.parquet"


def folder_of_parquet(folder: Path) -> Path:
    for i, rows in enumerate((range(3), range(3, 4), range(4, TOTAL))):
        write_parquet(folder / f"part-{i}.parquet", rows)
    return folder


def parquet_in_folder_named_like_a_glob(folder: Path) -> Path:
    return write_parquet(folder / "a [v2]*" / "b?{1}.parquet")


def saved_to_disk(folder: Path) -> Path:
    hub_dataset().save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize(
    "write",
    [parquet_by_datasets, parquet_of_structs, folder_of_parquet, parquet_in_folder_named_like_a_glob, saved_to_disk],
)
def test_table_equals_folder_of_the_same_images(
    tmp_path: Path, folder: Path, write: WriteDataset, network_calls: list[object]
) -> None:
    dataset, files = open_dataset(write(tmp_path)), open_dataset(folder)
    assert isinstance(dataset, TableDataset)
    assert isinstance(files, FileDataset)
    assert len(dataset) == len(files) == TOTAL
    assert dataset.classes == files.classes == ["ant", "bee", "cat"]
    for j, name in enumerate(files.names):
        i = int(Path(name).stem)
        assert dataset.load(i) == files.load(j)
        assert dataset.labels[i] == files.labels[j]
        assert np.array_equal(read_image(dataset, i), read_image(files, j))
    assert not network_calls


def split_into_files(folder: Path) -> Path:
    write_parquet(folder / "train-00000-of-00002.parquet", range(5))
    write_parquet(folder / "train-00001-of-00002.parquet", range(5, 8))
    write_parquet(folder / "test-00000-of-00001.parquet", range(8, TOTAL))
    return folder


def split_into_folders(folder: Path) -> Path:
    write_parquet(folder / "train" / "0.parquet", range(8))
    write_parquet(folder / "val" / "0.parquet", range(8, TOTAL))
    return folder


def saved_in_splits(folder: Path) -> Path:
    splits = {"train": hub_dataset(range(8)), "validation": hub_dataset(range(8, TOTAL), names=("cat", "ant", "bee"))}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("write", [split_into_files, split_into_folders, saved_in_splits])
def test_table_has_its_own_splits(tmp_path: Path, write: WriteDataset, network_calls: list[object]) -> None:
    path = write(tmp_path)
    for split, rows in (("train", range(8)), ("pretrain", range(8)), ("all", range(8)), ("test", range(8, TOTAL))):
        dataset = open_dataset(path, split)
        assert [dataset.load(i) for i in range(len(dataset))] == [IMAGES[i] for i in rows]
        assert dataset.classes == ["ant", "bee", "cat"]
        assert [dataset.classes[i] for i in dataset.labels] == [CLASS_NAMES[i] for i in rows]
    assert not network_calls


def test_parquet_in_a_folder_of_images_is_ignored(tmp_path: Path) -> None:
    write_parquet(tmp_path / "metadata.parquet")
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "0.png").write_bytes(IMAGES[0])
    assert isinstance(open_dataset(tmp_path), FileDataset)


def test_subsets_of_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    dataset = open_dataset(path, subsample=2).subset(np.array([4, 1]))
    assert [dataset.load(i) for i in (0, 1)] == [IMAGES[8], IMAGES[2]]
    assert [dataset.classes[i] for i in dataset.labels] == [CLASS_NAMES[8], CLASS_NAMES[2]]
    assert dataset.title(0) == "a.parquet, row 8"
    train, test = open_dataset(path, "train"), open_dataset(path, "test")
    train_images, test_images = ({split.load(i) for i in range(len(split))} for split in (train, test))
    assert train_images | test_images == set(IMAGES)
    assert len(test_images) == 3


def test_workers_read_tables(tmp_path: Path) -> None:
    dataset, views = open_dataset(parquet_by_datasets(tmp_path)), TwoViews(16, seed=3)
    epochs = []
    for workers in (0, 2):
        loader = training_loader(dataset, views, EpochSampler(TOTAL, 4, seed=0), PixelFormat(), CPU, workers)
        epochs.append(list(loader))
        assert not any(batch.corrupt for batch in epochs[-1])
    for a, b in zip(*epochs, strict=True):
        assert a.indices.tolist() == b.indices.tolist()
        assert torch.equal(a.images, b.images)


def test_changed_table_is_read_again(tmp_path: Path) -> None:
    """datasets caches an Arrow copy with random access to rows; the modification time of the file selects the copy."""
    path = write_parquet(tmp_path / "a.parquet", range(4))
    assert open_dataset(path).load(3) == IMAGES[3]
    copies = list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))
    assert len(copies) == 1
    assert open_dataset(path).load(0) == IMAGES[0]
    assert list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow")) == copies
    before = path.stat()
    write_parquet(path, range(5, 9))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    dataset = open_dataset(path)
    assert [dataset.load(i) for i in range(4)] == IMAGES[5:9]


def test_nothing_is_written_next_to_the_files_or_to_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    path = write_parquet(tmp_path / "data" / "a.parquet")
    open_dataset(path).load(0)
    assert list(path.parent.iterdir()) == [path]
    assert not list((tmp_path / "home").iterdir())
