"""Folders, lists and arrays as users have them: each is read right and the reading stated, or refused in one line."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec.data import open_dataset
from mec.data.dataset import describe
from mec.data.datasets.folder import refuse_output_within
from mec.data.splits import clean_labels, doubtful_classes, log_splits
from mec.errors import InputError

JPEG = io.BytesIO()
Image.new("RGB", (8, 6), "red").save(JPEG, "jpeg")


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG.getvalue())


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def labels_of(path: Path, split: str = "all", labels_csv: Path | None = None) -> dict[str, str | None]:
    dataset = open_dataset(path, split, labels_csv)
    assert dataset.labels is not None, dataset.layout
    return {name: dataset.classes[i] if i >= 0 else None for name, i in zip(dataset.names, dataset.labels, strict=True)}


@pytest.mark.parametrize("archive", ["photos.tar.gz", "metadata.parquet", "clip.mp4"])
def test_images_are_not_hidden_by_one_file_of_another_kind(tmp_path: Path, archive: str) -> None:
    write(*(tmp_path / f"{i}.jpg" for i in range(8)))
    write_archive(tmp_path / archive, {f"{i}.jpg": JPEG.getvalue() for i in range(3)})
    dataset = open_dataset(tmp_path)
    assert (len(dataset), dataset.skipped) == (8, {"files that are no images": [archive]})


@pytest.mark.parametrize("archive", ["photos.tar", "metadata.parquet", "clip.mp4"])
def test_as_many_images_as_archives_are_refused(tmp_path: Path, archive: str) -> None:
    write(tmp_path / "0.jpg")
    write_archive(tmp_path / archive, {"0.jpg": JPEG.getvalue()})
    with pytest.raises(InputError, match=r"data: .* expected one kind"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("Train", "Test"), ("train", "dev"), ("TRAIN", "VAL"), ("trn", "validation")],
)
def test_split_folders_are_recognized_in_any_case(tmp_path: Path, train: str, test: str) -> None:
    for split in (train, test):
        write(*(tmp_path / split / name / "0.jpg" for name in ("cat", "dog")))
    assert labels_of(tmp_path, "train") == labels_of(tmp_path, "test") == {"cat/0.jpg": "cat", "dog/0.jpg": "dog"}
    assert f"{test}/" in describe(open_dataset(tmp_path, "test"))


def test_a_lone_split_folder_is_no_class(tmp_path: Path) -> None:
    write(*(tmp_path / "train" / name / "0.jpg" for name in ("cat", "dog")))
    assert labels_of(tmp_path) == {"cat/0.jpg": "cat", "dog/0.jpg": "dog"}


def test_trains_among_other_vehicles_are_a_class(tmp_path: Path) -> None:
    write(*(tmp_path / name / "0.jpg" for name in ("bus", "car", "train")))
    assert open_dataset(tmp_path).classes == ["bus", "car", "train"]


def test_the_test_split_with_labels_is_used_and_the_other_is_named(tmp_path: Path) -> None:
    """ImageNet's test images have no labels."""
    write(*(tmp_path / split / name / "0.jpg" for split in ("train", "val") for name in ("cat", "dog")))
    write(tmp_path / "test" / "0.jpg", tmp_path / "extra" / "0.jpg", tmp_path / "README.jpg")
    assert labels_of(tmp_path, "test") == {"cat/0.jpg": "cat", "dog/0.jpg": "dog"}
    assert open_dataset(tmp_path, "test").skipped == {"other splits": ["test"]}
    skipped = {"other splits": ["extra"], "files outside of the splits": ["README.jpg"]}
    assert open_dataset(tmp_path, "train").skipped == skipped


def test_an_unlabeled_folder_is_for_pretraining(tmp_path: Path) -> None:
    write(*(tmp_path / split / "cat" / "0.jpg" for split in ("train", "test")), tmp_path / "Unlabeled" / "1.jpg")
    assert open_dataset(tmp_path, "pretrain").names == ["1.jpg"]
    assert open_dataset(tmp_path, "train").names == ["cat/0.jpg"]


