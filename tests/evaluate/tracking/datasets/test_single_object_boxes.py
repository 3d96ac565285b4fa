"""Corrupt sequences, and files of tracked boxes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mec.evaluate.tracking.datasets.single_object import open_box_sequences, read_boxes, write_boxes
from mec.evaluate.tracking.sequences import UNUSABLE
from tests.evaluate.tracking.box_folders import (
    IMAGE,
    box_lines,
    encode_image,
    load_only,
    write_frames,
    write_otb_sequence,
)


def written(name: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def deleted(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def row(line: str) -> Callable[[Path], object]:
    return written("groundtruth_rect.txt", f"1,1,5,5\n{line}\n3,1,5,5\n")


INVALID_BOX = "line 2: expected a finite box with an area, got"
NOT_FOUR_NUMBERS = "line 2: expected 4 numbers, got"
NOT_NUMBERS = "line 2: expected numbers, got"
OUTSIDE_IMAGE = "line 2: expected a box within the image of 40 x 30 pixels, got"


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (deleted("groundtruth_rect.txt"), "groundtruth_rect.txt cannot be read (No such file or directory)"),
        (written("groundtruth_rect.txt", ""), "groundtruth_rect.txt is empty, expected a box for every frame"),
        (written("groundtruth_rect.txt", b"\xff\xfe1\x002"), "groundtruth_rect.txt is not text"),
        (written("groundtruth_rect.txt", box_lines(2)), "has 2 boxes for 3 frames, 1 to 3 in"),
        (row("1,1,5,5,5,5,5,5"), f"{NOT_FOUR_NUMBERS} '1,1,5,5,5,5,5,5'"),
        (row("1,,1,5,5"), f"{NOT_NUMBERS} '1,,1,5,5'"),
        (row("nan,1,5,5"), f"{INVALID_BOX} nan, 1, 5, 5"),
        (row("41,1,5,5"), f"{OUTSIDE_IMAGE} 41, 1, 5, 5"),
        (deleted("img/0002.jpg"), "img lacks 1 of the frames 1 to 3, the first is number 2"),
        (written("img/0004.jpg", IMAGE), "has 3 boxes for 4 frames, 1 to 4 in"),
        (written("img/20240101123456.jpg", IMAGE), "of the frames 1 to 20240101123456, the first is number 4"),
        (written("img/2.png", IMAGE), "img has frame 2 twice, 0002.jpg and 2.png"),
        (written("img/0001.jpg", b""), "img/0001.jpg: the file is empty"),
        (lambda folder: shutil.rmtree(folder / "img"), "corrupt has no numbered images"),
        (written("absence.label", "0\n0\n2\n"), "absence.label: expected 3 times 0 or 1"),
        (written("out_of_view.txt", "1,0,0"), "the target is not visible in the first frame, "),
    ],
)  # fmt: skip
def test_a_corrupt_sequence_does_not_affect_the_others(
    tmp_path: Path, corrupt: Callable[[Path], object], message: str
) -> None:
    for name in ("corrupt", "intact"):
        write_otb_sequence(tmp_path / name)
    corrupt(tmp_path / "corrupt")
    loads = open_box_sequences(tmp_path)
    with pytest.raises(UNUSABLE) as error:
        loads["corrupt"]()
    assert message in str(error.value)
    assert str(tmp_path / "corrupt") in str(error.value)
    assert "\n" not in str(error.value)
    assert len(loads["intact"]().frames) == 3


def test_boxes_must_touch_their_own_frame(tmp_path: Path) -> None:
    folder = write_otb_sequence(tmp_path / "a", "-3,1,5,5\n40,30,5,5\n100,90,5,5\n")
    with pytest.raises(UNUSABLE, match="line 3: expected a box within the image of 40 x 30"):
        load_only(folder)
    write_frames(folder / "img", [3], image=encode_image((200, 100)))
    assert load_only(folder).ground_truth.tolist() == [[-4, 0, 5, 5], [39, 29, 5, 5], [99, 89, 5, 5]]


def test_only_the_published_empty_file_is_skipped(tmp_path: Path) -> None:
    for name in ("Human4", "Skating2"):
        folder = write_otb_sequence(tmp_path / name)
        (folder / "groundtruth_rect.txt").rename(folder / "groundtruth_rect.2.txt")
        (folder / "groundtruth_rect.1.txt").touch()
    loads = open_box_sequences(tmp_path)
    assert list(loads) == ["Human4-2", "Skating2-1", "Skating2-2"]
    with pytest.raises(UNUSABLE, match=r"groundtruth_rect.1.txt is empty"):
        loads["Skating2-1"]()


def test_only_published_invalid_lines_are_accepted(tmp_path: Path) -> None:
    folder = write_otb_sequence(tmp_path / "Board", box_lines(697) + "0 0 0 0\n", range(1, 699))
    assert np.flatnonzero(np.isnan(load_only(folder).ground_truth[:, 0])).tolist() == [697]
    (folder / "groundtruth_rect.txt").write_text(box_lines(600) + "0 0 0 0\n" + box_lines(97))
    with pytest.raises(UNUSABLE, match="line 601: expected a finite box with an area"):
        load_only(folder)
    (folder / "groundtruth_rect.txt").write_text(box_lines(698))
    assert np.isfinite(load_only(folder).ground_truth).all(), "a corrected file is accepted"


BOXES = np.array([[0, 0, 10, 20], [-3.25, 1e-9, 1 / 3, 4], [639.99996, 2, 3, 1234567.5]], np.float64)


def test_written_text_follows_otb_conventions(tmp_path: Path) -> None:
    write_boxes(tmp_path / "new", "Jogging-1", BOXES)
    file = tmp_path / "new" / "Jogging-1.txt"
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
        (None, "a.txt cannot be read (No such file or directory)"),
        (b"", "a.txt is empty, expected a box for every frame"),
        (b"\xfe\xff\0", "a.txt is not text"),
        (b"1,1,5,5\n2,1,", "a.txt: line 2: expected numbers, got '2,1,'"),
        (b"1,1,5,5\n\n2,1,nan,5\n", "a.txt: line 3: expected a box with an area, got 2, 1, nan, 5"),
    ],
)
def test_damaged_files_are_rejected_with_the_line(tmp_path: Path, text: bytes | None, message: str) -> None:
    if text is not None:
        (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(UNUSABLE) as error:
        read_boxes(tmp_path, "a")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "boxes",
    [np.array([[1, 1, np.nan, 5.0]]), np.array([[1, 1, 1e-9, 5.0]])],
)
def test_invalid_boxes_are_not_written(tmp_path: Path, boxes: np.ndarray) -> None:
    write_boxes(tmp_path, "a", BOXES)
    before = (tmp_path / "a.txt").read_bytes()
    with pytest.raises(ValueError, match="boxes: expected finite boxes with an area"):
        write_boxes(tmp_path, "a", boxes)
    assert (tmp_path / "a.txt").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
