from pathlib import Path

import numpy as np
import pytest

from mec.evaluate.tracking.datasets.single_object import read_boxes, write_boxes
from mec.evaluate.tracking.sequences import SequenceError

BOXES = np.array([[0, 0, 10, 20], [-3.25, 1e-9, 1 / 3, 4], [639.99996, 2, 3, 1234567.5]], np.float64)


def test_written_text_follows_otb_conventions(tmp_path: Path) -> None:
    file = write_boxes(tmp_path / "new", "Jogging-1", BOXES)
    assert file == tmp_path / "new" / "Jogging-1.txt"
    assert file.read_text().splitlines() == [
        "1.0000,1.0000,10.0000,20.0000",
        "-2.2500,1.0000,0.3333,4.0000",
        "641.0000,3.0000,3.0000,1234567.5000",
    ]
    np.testing.assert_allclose(np.loadtxt(file, delimiter=",") - [1, 1, 0, 0], BOXES, atol=5e-5)


def test_round_trip_keeps_four_decimals(tmp_path: Path) -> None:
    boxes = np.random.default_rng(0).uniform(1, 2000, (2000, 4))
    write_boxes(tmp_path, "a", boxes)
    first = read_boxes(tmp_path, "a")
    np.testing.assert_array_equal(first, boxes.round(4))
    write_boxes(tmp_path, "a", first)
    np.testing.assert_array_equal(read_boxes(tmp_path, "a"), first)


def test_results_of_other_toolkits_are_read(tmp_path: Path) -> None:
    for text in ("11,21,5,6\n12,21,5,6\n", "11\t21\t5\t6\n12\t21\t5\t6", "11.0 21.0 5.0 6.0\r\n12.0 21.0 5.0 6.0\r\n"):
        (tmp_path / "a.b.txt").write_bytes(text.encode())
        assert read_boxes(tmp_path, "a.b").tolist() == [[10, 20, 5, 6], [11, 20, 5, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "a.txt: No such file or directory"),
        (b"", "a.txt is empty, expected a box for every frame"),
        (b"\xfe\xff", "a.txt is not text"),
        (b"1,1,5,5\n2,1,", "a.txt: line 2: expected numbers, got '2,1,'"),
        (b"1,1,5,5\n\n2,1,nan,5\n", "a.txt: line 3: expected a box with an area, got 2, 1, nan, 5"),
        (b"1,1,5,5\n2,1,5,0\n", "a.txt: line 2: expected a box with an area, got 2, 1, 5, 0"),
    ],
)
def test_damaged_files_are_rejected_with_the_line(tmp_path: Path, text: bytes | None, message: str) -> None:
    if text is not None:
        (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(SequenceError) as error:
        read_boxes(tmp_path, "a")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "boxes",
    [np.ones((0, 4)), np.ones(4), np.ones((2, 3)), np.array([[1, 1, np.nan, 5.0]]), np.array([[1, 1, 1e-9, 5.0]])],
)
def test_invalid_boxes_are_not_written(tmp_path: Path, boxes: np.ndarray) -> None:
    write_boxes(tmp_path, "a", BOXES)
    before = (tmp_path / "a.txt").read_bytes()
    with pytest.raises(ValueError, match="boxes: expected finite boxes with an area"):
        write_boxes(tmp_path, "a", boxes)
    assert (tmp_path / "a.txt").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
