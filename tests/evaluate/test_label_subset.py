from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec.data import ArrayDataset, FileDataset
from mec.errors import InputError
from mec.evaluate.finetune import label_subset

COUNTS = [100, 230, 7]


@dataclass
class AbsentFiles(FileDataset):
    """Files that need not exist."""


@pytest.fixture
def dataset() -> AbsentFiles:
    names = [f"{c}/{c}_{i}.JPEG" for c, count in zip("abc", COUNTS, strict=True) for i in range(count)]
    return AbsentFiles("d", Path("/data/train"), names, np.repeat([0, 1, 2], COUNTS), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("choice", "counts"),
    [
        ({"label_fraction": 0.01}, [1, 2, 1]),
        ({"label_fraction": 0.1}, [10, 23, 1]),
        ({"label_fraction": 1.0}, COUNTS),
        ({"label_fraction": 1e-4}, [1, 1, 1]),
        ({"shots": 5}, [5] * 3),
        ({"shots": 7}, [7] * 3),
    ],
)
def test_fraction_or_shots_give_that_many_of_each_class(
    dataset: AbsentFiles, choice: dict[str, Any], counts: list[int]
) -> None:
    chosen = label_subset(dataset, seed=0, **choice)
    assert np.bincount(dataset.labels[chosen]).tolist() == counts
    assert (np.diff(chosen) > 0).all()
    assert label_subset(dataset, seed=0, **choice).tolist() == chosen.tolist()


def test_larger_fractions_contain_smaller_ones_and_seeds_differ(dataset: AbsentFiles) -> None:
    few, more = (set(label_subset(dataset, 3, label_fraction=f).tolist()) for f in (0.05, 0.2))
    assert few < more
    assert few != set(label_subset(dataset, 4, label_fraction=0.05).tolist())


def test_every_image_is_equally_likely(dataset: AbsentFiles) -> None:
    """Over many seeds each image of a class is chosen about as often: within five deviations of a binomial."""
    counts = np.zeros(100)
    for seed in range(400):
        counts[[i for i in label_subset(dataset, seed, label_fraction=0.1) if i < 100]] += 1
    assert abs(counts - 40).max() < 5 * np.sqrt(400 * 0.1 * 0.9)


def test_lists_name_files_as_simclr_does_or_with_more_of_the_path(dataset: AbsentFiles, tmp_path: Path) -> None:
    (tmp_path / "1percent.txt").write_text("b_0.JPEG\na_3.JPEG\n\nc_6.JPEG\na_3.JPEG\n")
    assert label_subset(dataset, 0, label_list=str(tmp_path / "1percent.txt")).tolist() == [3, 100, 336]
    text = "/data/train/b/b_0.JPEG\na/a_3.JPEG\ntrain/c/c_6.JPEG"
    (tmp_path / "paths.txt").write_text(text, encoding="utf-8-sig")  # as Windows tools save it
    assert label_subset(dataset, 5, label_list=tmp_path / "paths.txt").tolist() == [3, 100, 336]


def test_lists_name_images_in_memory_by_their_titles(tmp_path: Path) -> None:
    arrays = ArrayDataset("digits", np.zeros((6, 2, 2, 1), np.uint8), np.arange(6) % 2, ["0", "1"])
    (tmp_path / "l.txt").write_text("digits[1]\ndigits[4]")
    assert label_subset(arrays, 0, label_list=tmp_path / "l.txt").tolist() == [1, 4]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"label_fraction": 0.0}, "label_fraction: expected a number above 0 and up to 1, got 0"),
        ({"label_fraction": 1.01}, "label_fraction: expected"),
        ({"label_fraction": float("nan")}, "label_fraction: expected"),
        ({"shots": 0}, "shots: expected at least 1, got 0"),
        ({"shots": -3}, "shots: expected at least 1"),
        ({"shots": 8}, "shots: expected at most 7, the train images of the smallest class 'c'"),
        (
            {"label_list": "nowhere.txt"},
            "label_list: nowhere.txt cannot be read (No such",
        ),
        ({"label_list": "."}, "Is a directory"),
        ({"shots": 1, "label_fraction": 0.1}, "expected one of the three, got label_fraction and shots"),
        ({}, "expected one of the three"),
    ],
)
def test_bad_choices_are_refused_in_one_line(dataset: AbsentFiles, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        label_subset(dataset, 0, **choice)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a_3.JPEG\nnone.JPEG\nb_1.JPEG\nnor_this.JPEG", "none.JPEG, which is not among the train images (2 of 4"),
        ("a_3.JPEG\nb_0.JPEG", "no image of class 'c'"),
        ("\n\n", "is empty"),
    ],
)
def test_bad_lists_are_refused(dataset: AbsentFiles, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(InputError, match="label_list: ") as error:
        label_subset(dataset, 0, label_list=tmp_path / "l.txt")
    assert message in str(error.value)


def test_ambiguous_names_are_refused(tmp_path: Path) -> None:
    dataset = AbsentFiles("d", Path("/d"), ["a/1.jpg", "b/1.jpg"], np.array([0, 1]), ["a", "b"])
    (tmp_path / "l.txt").write_text("1.jpg")
    with pytest.raises(InputError, match=r"1.jpg in .* matches /d/a/1.jpg and /d/b/1.jpg; write more of the path"):
        label_subset(dataset, 0, label_list=tmp_path / "l.txt")


def test_a_list_that_is_not_text_is_refused(dataset: AbsentFiles, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text"):
        label_subset(dataset, 0, label_list=tmp_path / "l.txt")
