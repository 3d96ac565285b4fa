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
from mec.errors import InputError
from tests.data.datasets.table_files import IMAGES, SPECIES, TOTAL, data_set, write_plain

pytestmark = pytest.mark.usefixtures("own_cache", "asked")
CPU = torch.device("cpu")
Source = Callable[[Path], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as files in folders of their classes."""
    folder = tmp_path_factory.mktemp("folder")
    for i, (content, name) in enumerate(zip(IMAGES, SPECIES, strict=True)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{i:02}.png").write_bytes(content)
    return folder


def by_datasets(folder: Path) -> Path:
    data_set().to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def by_pyarrow(folder: Path) -> Path:
    return write_plain(folder / "a.parquet")


def by_pyarrow_as_structs(folder: Path) -> Path:
    structs = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(IMAGES)]
    pq.write_table(pa.table({"img": structs, "class": SPECIES}), folder / "a.parquet")
    return folder / "a.parquet"


def as_a_folder(folder: Path) -> Path:
    for part, rows in enumerate((range(3), range(3, 4), range(4, TOTAL))):
        write_plain(folder / f"part-{part}.parquet", rows)
    return folder


def in_a_folder_named_like_a_pattern(folder: Path) -> Path:
    return write_plain(folder / "a [v2]*" / "b?{1}.parquet")


def saved_to_disk(folder: Path) -> Path:
    data_set().save_to_disk(folder / "saved")
    return folder / "saved"


SOURCES = [
    by_datasets,
    by_pyarrow,
    by_pyarrow_as_structs,
    as_a_folder,
    in_a_folder_named_like_a_pattern,
    saved_to_disk,
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_table_gives_what_the_folder_gives(tmp_path: Path, folder: Path, source: Source, asked: list[object]) -> None:
    images, files = open_dataset(source(tmp_path)), open_dataset(folder)
    assert isinstance(images, TableDataset)
    assert isinstance(files, FileDataset)
    assert len(images) == len(files) == TOTAL
    assert images.classes == files.classes == ["ant", "bee", "cat"]
    for j, name in enumerate(files.names):
        i = int(Path(name).stem)
        assert images.load(i) == files.load(j)
        assert images.labels[i] == files.labels[j]
        assert np.array_equal(read_image(images, i), read_image(files, j))
    assert not asked


def split_into_files(folder: Path) -> Path:
    write_plain(folder / "train-00000-of-00002.parquet", range(5))
    write_plain(folder / "train-00001-of-00002.parquet", range(5, 8))
    write_plain(folder / "test-00000-of-00001.parquet", range(8, TOTAL))
    return folder


def split_into_folders(folder: Path) -> Path:
    write_plain(folder / "train" / "0.parquet", range(8))
    write_plain(folder / "val" / "0.parquet", range(8, TOTAL))
    return folder


def saved_in_splits(folder: Path) -> Path:
    parts = {"train": data_set(range(8)), "validation": data_set(range(8, TOTAL), names=("cat", "ant", "bee"))}
    datasets.DatasetDict(parts).save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("source", [split_into_files, split_into_folders, saved_in_splits])
def test_a_table_has_its_own_split(tmp_path: Path, source: Source, asked: list[object]) -> None:
    path = source(tmp_path)
    for split, rows in (("train", range(8)), ("pretrain", range(8)), ("all", range(8)), ("test", range(8, TOTAL))):
        images = open_dataset(path, split)
        assert [images.load(i) for i in range(len(images))] == [IMAGES[i] for i in rows]
        assert images.classes == ["ant", "bee", "cat"]
        assert [images.classes[i] for i in images.labels] == [SPECIES[i] for i in rows]
    assert not asked


def test_unknown_classes_in_the_test_part_are_named(tmp_path: Path) -> None:
    write_plain(tmp_path / "train.parquet", range(2))
    write_plain(tmp_path / "test.parquet", range(2, 4))
    with pytest.raises(InputError, match=r"classes that the training ones lack: cat$"):
        open_dataset(tmp_path)


def test_parquet_beside_images_is_left_alone(tmp_path: Path) -> None:
    write_plain(tmp_path / "metadata.parquet")
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0.png").write_bytes(IMAGES[0])
    assert isinstance(open_dataset(tmp_path), FileDataset)


def test_a_part_of_the_rows(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.parquet")
    images = open_dataset(path, every=2).subset(np.array([4, 1]))
    assert [images.load(i) for i in (0, 1)] == [IMAGES[8], IMAGES[2]]
    assert [images.classes[i] for i in images.labels] == [SPECIES[8], SPECIES[2]]
    assert images.title(0) == "a.parquet, row 8"
    train, test = open_dataset(path, "train"), open_dataset(path, "test")
    parts = [{part.load(i) for i in range(len(part))} for part in (train, test)]
    assert parts[0] | parts[1] == set(IMAGES)
    assert len(parts[1]) == 3


@pytest.mark.parametrize("source", [by_datasets, by_pyarrow, saved_to_disk])
def test_workers_read_tables(tmp_path: Path, folder: Path, source: Source) -> None:
    images, views = open_dataset(source(tmp_path)), TwoViews(16, seed=3)
    found = []
    for workers in (0, 2):
        loader = training_loader(images, views, EpochSampler(TOTAL, 4, seed=0), PixelFormat(), CPU, workers)
        found.append(list(loader))
        assert not [lost for batch in found[-1] for lost in batch.lost]
    for a, b in zip(*found, strict=True):
        assert a.indices.tolist() == b.indices.tolist()
        assert torch.equal(a.images, b.images)


def test_a_table_that_changed_is_read_anew(tmp_path: Path) -> None:
    """datasets keeps a copy that it can read at any row, which parquet cannot; it goes by the date of the file."""
    path = write_plain(tmp_path / "a.parquet", range(4))
    assert open_dataset(path).load(3) == IMAGES[3]
    copies = list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))
    assert len(copies) == 1
    assert open_dataset(path).load(0) == IMAGES[0]
    assert list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow")) == copies
    before = path.stat()
    write_plain(path, range(5, 9))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    images = open_dataset(path)
    assert [images.load(i) for i in range(4)] == IMAGES[5:9]


def test_nothing_is_written_beside_the_files_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    path = write_plain(tmp_path / "data" / "a.parquet")
    open_dataset(path).load(0)
    assert list(path.parent.iterdir()) == [path]
    assert not list((tmp_path / "home").iterdir())
