"""CorruptLog counts corrupt images, lists them in a file, and raises an error if there are too many."""

from pathlib import Path

import numpy as np
import pytest

from mec.data.corrupt import CorruptImage, CorruptLog
from mec.errors import InputError
from tests.data.corrupt_files import BATCH, read_csv


def test_each_image_is_counted_and_listed_once(tmp_path: Path) -> None:
    log = CorruptLog(0.5, 100)
    log.add([CorruptImage("early", "why")], 10)
    log.write_to(tmp_path / "run" / "corrupt.csv")
    log.add([CorruptImage("a", "one"), CorruptImage("b", "two"), CorruptImage("a", "one")], 10)
    log.add([CorruptImage("a", "another"), CorruptImage("early", "why"), CorruptImage("c", "three")], 10)
    log.add([], 10)
    assert len(log) == 4
    expected = [["image", "reason"], ["early", "why"], ["a", "one"], ["b", "two"], ["c", "three"]]
    assert read_csv(tmp_path / "run" / "corrupt.csv") == expected


UNUSUAL_NAMES = [
    "a,b.jpg",
    'say "cheese".jpg',
    "two\nlines.jpg",
    "tail\r.jpg",
    "Übung/鳥🐦.jpg",
    " blank ",
    "'",
    "caf\udce9.jpg",
]


def test_resumed_file_has_no_duplicates_for_unusual_file_names(tmp_path: Path) -> None:
    path = tmp_path / "corrupt.csv"
    first = CorruptLog(0.5, 100)
    first.write_to(path)
    first.add([CorruptImage(name, f'because of "{name}", I fear') for name in UNUSUAL_NAMES], 50)
    second = CorruptLog(0.5, 100)
    second.add([CorruptImage(UNUSUAL_NAMES[0], "again"), CorruptImage("new", "before write_to")], 10)
    second.write_to(path)
    second.add([CorruptImage(name, "again") for name in UNUSUAL_NAMES] + [CorruptImage("newer", "after write_to")], 10)
    assert len(second) == len(UNUSUAL_NAMES) + 2
    listed = read_csv(path)
    assert [row[0] for row in listed] == ["image", *UNUSUAL_NAMES, "new", "newer"]
    # row 0 is the header: a file name with a line break survives the round trip
    assert listed[3] == [UNUSUAL_NAMES[2], f'because of "{UNUSUAL_NAMES[2]}", I fear']


@pytest.mark.parametrize(
    ("content", "earlier"),
    [("", {}), ("image,reason\n", {}), ("a.jpg\n\n", {}), ("image,reason\na.jpg,trunc", {"a.jpg": "trunc"})],
)
def test_a_truncated_file_is_continued(tmp_path: Path, content: str, earlier: dict[str, str]) -> None:
    path = tmp_path / "corrupt.csv"
    path.write_text(content)
    expected = earlier | {"b.jpg": "why"}
    for _ in range(2):
        log = CorruptLog(0.5, 100)
        log.write_to(path)
        log.add([CorruptImage("b.jpg", "why")], 10)
        assert log.reasons == expected
    assert ["b.jpg", "why"] in read_csv(path)
    assert len({row[0] for row in read_csv(path)}) == len([row for row in read_csv(path) if row])


def add_batches(log: CorruptLog, corrupt: np.ndarray, batch_size: int = BATCH) -> int:
    """Add the images batch by batch and return the number added."""
    num_seen = 0
    for start in range(0, len(corrupt), batch_size):
        indices = range(start, min(start + batch_size, len(corrupt)))
        num_seen += len(indices)
        log.add([CorruptImage(f"{i}.jpg", "why") for i in indices if corrupt[i]], len(indices))
    return num_seen


def random_mask(fraction: float, num_images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(num_images) < round(fraction * num_images)


@pytest.mark.parametrize("num_images", [100, 20_000])
def test_half_corrupt_raises_early(tmp_path: Path, num_images: int) -> None:
    log = CorruptLog(0.05, num_images)
    log.write_to(tmp_path / "corrupt.csv")
    log.add([], 0)
    assert not (tmp_path / "corrupt.csv").exists()
    with pytest.raises(InputError, match=r"^data: .* images cannot be read, .*: why; all are listed in .*csv$"):
        add_batches(log, random_mask(0.5, num_images))
    assert log.num_seen <= 100  # four batches
    assert len(read_csv(tmp_path / "corrupt.csv")) == len(log) + 1


@pytest.mark.parametrize(("num_images", "seed"), [(100, 0), (1000, 2), (20_000, 4)])
def test_four_percent_corrupt_is_accepted_with_a_limit_of_five(num_images: int, seed: int) -> None:
    log, corrupt = CorruptLog(0.05, num_images), random_mask(0.04, num_images, seed)
    for _ in range(2):  # the second epoch must not count corrupt images again
        assert add_batches(log, corrupt) == num_images
    assert len(log) == corrupt.sum()
    # a few at the start of a large dataset are accepted
    assert add_batches(CorruptLog(0.01, 10_000), np.arange(10_000) < 3) == 10_000


@pytest.mark.parametrize(
    ("max_fraction", "num_images"), [(0.0, 100), (0.05, 100), (0.29, 100), (0.07, 100), (0.58, 50), (1.0, 7)]
)
def test_exactly_the_maximum_is_accepted(max_fraction: float, num_images: int) -> None:
    # 0.29 * 100 and 0.58 * 50 are slightly less than integers in floating point, 0.07 * 100 slightly more
    maximum = round(max_fraction * num_images)
    corrupt = np.zeros(num_images, bool)
    corrupt[np.linspace(0, num_images - 1, maximum).astype(int)] = True
    log = CorruptLog(max_fraction, num_images)
    add_batches(log, corrupt)
    assert len(log) == maximum
    if maximum < num_images:
        with pytest.raises(InputError, match=f"^data: {maximum + 1} of {num_images} images "):
            log.add([CorruptImage("another", "why")], 0)


def test_corrupt_images_of_an_interrupted_run_do_not_stop_the_resumed_one(tmp_path: Path) -> None:
    corrupt = random_mask(0.04, 10_000)
    first = CorruptLog(0.05, 10_000)
    first.write_to(tmp_path / "corrupt.csv")
    add_batches(first, corrupt[:6000])
    second = CorruptLog(0.05, 10_000)
    second.write_to(tmp_path / "corrupt.csv")
    # in reverse order, so that images that the first run did not reach come first
    for batch in np.split(np.arange(10_000)[::-1], 400):
        second.add([CorruptImage(f"{i}.jpg", "why") for i in batch if corrupt[i]], len(batch))
    assert len(second) == len(read_csv(tmp_path / "corrupt.csv")) - 1 == corrupt.sum()
    with pytest.raises(InputError, match=r"data: 501 of 10,000"):
        second.add([CorruptImage(f"new {i}", "why") for i in range(501 - len(second))], 0)
