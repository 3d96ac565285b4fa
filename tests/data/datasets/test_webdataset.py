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
from mec.data.datasets.webdataset import ShardDataset, expand_braces
from mec.errors import InputError
from tests.data.datasets.shard_files import (
    IMAGES,
    SIZES,
    TOTAL,
    Members,
    class_name,
    sample_members,
    sample_ranges,
    write_shards,
    write_tar,
)


def write_gzip(folder: Path) -> None:
    write_shards(folder, "x-{:04}.tar.gz")


def write_with_shard_writer_and_cls(folder: Path) -> None:
    numbers = iter(range(TOTAL))
    for shard, size in enumerate(SIZES):
        with webdataset.ShardWriter(str(folder / f"x-{shard}-%02d.tar"), verbose=0) as writer:
            for i in (next(numbers) for _ in range(size)):
                writer.write({"__key__": f"{i:04}", "jpg": IMAGES[i], "cls": class_name(i)})


def write_with_shard_writer_and_json(folder: Path) -> None:
    with webdataset.ShardWriter(str(folder / "x-%02d.tar"), maxcount=9, verbose=0) as writer:
        for i in range(TOTAL):
            writer.write({"__key__": f"{i:04}", "jpg": IMAGES[i], "json": {"label": class_name(i), "id": i}})


def write_with_other_members(folder: Path) -> None:
    """Add samples without an image, folders, links, text files, hidden files and upper-case names."""
    for shard, numbers in enumerate(sample_ranges()):
        with tarfile.open(folder / f"x-{shard}.tar", "w") as tar:
            for member_type in (tarfile.DIRTYPE, tarfile.SYMTYPE):
                info = tarfile.TarInfo("deep/" if member_type == tarfile.DIRTYPE else "deep/link.jpg")
                info.type, info.linkname = member_type, "elsewhere.jpg"
                tar.addfile(info)
            members: Members = [("__meta__", b"{}"), ("notes.txt", b"no image"), ("._0000.jpg", b"no image")]
            for i in numbers:
                members += [
                    (f"deep/{i % 2}/{i:04}.cls", class_name(i).encode()),
                    (f"deep/{i % 2}/{i:04}.JPG", IMAGES[i]),
                ]
                members += [(f"deep/{i % 2}/{i:04}x.txt", b"no image"), (f"deep/{i % 2}/{i:04}x.cls", b"dog")]
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    "write",
    [write_gzip, write_with_shard_writer_and_cls, write_with_shard_writer_and_json, write_with_other_members],
)
def test_shards_of_all_writers_have_the_same_images(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset, ShardDataset)
    assert len(dataset) == TOTAL
    if write is write_with_other_members:
        samples = ["notes", "notes", "notes", "notes", *(f"deep/{i % 2}/{i:04}x" for i in range(TOTAL))]
        assert {kind: sorted(names) for kind, names in dataset.skipped.items()} == {
            "files without extension": ["__meta__"] * len(SIZES),
            "links": ["deep/link.jpg"] * len(SIZES),
            "samples without image": sorted(samples),
        }
    else:
        assert dataset.skipped == {}
    assert dataset.classes == ["ant", "bee", "cat"]
    assert [dataset.classes[i] for i in dataset.labels] == [class_name(i) for i in range(TOTAL)]
    assert [dataset.load(i) for i in range(TOTAL)] == IMAGES
    for i in np.random.default_rng(0).integers(0, TOTAL, 60):
        assert dataset.load(int(i)) == IMAGES[i]


@pytest.mark.parametrize(
    "pattern",
    ["a.tar", "a-{00..03}.tar", "https://b.org/{x,y z}/a-{098..101}.tar", "a{b}.tar", "s3://{8..11}{a,,c}.tgz"],
)
def test_braces_are_expanded_as_in_webdataset(pattern: str) -> None:
    assert expand_braces(pattern) == webdataset.shardlists.expand_urls(pattern)