def test_raw_tiny_imagenet_can_be_pretrained_on(tmp_path: Path) -> None:
    """Its val images lie in one folder; their labels are in a text file."""
    write(*(tmp_path / "train" / name / "images" / f"{name}_0.JPEG" for name in ("n01", "n02")))
    write(tmp_path / "val" / "images" / "val_0.JPEG")
    assert len(open_dataset(tmp_path, "pretrain")) == 2
    assert labels_of(tmp_path, "train") == {"n01/images/n01_0.JPEG": "n01", "n02/images/n02_0.JPEG": "n02"}
    test = open_dataset(tmp_path, "test")
    assert test.labels is None
    assert test.layout.endswith("labels not used: the training split lacks 1 of its classes (images)")


def test_an_empty_test_split_does_not_refuse_pretraining(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "0.jpg")
    (tmp_path / "test").mkdir()
    assert len(open_dataset(tmp_path, "pretrain")) == 1
    with pytest.raises(InputError, match=r"data: no image in .*test"):
        open_dataset(tmp_path, "test")


@pytest.mark.parametrize("tool", ["@eaDir", ".thumbnails", "#recycle", "__MACOSX", "$RECYCLE.BIN", "lost+found"])
def test_folders_of_tools_are_no_class(tmp_path: Path, tool: str) -> None:
    write(*(tmp_path / name / "0.jpg" for name in ("cat", "dog", tool)))
    write(tmp_path / "cat" / tool / "0.jpg")
    assert labels_of(tmp_path) == {"cat/0.jpg": "cat", "dog/0.jpg": "dog"}


def test_images_beside_class_folders_are_stated(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "0.jpg", tmp_path / "1.jpg")
    assert "sub-folders are no classes because 1 images lie beside them" in describe(open_dataset(tmp_path))


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


def test_a_wrapper_folder_of_an_archive_is_entered(tmp_path: Path) -> None:
    for split in ("Training_Set", "test_images"):
        write(*(tmp_path / "photos" / "v1" / split / name / "0.jpg" for name in ("cat", "dog")))
    assert labels_of(tmp_path, "train") == labels_of(tmp_path, "test") == {"cat/0.jpg": "cat", "dog/0.jpg": "dog"}
    assert "photos/v1/test_images/" in describe(open_dataset(tmp_path, "test"))
    write(tmp_path / "other" / "cat" / "0.jpg")
    assert open_dataset(tmp_path / "other").classes == ["cat"]


@pytest.mark.parametrize("names", [("images", "masks"), ("fold_1", "fold_2"), ("dev", "main")])
def test_classes_that_look_like_parts_of_a_dataset_are_named(
    tmp_path: Path, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    write(*(tmp_path / name / "0.jpg" for name in names))
    dataset = open_dataset(tmp_path)
    assert doubtful_classes(dataset)
    log_splits(tmp_path, {"train": dataset})
    assert "CLASSES LOOK LIKE PARTS OF A DATASET" in caplog.text


def test_real_folders_are_read_before_links_to_them(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "0.jpg", tmp_path / "dog" / "0.jpg")
    (tmp_path / "a_favorites").symlink_to(tmp_path / "dog")
    (tmp_path / "cat" / "link").symlink_to(tmp_path / "dog")
    dataset = open_dataset(tmp_path)
    assert (dataset.names, dataset.classes) == (["cat/0.jpg", "dog/0.jpg"], ["cat", "dog"])
    links = [str(tmp_path / "a_favorites"), str(tmp_path / "cat" / "link")]
    assert dataset.skipped == {"links to folders read before": links}


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


@pytest.mark.parametrize("suffix", [".zip", ".tar.xz"])
def test_archives_are_to_be_unpacked(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(InputError, match=r"data: .* is an archive; unpack it first"):
        open_dataset(tmp_path / f"a{suffix}")


def test_contact_sheets_are_not_written_among_the_images(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "cat" / "0.jpg")
    with pytest.raises(InputError, match=r"out: .* would be read as one of its images"):
        refuse_output_within(tmp_path / "photos", tmp_path / "photos" / "new" / "views.png")
    refuse_output_within(tmp_path / "photos", tmp_path / "photos2.png")
