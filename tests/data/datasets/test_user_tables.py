"""Lists, tables, arrays and shards as users have them: each is read right, and stated, or refused in one line."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mec.data import open_dataset
from mec.data.dataset import describe
from mec.data.splits import clean_labels
from mec.errors import InputError
from tests.data.datasets.user_files import JPEG, labels_of, write, write_archive


@pytest.mark.parametrize(
    "text",
    [
        "image_id,label\n{0},cat\n{1},dog\n",
        "ImageId,Class\n{0},cat\n{1},dog\n",
        "filepath,labels\n{0},cat\n{1},dog\n",
        "id,breed\n{0},cat\n{1},dog\n",
        "breed;Bild\ncat;{0}\ndog;{1}\n",
        "age\tfile name\tlabel\n3\t{0}\tcat\n4\t{1}\tdog\n",
        '"x","diagnosis"\n"{0}","cat"\n"{1}","dog"\n',
        "{0},cat\n{1},dog\n",
        "cat,{0}\ndog,{1}\n",
        "image,cat,dog\n{0},1,0\n{1},0.0,1.0\n",
    ],
)
@pytest.mark.parametrize("extension", ["", ".jpg"])
def test_tables_are_read_by_their_content(tmp_path: Path, text: str, extension: str) -> None:
    write(tmp_path / "a 0.jpg", tmp_path / "b.c.jpg")
    (tmp_path / "t.csv").write_text(text.format(f"a 0{extension}", f"b.c{extension}"), encoding="utf-8-sig")
    assert labels_of(tmp_path / "t.csv") == {"a 0.jpg": "cat", "b.c.jpg": "dog"}


def test_blank_labels_are_no_class(tmp_path: Path) -> None:
    write(*(tmp_path / f"0{i}.jpg" for i in range(5)))
    (tmp_path / "t.csv").write_text("00.jpg,a\n01.jpg,b\n02.jpg,a\n03.jpg,\n04.jpg, b\n")
    expected = {"00.jpg": "a", "01.jpg": "b", "02.jpg": "a", "03.jpg": None, "04.jpg": "b"}
    assert labels_of(tmp_path / "t.csv") == expected
    assert describe(open_dataset(tmp_path / "t.csv")).startswith(
        "5 images, 2 classes, 1 without label; t.csv, paths in"
    )
    train, test = (labels_of(tmp_path / "t.csv", split) for split in ("train", "test"))
    assert sorted(train | test) == ["00.jpg", "01.jpg", "02.jpg", "04.jpg"]


@pytest.mark.parametrize("text", ["file,age,owner\n0.jpg,1,ann\n", "image,cat,dog\n0.jpg,1,1\n"])
def test_tables_without_one_label_per_image_are_for_pretraining(tmp_path: Path, text: str) -> None:
    write(tmp_path / "0.jpg")
    (tmp_path / "t.csv").write_text(text)
    dataset = open_dataset(tmp_path / "t.csv")
    assert (len(dataset), dataset.labels) == (1, None)
    assert "labels not used: expected a column label or one-hot columns, got" in dataset.layout
    with pytest.raises(InputError, match=r"labels_csv: .* gives no labels"):
        open_dataset(tmp_path, labels_csv=tmp_path / "t.csv")


def test_labels_csv_counts_the_images_that_it_does_not_list(tmp_path: Path) -> None:
    write(*(tmp_path / f"{i}.jpg" for i in range(3)))
    (tmp_path / "t.csv").write_text("0.jpg,a\n./2.jpg,b\n")
    dataset = open_dataset(tmp_path, labels_csv=tmp_path / "t.csv")
    assert (len(dataset), dataset.skipped) == (2, {"images that t.csv does not list": ["1.jpg"]})
    (tmp_path / "t.csv").write_text("x/0.jpg,a\nx/2.jpg,b\n")
    with pytest.raises(InputError, match=r"labels_csv: none of the 2 paths .* first path is x/0\.jpg, .* 0\.jpg"):
        open_dataset(tmp_path, labels_csv=tmp_path / "t.csv")


def test_lists_with_labels(tmp_path: Path) -> None:
    write(tmp_path / "my photo.jpg", tmp_path / "b.jpg", tmp_path / "c 1")
    (tmp_path / "l.txt").write_text("my photo.jpg 0\nb.jpg 1\n", encoding="utf-8-sig")
    assert labels_of(tmp_path / "l.txt") == {"my photo.jpg": "0", "b.jpg": "1"}
    (tmp_path / "l.txt").write_text("my photo.jpg\nc 1\n", encoding="utf-16")
    assert open_dataset(tmp_path / "l.txt").names == ["my photo.jpg", "c 1"]


RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (60, 28, 28), dtype=np.uint8)


def test_one_hot_labels_are_classes(tmp_path: Path) -> None:
    classes = np.arange(60) % 10
    np.savez(tmp_path / "a.npz", train_images=GRAY, train_labels=np.eye(10)[classes])
    dataset = open_dataset(tmp_path / "a.npz")
    assert dataset.classes == [str(i) for i in range(10)]
    assert np.array_equal(dataset.labels, classes)


def test_several_labels_per_image_are_stated_and_not_scored(tmp_path: Path) -> None:
    labels = RNG.integers(0, 2, (60, 14), dtype=np.uint8)
    np.savez(tmp_path / "chest.npz", train_images=GRAY, train_labels=labels, weights=np.ones(3))
    dataset = open_dataset(tmp_path / "chest.npz", "pretrain")
    assert (len(dataset), dataset.labels, dataset.skipped) == (60, None, {"other arrays": ["weights"]})
    assert "labels train_labels, not used: expected one label per image or one-hot labels, got 14 co" in dataset.layout


def test_channels_first_arrays(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    dataset = open_dataset(tmp_path / "a.npz")
    assert np.array_equal(dataset.images, images.transpose(0, 2, 3, 1))
    assert dataset.layout == "array images uint8 (60, 3, 32, 32) with channels first"


def test_missing_and_text_labels_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GRAY[:4], labels=np.array([1.0, np.nan, 0.0, 1.0]))
    assert open_dataset(tmp_path / "a.npz").labels.tolist() == [1, -1, 0, 1]
    np.savez(tmp_path / "b.npz", images=GRAY[:3], labels=np.array([b"cat", b"", b"dog"]))
    dataset = open_dataset(tmp_path / "b.npz")
    assert (dataset.classes, dataset.labels.tolist()) == (["cat", "dog"], [0, -1, 1])


def test_names_with_dots_in_shards(tmp_path: Path) -> None:
    image = {name: name.encode() for name in ("a.jpg", "b.000.jpg", "b.001.jpg", "c.input.jpg", "d.jpg", "d.seg.png")}
    labels = {"a.cls": b"0", "b.000.cls": b"1", "b.001.cls": b"2", "c.cls": b"3", "d.cls": b"4", "e.txt": b"", "f": b""}
    write_archive(tmp_path / "x.tar", dict(sorted({**image, **labels}.items())))
    dataset = open_dataset(tmp_path / "x.tar")
    assert [dataset.load(i).decode() for i in range(5)] == ["a.jpg", "b.000.jpg", "b.001.jpg", "c.input.jpg", "d.jpg"]
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.skipped == {
        "further images of a sample": ["d.seg.png"],
        "samples without image": ["e"],
        "files without extension": ["f"],
    }


def test_sizes_json_below_the_content_of_a_shard_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "x.tar", {f"{i}.jpg": JPEG.getvalue() for i in range(20)})
    (tmp_path / "sizes.json").write_text('{"x.tar": 10}')
    with pytest.raises(InputError, match=r"sizes\.json: expected 20 for .*x\.tar, got 10"):
        open_dataset(tmp_path, "pretrain")


def test_a_later_shard_above_its_size_is_named_when_it_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("x", "y"):
        write_archive(tmp_path / f"{name}.tar", {f"{i}.jpg": JPEG.getvalue() for i in range(4)})
    (tmp_path / "sizes.json").write_text('{"x.tar": 4, "y.tar": 3}')
    dataset = open_dataset(tmp_path, "pretrain")
    with caplog.at_level("WARNING", "mec"):
        for index in range(7):
            dataset.load(index)
    assert [
        record.message.endswith("y.tar has more than the 3 images that are trained on") for record in caplog.records
    ] == [True]


def test_a_table_of_boxes_lists_each_image_once(tmp_path: Path) -> None:
    write(*(tmp_path / f"{i}.jpg" for i in range(3)))
    rows = [f"{i}.jpg,{label},{x}" for i, label in ((0, "cat"), (1, "dog")) for x in range(4)]
    rows += ["2.jpg,cat,0", "2.jpg,dog,1"]
    (tmp_path / "t.csv").write_text("\n".join(["filename,class,xmin", *rows]))
    assert labels_of(tmp_path / "t.csv") == {"0.jpg": "cat", "1.jpg": "dog", "2.jpg": None}
    dataset = open_dataset(tmp_path / "t.csv")
    assert dataset.layout.endswith("labels in column class, 7 repeated rows")
    assert dataset.skipped == {"labels of images with several labels": ["2.jpg"]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1.0", "0.0", "nan", "1.0"], ["1", "0", None, "1"]),
        ([1.0, 0.0, float("nan"), None], ["1", "0", None, None]),
        (["NaN", "cat", " ", "dog"], [None, "cat", None, "dog"]),
        (["-1", "0", "1", "-1"], [None, "0", "1", None]),
        (["-1", "0", "1", "-2"], ["-1", "0", "1", "-2"]),
        (["none", "1.5", "-1", "a"], ["none", "1.5", "-1", "a"]),
    ],
)
def test_missing_labels_of_any_column(values: list[object], expected: list[str | None]) -> None:
    assert clean_labels(values) == expected


def test_links_in_shards_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, link in (("a.jpg", ""), ("b.jpg", tarfile.SYMTYPE), ("c.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.size = 0 if link else len(JPEG.getvalue())
            info.type, info.linkname = link or tarfile.REGTYPE, "a.jpg"
            tar.addfile(info, io.BytesIO(JPEG.getvalue()))
    dataset = open_dataset(tmp_path / "x.tar")
    assert (len(dataset), dataset.skipped) == (1, {"links": ["b.jpg", "c.jpg"]})