@pytest.mark.parametrize(
    ("names", "source", "expected"),
    [
        (["a.tar"], "a.tar", {"all": 7}),
        (["x-0000.tar", "x-0001.tar", "x-0002.tar", "x-0003.tar"], "x-{0000..0003}.tar", {"all": 26, "pretrain": 26}),
        (["x-0000.tar", "x-0001.tar", "x-0002.tar", "x-0003.tar"], "x-{0000,0002}.tar", {"all": 20}),
        (["a.tar", "b.tar", "c.tar.gz", ".hidden.tar"], "", {"all": 21}),
        (["train/a.tar", "train/b.tar", "val/c.tar"], "", {"train": 8, "test": 13, "all": 8, "pretrain": 8}),
        (["train.tar.gz", "validation.tar.gz"], "", {"train": 7, "test": 1}),
        (["val-0.tar", "val-1.tar"], "", {"all": 8}),
    ],
)
def test_shards_as_files_patterns_and_folders(
    tmp_path: Path, names: list[str], source: str, expected: dict[str, int]
) -> None:
    for name, numbers in zip(names, sample_ranges(), strict=False):
        write_tar(tmp_path / name, sample_members(numbers))
    for split, count in expected.items():
        dataset = open_dataset(os.path.join(tmp_path, source), split)
        assert len(dataset) == count
        assert {dataset.load(i) for i in range(count)} <= set(IMAGES)


def test_tar_in_a_folder_of_images_is_ignored(tmp_path: Path) -> None:
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", sample_members(range(3)))
    for split in ("train", "val"):
        (tmp_path / split / "ant").mkdir(parents=True)
        (tmp_path / split / "ant" / "0.jpg").write_bytes(IMAGES[0])
    assert isinstance(open_dataset(tmp_path, "train"), FileDataset)


def test_relative_home_and_missing_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("x-{0000..0001}.tar")) == 8
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_dataset("~/x-0001.tar").load(0) == IMAGES[7]
    (tmp_path / "x-0002.tar").unlink()
    with pytest.raises(InputError, match=r"x-0002\.tar does not exist \(1 of 4 shards\)"):
        open_dataset(tmp_path / "x-{0000..0003}.tar")


