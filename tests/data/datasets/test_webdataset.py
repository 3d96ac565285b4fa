import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from mec.data import open_dataset
from mec.data.dataset import FileDataset
from mec.data.datasets.webdataset import ShardDataset
from mec.errors import InputError
from tests.data.datasets.shard_files import (
    IMAGES,
    SIZES,
    TOTAL,
    Members,
    samples,
    shares,
    species,
    write_shards,
    write_tar,
)


def with_tarfile(folder: Path) -> None:
    write_shards(folder)


def with_gzip(folder: Path) -> None:
    write_shards(folder, "x-{:04}.tar.gz")


def with_shard_writer_and_cls(folder: Path) -> None:
    numbers = iter(range(TOTAL))
    for shard, size in enumerate(SIZES):
        with webdataset.ShardWriter(str(folder / f"x-{shard}-%02d.tar"), verbose=0) as writer:
            for i in (next(numbers) for _ in range(size)):
                writer.write({"__key__": f"{i:04}", "jpg": IMAGES[i], "cls": species(i)})


def with_shard_writer_and_json(folder: Path) -> None:
    with webdataset.ShardWriter(str(folder / "x-%02d.tar"), maxcount=9, verbose=0) as writer:
        for i in range(TOTAL):
            writer.write({"__key__": f"{i:04}", "jpg": IMAGES[i], "json": {"label": species(i), "id": i}})


def with_other_things_in_between(folder: Path) -> None:
    """Samples without an image, folders, links, notes, hidden files, upper-case names."""
    for shard, numbers in enumerate(shares()):
        with tarfile.open(folder / f"x-{shard}.tar", "w") as tar:
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
                info = tarfile.TarInfo("deep/" if kind == tarfile.DIRTYPE else "deep/link.jpg")
                info.type, info.linkname = kind, "elsewhere.jpg"
                tar.addfile(info)
            members: Members = [("__meta__", b"{}"), ("notes.txt", b"no image"), ("._0000.jpg", b"no image")]
            for i in numbers:
                members += [
                    (f"deep/{i % 2}/{i:04}.cls", species(i).encode()),
                    (f"deep/{i % 2}/{i:04}.JPG", IMAGES[i]),
                ]
                members += [(f"deep/{i % 2}/{i:04}x.txt", b"no image"), (f"deep/{i % 2}/{i:04}x.cls", b"dog")]
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    "write",
    [
        with_tarfile,
        with_gzip,
        with_shard_writer_and_cls,
        with_shard_writer_and_json,
        with_other_things_in_between,
    ],
)
def test_shards_of_any_writer(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    images = open_dataset(tmp_path)
    assert isinstance(images, ShardDataset)
    assert (len(images), images.ignored_files) == (TOTAL, 0)
    assert images.classes == ["ant", "bee", "cat"]
    assert [images.classes[i] for i in images.labels] == [species(i) for i in range(TOTAL)]
    assert [images.load(i) for i in range(TOTAL)] == IMAGES


def test_images_load_in_any_order(tmp_path: Path) -> None:
    images = open_dataset(write_shards(tmp_path))
    for i in np.random.default_rng(0).integers(0, TOTAL, 60):
        assert images.load(int(i)) == IMAGES[i]
    assert images.title(8) == f"{tmp_path / 'x-0002.tar'}, image 0"


@pytest.mark.parametrize(
    ("names", "source", "expected"),
    [
        (["a.tar"], "a.tar", {"all": 7}),
        (["a.tgz"], "a.tgz", {"all": 7}),
        (["x-0000.tar", "x-0001.tar", "x-0002.tar", "x-0003.tar"], "x-{0000..0003}.tar", {"all": 26, "pretrain": 26}),
        (["x-0000.tar", "x-0001.tar", "x-0002.tar", "x-0003.tar"], "x-{0000,0002}.tar", {"all": 20}),
        (["a.tar", "b.tar", "c.tar.gz", ".hidden.tar"], "", {"all": 21}),
        (["train/a.tar", "train/b.tar", "val/c.tar"], "", {"train": 8, "test": 13, "all": 8, "pretrain": 8}),
        (["train-0.tar", "train-1.tar", "val-0.tar"], "", {"train": 8, "test": 13, "all": 8, "pretrain": 8}),
        (["train.tar.gz", "validation.tar.gz"], "", {"train": 7, "test": 1}),
        (["val-0.tar", "val-1.tar"], "", {"all": 8}),
    ],
)
def test_where_shards_may_lie(tmp_path: Path, names: list[str], source: str, expected: dict[str, int]) -> None:
    for name, numbers in zip(names, shares(), strict=False):
        write_tar(tmp_path / name, samples(numbers))
    for split, count in expected.items():
        images = open_dataset(os.path.join(tmp_path, source), split)
        assert len(images) == count
        assert {images.load(i) for i in range(count)} <= set(IMAGES)


def test_a_relative_and_a_home_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("x-{0000..0001}.tar")) == 8
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_dataset("~/x-0001.tar").load(0) == IMAGES[7]


def test_tars_beside_unpacked_images_are_left_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", samples(range(3)))
    for part in ("train", "val"):
        (tmp_path / part / "ant").mkdir(parents=True)
        (tmp_path / part / "ant" / "0.jpg").write_bytes(IMAGES[0])
    assert isinstance(open_dataset(tmp_path, "train"), FileDataset)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "x-0002.tar").unlink()
    with pytest.raises(InputError, match=r"x-0002\.tar does not exist \(1 of 4 shards\)"):
        open_dataset(tmp_path / "x-{0000..0003}.tar")


