import io
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mec.data import Reading, TwoViews, open_images, read
from mec.data.images import FileImages
from mec.data.loading import EpochSampler, training_loader
from mec.data.pixels import BrokenPictureError
from mec.data.sources.tables import TableImages
from mec.errors import InputError

CPU = torch.device("cpu")
TOTAL = 11
Source = Callable[[Path], Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MEC_DATA", str(home))
    # the environment is read when datasets is imported
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every address that is looked up or connected to; none can be, but those of processes on this machine."""
    asked: list[object] = []
    connect = socket.socket.connect

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network")

    def within(self: socket.socket, address: object) -> None:
        connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    monkeypatch.setattr(socket.socket, "connect", within)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


PICTURES = [picture(i) for i in range(TOTAL)]
SPECIES = [("bee", "ant", "cat")[i % 3] for i in range(TOTAL)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures as files in folders of their classes."""
    folder = tmp_path_factory.mktemp("folder")
    for i, (content, name) in enumerate(zip(PICTURES, SPECIES, strict=True)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{i:02}.png").write_bytes(content)
    return folder


def data_set(rows: range = range(TOTAL), names: tuple[str, ...] = ("ant", "bee", "cat")) -> datasets.Dataset:
    """As the Hugging Face hub has them."""
    columns = {
        "id": list(rows),
        "label": [names.index(SPECIES[i]) for i in rows],
        "photo": [{"bytes": PICTURES[i], "path": None} for i in rows],
    }
    features = {
        "id": datasets.Value("int64"),
        "label": datasets.ClassLabel(names=list(names)),
        "photo": datasets.Image(),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write_plain(path: Path, rows: range = range(TOTAL), image: str = "image", label: str = "label") -> Path:
    table = pa.table({image: [PICTURES[i] for i in rows], label: [SPECIES[i] for i in rows]})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)
    return path


def by_datasets(folder: Path) -> Path:
    data_set().to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def by_pyarrow(folder: Path) -> Path:
    return write_plain(folder / "a.parquet")


def by_pyarrow_as_structs(folder: Path) -> Path:
    structs = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(PICTURES)]
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
    images, files = open_images(source(tmp_path)), open_images(folder)
    assert isinstance(images, TableImages)
    assert isinstance(files, FileImages)
    assert len(images) == len(files) == TOTAL
    assert images.classes == files.classes == ["ant", "bee", "cat"]
    for j, name in enumerate(files.names):
        i = int(Path(name).stem)
        assert images.load(i) == files.load(j)
        assert images.labels[i] == files.labels[j]
        assert np.array_equal(read(images, i), read(files, j))
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
        images = open_images(path, split)
        assert [images.load(i) for i in range(len(images))] == [PICTURES[i] for i in rows]
        assert images.classes == ["ant", "bee", "cat"]
        assert [images.classes[i] for i in images.labels] == [SPECIES[i] for i in rows]
    assert not asked


def test_unknown_classes_in_the_test_part_are_named(tmp_path: Path) -> None:
    write_plain(tmp_path / "train.parquet", range(2))
    write_plain(tmp_path / "test.parquet", range(2, 4))
    with pytest.raises(InputError, match=r"classes that the training ones lack: cat$"):
        open_images(tmp_path)


def test_parquet_beside_pictures_is_left_alone(tmp_path: Path) -> None:
    write_plain(tmp_path / "metadata.parquet")
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0.png").write_bytes(PICTURES[0])
    assert isinstance(open_images(tmp_path), FileImages)


def test_a_part_of_the_rows(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.parquet")
    images = open_images(path, every=2).subset(np.array([4, 1]))
    assert [images.load(i) for i in (0, 1)] == [PICTURES[8], PICTURES[2]]
    assert [images.classes[i] for i in images.labels] == [SPECIES[8], SPECIES[2]]
    assert images.title(0) == "a.parquet, row 8"
    train, test = open_images(path, "train"), open_images(path, "test")
    parts = [{part.load(i) for i in range(len(part))} for part in (train, test)]
    assert parts[0] | parts[1] == set(PICTURES)
    assert len(parts[1]) == 3


@pytest.mark.parametrize("source", [by_datasets, by_pyarrow, saved_to_disk])
def test_workers_read_tables(tmp_path: Path, folder: Path, source: Source) -> None:
    images, views = open_images(source(tmp_path)), TwoViews(16, seed=3)
    found = []
    for workers in (0, 2):
        loader = training_loader(images, views, EpochSampler(TOTAL, 4, seed=0), Reading(), CPU, workers)
        found.append(list(loader))
        assert not [lost for batch in found[-1] for lost in batch.lost]
    for a, b in zip(*found, strict=True):
        assert a.indices.tolist() == b.indices.tolist()
        assert torch.equal(a.pictures, b.pictures)


def test_rows_without_a_picture_are_broken(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(PICTURES[2])
    structs = [
        None,
        {"bytes": None, "path": None},
        {"bytes": None, "path": str(tmp_path / "there.png")},
        {"bytes": None, "path": str(tmp_path / "absent.png")},
    ]
    pq.write_table(pa.table({"image": structs}), tmp_path / "a.parquet")
    feature = {"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'}
    pq.write_table(pa.table({"image": structs}).replace_schema_metadata(feature), tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        images = open_images(tmp_path / name)
        assert (len(images), images.labels) == (4, None)
        for i in (0, 1):
            with pytest.raises(BrokenPictureError, match=r"^the row has no picture$"):
                images.load(i)
        assert images.load(2) == PICTURES[2]
        with pytest.raises(BrokenPictureError, match="No such file"):
            images.load(3)
    pq.write_table(pa.table({"image": [None, PICTURES[0]]}), tmp_path / "c.parquet")
    images = open_images(tmp_path / "c.parquet")
    with pytest.raises(BrokenPictureError, match=r"^the row has no picture$"):
        images.load(0)
    assert images.load(1) == PICTURES[0]


def test_arrays_in_columns(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8)
    kinds = {"array": datasets.Array2D((5, 6), "uint8"), "lists": datasets.List(datasets.List(datasets.Value("uint8")))}
    for name, kind in kinds.items():
        features = datasets.Features({"pixels": kind})
        table = datasets.Dataset.from_dict({"pixels": [a.tolist() for a in arrays]}, features=features)
        table.to_parquet(tmp_path / f"{name}.parquet")
        images = open_images(tmp_path / f"{name}.parquet")
        assert [read(images, i, Reading(1))[..., 0].tolist() for i in range(3)] == arrays.tolist()
    pq.write_table(pa.table({"image": ["a.png", "b.png"]}), tmp_path / "names.parquet")
    pq.write_table(pa.table({"image": [[[1, 2], [3]]]}), tmp_path / "ragged.parquet")
    for name in ("names", "ragged"):
        with pytest.raises(BrokenPictureError, match="not an array of numbers"):
            open_images(tmp_path / f"{name}.parquet").load(0)


@pytest.mark.parametrize("missing", [None, -1])
def test_labels_are_those_of_all_rows_or_none(tmp_path: Path, missing: int | None) -> None:
    """-1 is what the hub has for a class that is not told."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    columns = {"image": [{"bytes": c, "path": None} for c in PICTURES[:3]], "label": [1, missing, 0]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    assert open_images(tmp_path / "a.parquet").labels is None
    pq.write_table(pa.table({"image": PICTURES[:3], "label": ["b", None, "a"]}), tmp_path / "b.parquet")
    assert open_images(tmp_path / "b.parquet").labels is None
    pq.write_table(pa.table({"image": PICTURES[:3], "label": [10, 9, 10]}), tmp_path / "c.parquet")
    images = open_images(tmp_path / "c.parquet")
    assert (images.classes, images.labels.tolist()) == (["9", "10"], [1, 0, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be opened as a data set"),
        (b"no parquet" * 100, "cannot be opened as a data set"),
        (None, "cannot be opened as a data set"),
        ("columns", r"no column of pictures \(it has caption, label\)"),
        ("absent", "does not exist"),
    ],
)
def test_what_is_no_table_of_pictures_is_named(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "a.parquet"
    if content is None:
        whole = write_plain(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "columns":
        pq.write_table(pa.table({"caption": ["a"], "label": [1]}), path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.parquet.*{message}") as raised:
        open_images(path)
    assert "\n" not in str(raised.value)


def test_damage_within_a_parquet_file_costs_the_pictures_there(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    images = open_images(path)
    lost = []
    for i in range(TOTAL):
        try:
            assert np.array_equal(read(images, i), np.asarray(Image.open(io.BytesIO(PICTURES[i]))))
        except BrokenPictureError:
            lost.append(i)
    assert lost
    assert len(lost) < TOTAL / 2


def test_a_table_that_changed_is_read_anew(tmp_path: Path) -> None:
    """datasets keeps a copy that it can read at any row, which parquet cannot; it goes by the date of the file."""
    path = write_plain(tmp_path / "a.parquet", range(4))
    assert open_images(path).load(3) == PICTURES[3]
    copies = list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))
    assert len(copies) == 1
    assert open_images(path).load(0) == PICTURES[0]
    assert list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow")) == copies
    before = path.stat()
    write_plain(path, range(5, 9))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    images = open_images(path)
    assert [images.load(i) for i in range(4)] == PICTURES[5:9]


def test_nothing_is_written_beside_the_files_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    path = write_plain(tmp_path / "data" / "a.parquet")
    open_images(path).load(0)
    assert list(path.parent.iterdir()) == [path]
    assert not list((tmp_path / "home").iterdir())


def hide(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [module, *(m for m in sys.modules if m.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [
        ("datasets", "a.parquet", "datasets"),
        ("webdataset", "a.tar", "webdataset"),
        ("webdataset", "https://example.org/a-{00..99}.tar", "webdataset"),
        ("av", "a.mp4", "video"),
    ],
)
def test_a_missing_extra_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, extra: str
) -> None:
    hide(module, monkeypatch)
    (tmp_path / "a.parquet").touch()
    (tmp_path / "a.tar").touch()
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match=rf"{name[-4:]}.* needs .*pip install 'mec-ssl\[{extra}\]'$"):
        open_images(name if "://" in name else tmp_path / name)


def test_a_missing_tiff_reader_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 8, 9), np.uint16), photometric="minisblack")
    hide("tifffile", monkeypatch)
    with pytest.raises(InputError, match=r"a TIFF with more .*; pip install 'mec-ssl\[tiff\]'$"):
        read(open_images(tmp_path), 0)
