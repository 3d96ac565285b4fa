import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from mec.evaluate.tracking.sequences import SequenceError
from tests.evaluate.tracking.box_folders import IMAGE, encoded, frames, only, otb, rows


def changed(name: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def lost(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def row(line: str) -> Callable[[Path], object]:
    return changed("groundtruth_rect.txt", f"1,1,5,5\n{line}\n3,1,5,5\n")


BOX = "line 2: expected a finite box with an area, got"
NUMBERS = "line 2: expected 4 numbers (left, top, width, height), got"
INSIDE = "line 2: expected a box within the image of 40 x 30 pixels, got"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lost("groundtruth_rect.txt"), "groundtruth_rect.txt: No such file or directory"),
        (changed("groundtruth_rect.txt", ""), "groundtruth_rect.txt is empty, expected a box for every frame"),
        (changed("groundtruth_rect.txt", " \n\n"), "groundtruth_rect.txt is empty"),
        (changed("groundtruth_rect.txt", b"\xff\xfe1\x002"), "groundtruth_rect.txt is no text"),
        (changed("groundtruth_rect.txt", rows(2)), "has 2 boxes for 3 frames, 1 to 3 in"),
        (changed("groundtruth_rect.txt", rows(4)), "has 4 boxes for 3 frames, 1 to 3 in"),
        (row("1,1,5"), f"{NUMBERS} '1,1,5'"),
        (row(""), f"{NUMBERS} ''"),
        (row("1,1,5,5,5,5,5,5"), f"{NUMBERS} '1,1,5,5,5,5,5,5'"),
        (row("1,,1,5,5"), f"{NUMBERS} '1,,1,5,5'"),
        (row("1,1,five,5"), f"{NUMBERS} '1,1,five,5'"),
        (row("1,1,5,\0"), NUMBERS),
        (row("nan,1,5,5"), f"{BOX} nan, 1, 5, 5"),
        (row("1,1,inf,5"), f"{BOX} 1, 1, inf, 5"),
        (row("1,1,0,5"), f"{BOX} 1, 1, 0, 5"),
        (row("1,1,5,-5"), f"{BOX} 1, 1, 5, -5"),
        (row("0,0,0,0"), f"{BOX} 0, 0, 0, 0"),
        (row("41,1,5,5"), f"{INSIDE} 41, 1, 5, 5"),
        (row("1,31,5,5"), f"{INSIDE} 1, 31, 5, 5"),
        (row("-4,1,5,5"), f"{INSIDE} -4, 1, 5, 5"),
        (row("1,-9,5,5"), f"{INSIDE} 1, -9, 5, 5"),
        (lost("img/0002.jpg"), "img lacks 1 of the frames 1 to 3, the first is number 2"),
        (lost("img/0001.jpg"), "has 3 boxes for 2 frames, 2 to 3 in"),
        (changed("img/0004.jpg", IMAGE), "has 3 boxes for 4 frames, 1 to 4 in"),
        (changed("img/20240101123456.jpg", IMAGE), "of the frames 1 to 20240101123456, the first is number 4"),
        (changed("img/2.png", IMAGE), "img has frame 2 twice, 0002.jpg and 2.png"),
        (changed("img/0001.jpg", b""), "img/0001.jpg: the file is empty"),
        (changed("img/0001.jpg", IMAGE[:20]), "img/0001.jpg: "),
        (lambda folder: shutil.rmtree(folder / "img"), "broken has no numbered images"),
        (changed("absence.label", "0\n0\n"), "absence.label: expected 3 times 0 or 1, a box of groundtruth_rect.txt"),
        (changed("absence.label", "0\n0\n2\n"), "absence.label: expected 3 times 0 or 1"),
        (changed("out_of_view.txt", "1,0,0"), "the target is not to be seen in the first frame, "),
    ],
)  # fmt: skip
def test_one_broken_sequence_does_not_lose_the_others(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    for name in ("broken", "whole"):
        otb(tmp_path / name)
    damage(tmp_path / "broken")
    loads = open_box_sequences(tmp_path)
    with pytest.raises(SequenceError) as error:
        loads["broken"]()
    assert said in str(error.value)
    assert str(tmp_path / "broken") in str(error.value)
    assert "\n" not in str(error.value)
    assert len(loads["whole"]().frames) == 3


def test_boxes_that_touch_the_image_and_frames_of_another_size(tmp_path: Path) -> None:
    folder = otb(tmp_path / "a", "-3,1,5,5\n40,30,5,5\n100,90,5,5\n")
    with pytest.raises(SequenceError, match="line 3: expected a box within the image of 40 x 30"):
        only(folder)
    frames(folder / "img", [3], image=encoded((200, 100)))
    assert only(folder).truth.tolist() == [[-4, 0, 5, 5], [39, 29, 5, 5], [99, 89, 5, 5]]


def test_only_the_published_empty_file_is_passed_over(tmp_path: Path) -> None:
    for name in ("Human4", "Skating2"):
        folder = otb(tmp_path / name)
        (folder / "groundtruth_rect.txt").rename(folder / "groundtruth_rect.2.txt")
        (folder / "groundtruth_rect.1.txt").touch()
    loads = open_box_sequences(tmp_path)
    assert list(loads) == ["Human4-2", "Skating2-1", "Skating2-2"]
    with pytest.raises(SequenceError, match=r"groundtruth_rect.1.txt is empty"):
        loads["Skating2-1"]()


def test_known_lines_are_forgiven_only_where_they_are(tmp_path: Path) -> None:
    folder = otb(tmp_path / "Board", rows(697) + "0 0 0 0\n", range(1, 699))
    assert np.flatnonzero(np.isnan(only(folder).truth[:, 0])).tolist() == [697]
    (folder / "groundtruth_rect.txt").write_text(rows(600) + "0 0 0 0\n" + rows(97))
    with pytest.raises(SequenceError, match="line 601: expected a finite box with an area"):
        only(folder)
    (folder / "groundtruth_rect.txt").write_text(rows(698))
    assert np.isfinite(only(folder).truth).all(), "where somebody has mended it"