@pytest.mark.parametrize("content", [b"", b"this is not a tar file" * 100, bytes(10240)])
def test_what_is_no_shard_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"no image in the shards of .*a\.tar \(.+\)$"):
        open_dataset(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", samples(range(3)))
    images = open_dataset(tmp_path)
    assert (len(images), images.load(0)) == (3, IMAGES[0])


def test_labels_are_those_of_all_images_or_none(tmp_path: Path) -> None:
    assert open_dataset(write_shards(tmp_path / "a", labeled=False)).labels is None
    write_tar(tmp_path / "b.tar", [*samples(range(3)), ("0003.jpg", IMAGES[3])])
    assert open_dataset(tmp_path / "b.tar").labels is None
    write_tar(tmp_path / "c.tar", [("0.json", b'{"label": null}'), ("0.jpg", IMAGES[0])])
    assert open_dataset(tmp_path / "c.tar").labels is None
    numbers = [(f"{i}.{kind}", text) for i in (10, 9) for kind, text in (("cls", b"%d\n" % i), ("jpg", IMAGES[i]))]
    write_tar(tmp_path / "d.tar", numbers)
    images = open_dataset(tmp_path / "d.tar")
    assert (images.classes, images.labels.tolist()) == (["9", "10"], [1, 0])


def test_test_labels_are_numbered_as_the_training_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", samples(range(3)))
    write_tar(tmp_path / "val.tar", samples(range(1, 2)))
    test = open_dataset(tmp_path, "test")
    assert (test.classes, test.labels.tolist()) == (["ant", "bee", "cat"], [0])
    write_tar(tmp_path / "train.tar", samples(range(1)))
    with pytest.raises(InputError, match="classes that the training ones lack: ant"):
        open_dataset(tmp_path, "test")


def test_contents_are_kept_until_the_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", samples(range(6)))
    expected = open_dataset(path).labels.tolist()
    assert [json.loads(f.read_text()) for f in Path(os.environ["MEC_DATA"]).rglob("*.json")] == [
        [species(i) for i in range(6)]
    ]
    with monkeypatch.context() as patch:
        patch.setattr("mec.data.datasets.webdataset.read_samples", unexpected)
        assert open_dataset(path).labels.tolist() == expected
        os.utime(path, ns=(10**18, 10**18))
        with pytest.raises(AssertionError, match="read again"):
            open_dataset(path)
    write_tar(path, samples(range(2, 6)))
    assert [open_dataset(path).classes[i] for i in open_dataset(path).labels] == [species(i) for i in range(2, 6)]


def unexpected(*_: object, **__: object) -> None:
    raise AssertionError("read again")


def test_nowhere_to_keep_the_contents_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("MEC_DATA", str(tmp_path / "home"))
    assert len(open_dataset(write_tar(tmp_path / "a.tar", samples(range(6))))) == 6


def test_stated_counts_are_enough_for_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path)
    counts = {f"x-{shard:04}.tar": size for shard, size in enumerate(SIZES)}
    (tmp_path / "sizes.json").write_text(json.dumps(counts))
    with monkeypatch.context() as patch:
        patch.setattr("mec.data.datasets.webdataset._contents", unexpected)
        images = open_dataset(tmp_path / "x-{0000..0003}.tar", "pretrain")
        assert len(open_dataset(tmp_path, "pretrain")) == TOTAL
    assert images.labels is None
    assert [images.load(i) for i in range(TOTAL)] == IMAGES
    assert open_dataset(tmp_path).labels is not None
    for wrong in ('{"x-0000.tar": 7}', "[]", "{"):
        (tmp_path / "sizes.json").write_text(wrong)
        assert len(open_dataset(tmp_path, "pretrain")) == TOTAL


def test_a_part_of_the_images(tmp_path: Path) -> None:
    images = open_dataset(write_shards(tmp_path), every=3)
    numbers = list(range(0, TOTAL, 3))
    assert [images.load(i) for i in range(len(images))] == [IMAGES[i] for i in numbers]
    assert [images.classes[i] for i in images.labels] == [species(i) for i in numbers]
    again = images.subset(np.array([1, 4, 5]))
    assert [again.load(i) for i in (2, 0, 1)] == [IMAGES[i] for i in (15, 3, 12)]
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    parts = [{part.load(i) for i in range(len(part))} for part in (train, test)]
    assert parts[0] | parts[1] == set(IMAGES)
    assert not parts[0] & parts[1]
    assert np.bincount(test.labels).tolist() == [2, 2, 2]


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    """A shard is read in memory: a name with .. or a link in it is no place on the disk."""
    inner = tmp_path / "a" / "b"
    shard = write_tar(inner / "shard.tar", [("../../outside.jpg", IMAGES[0]), ("/outside.jpg", IMAGES[1])])
    with tarfile.open(shard, "a") as tar:
        link = tarfile.TarInfo("0002.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    images = open_dataset(str(shard))
    assert [images.load(i) for i in range(len(images))] == [IMAGES[0], IMAGES[1]]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [shard]
    assert not Path("/outside.jpg").exists()
