"""What is counted and listed of the images that cannot be read, and how many are let pass."""

from pathlib import Path

import numpy as np
import pytest

from mec.data.corrupt import CorruptImage, CorruptLog
from mec.errors import InputError
from tests.data.corrupt_files import BATCH, rows


def test_each_is_counted_and_listed_once(tmp_path: Path) -> None:
    skipped = CorruptLog(0.5, 100)
    skipped.add([CorruptImage("early", "why")], 10)
    skipped.list_in(tmp_path / "run" / "skipped.csv")
    skipped.add([CorruptImage("a", "one"), CorruptImage("b", "two"), CorruptImage("a", "one")], 10)
    skipped.add([CorruptImage("a", "another"), CorruptImage("early", "why"), CorruptImage("c", "three")], 10)
    skipped.add([], 10)
    assert len(skipped) == 4
    expected = [["image", "reason"], ["early", "why"], ["a", "one"], ["b", "two"], ["c", "three"]]
    assert rows(tmp_path / "run" / "skipped.csv") == expected


def test_nothing_is_written_where_nothing_is_lost(tmp_path: Path) -> None:
    skipped = CorruptLog(0.5, 100)
    skipped.list_in(tmp_path / "skipped.csv")
    skipped.add([], 100)
    assert not (tmp_path / "skipped.csv").exists()


AWKWARD = [
    "a,b.jpg",
    'say "cheese".jpg',
    "two\nlines.jpg",
    "tail\r.jpg",
    "Übung/鳥🐦.jpg",
    " blank ",
    "'",
    "caf\udce9.jpg",
]


def test_a_resumed_listing_knows_what_it_holds_whatever_the_names(tmp_path: Path) -> None:
    path = tmp_path / "skipped.csv"
    before = CorruptLog(0.5, 100)
    before.list_in(path)
    before.add([CorruptImage(name, f'because of "{name}", I fear') for name in AWKWARD], 50)
    after = CorruptLog(0.5, 100)
    after.add([CorruptImage(AWKWARD[0], "again"), CorruptImage("new", "found before it was listed")], 10)
    after.list_in(path)
    after.add([CorruptImage(name, "again") for name in AWKWARD] + [CorruptImage("newer", "found since")], 10)
    assert len(after) == len(AWKWARD) + 2
    listed = rows(path)
    assert [row[0] for row in listed] == ["image", *AWKWARD, "new", "newer"]
    assert listed[3] == [AWKWARD[2], f'because of "{AWKWARD[2]}", I fear']


@pytest.mark.parametrize("content", ["", "image,reason\n", "image,reason\na.jpg,trunc", "a.jpg\n\n"])
def test_a_listing_that_broke_off_is_gone_on_with(tmp_path: Path, content: str) -> None:
    path = tmp_path / "skipped.csv"
    path.write_text(content)
    skipped = CorruptLog(0.5, 100)
    skipped.list_in(path)
    skipped.add([CorruptImage("b.jpg", "why")], 10)
    assert ["b.jpg", "why"] in rows(path) or content.endswith("trunc")
    again = CorruptLog(0.5, 100)
    again.list_in(path)
    assert "b.jpg" in again.reasons or content.endswith("trunc")


def lose(skipped: CorruptLog, broken: np.ndarray, batch: int = BATCH) -> int:
    """Batch by batch; how many images were seen."""
    seen = 0
    for start in range(0, len(broken), batch):
        numbers = range(start, min(start + batch, len(broken)))
        seen += len(numbers)
        skipped.add([CorruptImage(f"{i}.jpg", "why") for i in numbers if broken[i]], len(numbers))
    return seen


def some(share: float, images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(images) < round(share * images)


@pytest.mark.parametrize("images", [100, 1000, 20_000])
@pytest.mark.parametrize("seed", range(5))
def test_four_percent_pass_where_five_may(images: int, seed: int) -> None:
    skipped, broken = CorruptLog(0.05, images), some(0.04, images, seed)
    for _ in ("one epoch", "another"):
        assert lose(skipped, broken) == images
    assert len(skipped) == broken.sum()


@pytest.mark.parametrize("images", [100, 1000, 20_000, 10**6])
def test_half_broken_stops_early(images: int) -> None:
    skipped = CorruptLog(0.05, images)
    with pytest.raises(InputError) as caught:
        lose(skipped, some(0.5, images))
    assert str(caught.value).startswith("data: ")
    assert "cannot be read, at most 0.05 of all are let pass; the first: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert skipped.seen <= 100


def test_the_message_names_the_listing(tmp_path: Path) -> None:
    skipped = CorruptLog(0.05, 1000)
    skipped.list_in(tmp_path / "skipped.csv")
    with pytest.raises(InputError, match=r"data: 40 of the first 40 images .*0\.jpg: why; all are in .*skipped"):
        lose(skipped, np.ones(1000, bool), 40)
    assert len(rows(tmp_path / "skipped.csv")) == 41


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_few_unlucky_ones_at_the_start_of_a_large_set_do_not_stop(first: int) -> None:
    broken = np.arange(10_000) < first
    assert lose(CorruptLog(0.01, 10_000), broken) == 10_000


@pytest.mark.parametrize(("most", "images"), [(0.05, 100), (0.29, 100), (0.07, 100), (0.1, 30), (0.58, 50), (1.0, 7)])
def test_exactly_as_many_as_may_be_pass(most: float, images: int) -> None:
    may = round(most * images)
    spread = np.zeros(images, bool)
    spread[np.linspace(0, images - 1, may).astype(int)] = True
    skipped = CorruptLog(most, images)
    lose(skipped, spread)
    assert len(skipped) == may
    if may < images:
        with pytest.raises(InputError, match=f"^data: {may + 1} of {images} images "):
            skipped.add([CorruptImage("one more", "why")], 0)


def test_none_may_be_broken() -> None:
    skipped = CorruptLog(0.0, 100, "max_corrupt")
    skipped.add([], 50)
    with pytest.raises(InputError, match=r"^max_corrupt: 1 of 100 images cannot be read, at most 0 of all"):
        skipped.add([CorruptImage("a", "why")], 25)


def test_what_an_earlier_run_lost_does_not_stop_the_resumed_one(tmp_path: Path) -> None:
    broken = some(0.04, 10_000)
    before = CorruptLog(0.05, 10_000)
    before.list_in(tmp_path / "skipped.csv")
    lose(before, broken[:6000])
    after = CorruptLog(0.05, 10_000)
    after.list_in(tmp_path / "skipped.csv")
    for part in np.split(np.arange(10_000)[::-1], 400):
        after.add([CorruptImage(f"{i}.jpg", "why") for i in part if broken[i]], len(part))
    assert len(after) == len(rows(tmp_path / "skipped.csv")) - 1 == broken.sum()
    with pytest.raises(InputError, match=r"data: 501 of 10,000"):
        after.add([CorruptImage(f"new {i}", "why") for i in range(501 - len(after))], 0)
