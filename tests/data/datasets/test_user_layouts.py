"""Folders as users have them: each is read right and the reading stated, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mec.data import open_dataset
from mec.data.dataset import describe
from mec.data.datasets.folder import refuse_output_within
from mec.data.splits import doubtful_classes, log_splits
from mec.errors import InputError
from tests.data.datasets.user_files import JPEG, labels_of, write, write_archive


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


def test_a_wrapper_folder_of_an_archive_is_entered(tmp_path: Path) -> None:
    for split in ("Training_Set", "test_images"):
        write(*(tmp_path / "photos" / "v1" / split / name / "0.jpg" for name in ("cat", "dog")))
    assert labels_of(tmp_path, "train") == labels_of(tmp_path, "test") == {"cat/0.jpg": "cat", "dog/0.jpg": "dog"}
    assert "photos/v1/test_images/" in describe(open_dataset(tmp_path, "test"))
    (tmp_path / "LICENSE").touch()
    assert open_dataset(tmp_path, "train").skipped == {"files that are no images": ["LICENSE"]}
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