@pytest.mark.parametrize("content", [b"this is not a tar file" * 100, bytes(10240)])
def test_shards_without_images_are_an_input_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"no image in the shards of .*a\.tar \(.+\)$"):
        open_dataset(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", sample_members(range(3)))
    dataset = open_dataset(tmp_path)
    assert (len(dataset), dataset.load(0)) == (3, IMAGES[0])


def test_images_without_label_are_kept_for_pretraining_only(tmp_path: Path) -> None:
    assert open_dataset(write_shards(tmp_path / "a", labeled=False)).labels is None
    write_tar(tmp_path / "b.tar", [*sample_members(range(3)), ("0003.jpg", IMAGES[3])])
    assert open_dataset(tmp_path / "b.tar").labels.tolist() == [1, 0, 2, -1]
    train, test = (open_dataset(tmp_path / "b.tar", split) for split in ("train", "test"))
    assert (len(train) + len(test), train.skipped) == (3, {"images without label": [f"{tmp_path / 'b.tar'}, image 3"]})
    write_tar(tmp_path / "c.tar", [("0.json", b'{"label": null}'), ("0.jpg", IMAGES[0])])
    assert open_dataset(tmp_path / "c.tar").labels is None
    members = [(f"{i}.{name}", data) for i in (10, 9) for name, data in (("cls", b"%d\n" % i), ("jpg", IMAGES[i]))]
    write_tar(tmp_path / "d.tar", members)
    dataset = open_dataset(tmp_path / "d.tar")
    assert (dataset.classes, dataset.labels.tolist()) == (["9", "10"], [1, 0])


def test_test_split_has_the_classes_of_the_training_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", sample_members(range(3)))
    write_tar(tmp_path / "val.tar", sample_members(range(1, 2)))
    test = open_dataset(tmp_path, "test")
    assert (test.classes, test.labels.tolist()) == (["ant", "bee", "cat"], [0])
    write_tar(tmp_path / "train.tar", sample_members(range(1)))
    test = open_dataset(tmp_path, "test")
    assert (test.labels, "the training split lacks 1 of its classes (ant)" in test.layout) == (None, True)


def test_labels_are_cached_until_the_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", sample_members(range(6)))
    expected = open_dataset(path).labels.tolist()
    assert [json.loads(f.read_text()) for f in Path(os.environ["MEC_DATA"]).rglob("*.json")] == [
        [[class_name(i) for i in range(6)], {}]
    ]
    with monkeypatch.context() as patch:
        patch.setattr("mec.data.datasets.webdataset.read_samples", fail_to_read)
        assert open_dataset(path).labels.tolist() == expected
        os.utime(path, ns=(10**18, 10**18))
        with pytest.raises(InputError, match="read again"):
            open_dataset(path)
    write_tar(path, sample_members(range(2, 6)))
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("MEC_DATA", str(tmp_path / "home"))  # the cache is not writable
    assert [open_dataset(path).classes[i] for i in open_dataset(path).labels] == [class_name(i) for i in range(2, 6)]


def fail_to_read(*_: object, **__: object) -> None:
    raise AssertionError("read again")


def test_pretraining_reads_sizes_json_in_place_of_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(tmp_path)
    counts = {f"x-{shard:04}.tar": size for shard, size in enumerate(SIZES)}
    (tmp_path / "sizes.json").write_text(json.dumps(counts))
    with monkeypatch.context() as patch:
        patch.setattr("mec.data.datasets.webdataset._read_labels", fail_to_read)
        dataset = open_dataset(tmp_path / "x-{0000..0003}.tar", "pretrain")
        assert len(open_dataset(tmp_path, "pretrain")) == TOTAL
    assert dataset.labels is None
    assert [dataset.load(i) for i in range(TOTAL)] == IMAGES
    assert open_dataset(tmp_path).labels is not None
    for invalid in ('{"x-0000.tar": 7}', "[]", "{"):
        (tmp_path / "sizes.json").write_text(invalid)
        caplog.clear()
        assert len(open_dataset(tmp_path, "pretrain")) == TOTAL
        assert "sizes.json is not used, and all shards are read" in caplog.text


def test_subsets_of_shards(tmp_path: Path) -> None:
    dataset = open_dataset(write_shards(tmp_path), subsample=3)
    numbers = list(range(0, TOTAL, 3))
    assert [dataset.load(i) for i in range(len(dataset))] == [IMAGES[i] for i in numbers]
    assert [dataset.classes[i] for i in dataset.labels] == [class_name(i) for i in numbers]
    assert dataset.title(3) == f"{tmp_path / 'x-0002.tar'}, image 1"
    subset = dataset.subset(np.array([1, 4, 5]))
    assert [subset.load(i) for i in (2, 0, 1)] == [IMAGES[i] for i in (15, 3, 12)]
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    train_images, test_images = ({split.load(i) for i in range(len(split))} for split in (train, test))
    assert train_images | test_images == set(IMAGES)
    assert not train_images & test_images
    assert np.bincount(test.labels).tolist() == [2, 2, 2]


def test_member_names_never_become_paths(tmp_path: Path) -> None:
    """A shard is read in memory, so a name with .. in it or a link writes no file and reads none."""
    inner = tmp_path / "a" / "b"
    shard = write_tar(inner / "shard.tar", [("../../outside.jpg", IMAGES[0]), ("/outside.jpg", IMAGES[1])])
    with tarfile.open(shard, "a") as tar:
        link = tarfile.TarInfo("0002.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    dataset = open_dataset(str(shard))
    assert [dataset.load(i) for i in range(len(dataset))] == [IMAGES[0], IMAGES[1]]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [shard]
    assert not Path("/outside.jpg").exists()
