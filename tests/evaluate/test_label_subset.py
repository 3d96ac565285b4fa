from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mec.data import ArrayDataset, FileDataset
from mec.errors import InputError
from mec.evaluate.label_subset import labeled

COUNTS = [100, 230, 7]


@dataclass
class Names(FileDataset):
    """Files that need not be there."""


@pytest.fixture
def images() -> Names:
    names = [f"{c}/{c}_{i}.JPEG" for c, count in zip("abc", COUNTS, strict=True) for i in range(count)]
    return Names("d", Path("/data/train"), names, np.repeat([0, 1, 2], COUNTS), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("labels", "counts"),
    [("1%", [1, 2, 1]), ("10%", [10, 23, 1]), ("100%", COUNTS), ("0.01%", [1, 1, 1]), ("5", [5] * 3), (7, [7] * 3)],
)
def test_a_share_or_a_number_of_each_class(images: Names, labels: str, counts: list[int]) -> None:
    chosen = labeled(images, labels, seed=0)
    assert np.bincount(images.labels[chosen]).tolist() == counts
    assert (np.diff(chosen) > 0).all()
    assert labeled(images, labels, seed=0).tolist() == chosen.tolist()


def test_seeds_choose_others_and_more_labels_keep_the_fewer(images: Names) -> None:
    few, more = (set(labeled(images, p, seed=3).tolist()) for p in ("5%", "20%"))
    assert few < more
    assert few != set(labeled(images, "5%", seed=4).tolist())


def test_the_choice_is_even(images: Names) -> None:
    """Over many seeds each image of a class is chosen about as often: within five deviations of a binomial."""
    counts = np.zeros(100)
    for seed in range(400):
        counts[[i for i in labeled(images, "10%", seed) if i < 100]] += 1
    assert abs(counts - 40).max() < 5 * np.sqrt(400 * 0.1 * 0.9)


def test_lists_in_simclrs_format_or_with_more_of_the_path(images: Names, tmp_path: Path) -> None:
    (tmp_path / "1percent.txt").write_text("b_0.JPEG\na_3.JPEG\n\nc_6.JPEG\n")
    assert labeled(images, str(tmp_path / "1percent.txt"), 0).tolist() == [3, 100, 336]
    (tmp_path / "paths.txt").write_text("/data/train/b/b_0.JPEG\na/a_3.JPEG\ntrain/c/c_6.JPEG")
    assert labeled(images, tmp_path / "paths.txt", 5).tolist() == [3, 100, 336]


def test_images_in_memory_are_named_by_their_titles(tmp_path: Path) -> None:
    arrays = ArrayDataset("digits", np.zeros((6, 2, 2, 1), np.uint8), np.arange(6) % 2, ["0", "1"])
    (tmp_path / "l.txt").write_text("digits[1]\ndigits[4]")
    assert labeled(arrays, tmp_path / "l.txt", 0).tolist() == [1, 4]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("0%", "expected a share above 0 and up to 100%, got '0%'"),
        ("101%", "expected a share"),
        ("x%", "expected a share"),
        ("nan%", "expected a share"),
        ("0", "at least 1, got '0'"),
        ("-3", "at least 1"),
        ("2.5", "expected a whole number of images a class"),
        ("8", "expected at most 7, the images of the smallest class, got 8"),
        ("nowhere.txt", "got nowhere.txt (No such file or directory)"),
        (".", "Is a directory"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(images: Names, labels: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        labeled(images, labels, 0)
    assert str(error.value).startswith("labels: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a_3.JPEG\nnone.JPEG\nb_1.JPEG\nnor_this.JPEG", "none.JPEG, which is not among the train images (2 of 4)"),
        ("a_3.JPEG\na_3.JPEG", "a_3.JPEG twice"),
        ("a_3.JPEG\nb_0.JPEG", "no image of class 'c'"),
        ("\n\n", "is empty"),
    ],
)
def test_bad_lists(images: Names, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(InputError, match="labels: ") as error:
        labeled(images, tmp_path / "l.txt", 0)
    assert message in str(error.value)


def test_a_name_that_several_images_have_is_asked_for_more(tmp_path: Path) -> None:
    images = Names("d", Path("/d"), ["a/1.jpg", "b/1.jpg"], np.array([0, 1]), ["a", "b"])
    (tmp_path / "l.txt").write_text("1.jpg")
    with pytest.raises(InputError, match=r"1.jpg in .* may be /d/a/1.jpg and /d/b/1.jpg; write more of the path"):
        labeled(images, tmp_path / "l.txt", 0)


def test_a_list_that_is_not_text(images: Names, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        labeled(images, tmp_path / "l.txt", 0)
