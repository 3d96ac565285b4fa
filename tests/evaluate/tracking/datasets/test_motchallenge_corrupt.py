"""Corrupt MOTChallenge sequences raise one line when they are loaded, and the others remain usable."""

from pathlib import Path

import pytest

from mec.errors import InputError
from mec.evaluate.tracking.datasets.motchallenge import open_box_detections, read_frames
from mec.evaluate.tracking.sequences import UNUSABLE
from tests.evaluate.tracking.datasets.test_motchallenge import INI, load, write

GT3 = "1,1,2,3,10,20,1,1,1\n1,2,30,3,10,20,1,1,0.5\n3,2,30,4,10,20,1,1,1\n"


def load_error(folder: Path) -> str:
    with pytest.raises(UNUSABLE) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_damaged_sequence_does_not_affect_the_others(tmp_path: Path) -> None:
    write(tmp_path / "intact")
    write(tmp_path / "a", gt="1,1,2,3\n")
    loads = open_box_detections(tmp_path)
    assert len(loads["intact"]().detections) == 3
    with pytest.raises(UNUSABLE, match=r"a/gt/gt.txt: line 1: expected 6 numbers"):
        loads["a"]()


@pytest.mark.parametrize(
    ("gt", "expected"),
    [
        ("", "gt.txt is empty"),
        ("1,1,2,3,10,20,1,1,1\n\n2,1,x,3,10,20,1,1,1\n", "gt.txt: line 3: expected numbers, got '2,1,x"),
        ("1,1,2,3,10,20,1,1,1\n2,1,2,3,10\n", "line 2: expected 9 numbers"),
        ("1,1,2,3,10,20,1,1,1\n2,1,nan,3,10,20,1,1,1\n", "line 2: expected finite numbers, got 2, 1, nan"),
        ("1.5,1,2,3,10,20,1,1,1\n", "line 1: expected a frame, counted from 1"),
        ("1,1.5,2,3,10,20,1,1,1\n", "line 1: expected an integer in column 2"),
        ("1,1,2,3,10,20,1,1,1\n2,1,2,3,0,20,1,1,1\n", "line 2: expected a box with a width and a height, got 2, 1, 2"),
        ("1,7,2,3,10,20,1,1,1\n2,7,2,3,10,20,1,1,1\n1,7,40,3,10,20,1,8,1\n", "line 3: expected the id in column"),
        ("1,1,2,3,10,20,1,1,1\n2,1,2,3,10,20,1,14,1\n", "line 2: expected a class of 1 to 13 in column 8"),
        ("1,1,2,3,10,20,1,1,1\n2,1,2,3,10,20,1,-1,1\n", "line 2: expected a class of 1 to 13 in column 8"),
        ("1,1,640,3,10,20,1,1,1\n1,2,2,480,10,20,1,1,1\n2,1,2,3,10,20,1,1,1\n", "2 of 3 boxes are outside of images"),
        ("1,1,2,3,10,20,1,1,\xff\n", "gt.txt is not text"),
    ],
)  # fmt: skip
def test_damaged_ground_truth_is_rejected(tmp_path: Path, gt: str, expected: str) -> None:
    assert expected in load_error(write(tmp_path / "a", gt=gt))


@pytest.mark.parametrize(
    ("frames", "ini", "expected"),
    [
        (("000001.png", "000003.png"), INI, "img1 lacks 1 of the frames 1 to 3, the first is number 2"),
        (("000000.png", "000001.png"), None, "expected frames 1, 2, ..., got 000000.png"),
        (("000001.png", "1.png"), None, "img1 has frame 1 twice"),
        (("frame.png",), None, "no numbered images"),
        (("000001.jpg",), INI, "no numbered images (.png)"),
        ((), INI.replace("64", "65"), "000001.png: expected 65x48 from seqinfo.ini, got 64x48"),
        (
            (),
            INI.replace("seqLength=3", "seqLength=many"),
            "seqinfo.ini: expected [Sequence] and lines of key=value (invalid",
        ),
        ((), INI.replace("14", "nan"), "expected a frame rate and a length above 0"),
        ((), INI.replace("Sequence", "Other"), "expected [Sequence] and lines of key=value"),
    ],
)
def test_invalid_frames_are_rejected(tmp_path: Path, frames: tuple[str, ...], ini: str | None, expected: str) -> None:
    assert expected in load_error(write(tmp_path / "a", *frames, ini=ini))


@pytest.mark.parametrize(
    ("det", "expected"),
    [
        ("1,-1,2,3,10,20,0.9\n2,-1,2,3,ten,20,0.9\n", "det.txt: line 2: expected numbers"),
        ("1,-1,80,3,10,20,0.9\n2,-1,2,60,10,20,0.8\n", "det.txt: 2 of 2 boxes are outside of images of 64x48"),
    ],
)
def test_damaged_detections_are_rejected(tmp_path: Path, det: str, expected: str) -> None:
    assert expected in load_error(write(tmp_path / "a", det=det))


def test_missing_files_are_rejected(tmp_path: Path) -> None:
    write(tmp_path / "intact")
    for name, texts in (("gt", {"gt": None}), ("det", {"det": None})):
        load_one = open_box_detections(write(tmp_path / name, **texts).parent)[name]
        with pytest.raises(UNUSABLE, match=rf"{name}/{name}.txt cannot be read .No such file"):
            load_one()
    folder = write(tmp_path / "img")
    (folder / "img1/000001.png").write_bytes(b"damage")
    assert "000001.png: not an image" in load_error(folder)


def test_lines_after_the_last_frame_are_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "a", "000001.png", "000002.png", gt=GT3)
    sequence = load(folder)
    assert [len(objects) for objects in sequence.detections] == [2, 0]
    assert [len(ids) for ids in sequence.ground_truth.ids] == [2, 0]
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "warning: a: 2 frames exist, 3 are in seqinfo.ini; the smaller number is used"
    assert second == "warning: a: 1 of 3 lines of gt.txt are ignored: 1 after frame 2, the last one"
    (folder / "seqinfo.ini").write_text(INI.replace("seqLength=3", "seqLength=1"))
    frames, size = read_frames(folder)
    assert ([file.name for file in frames.files], size, frames.frame_rate) == (["000001.png"], (48, 64), 14)


def test_seqinfo_names_the_image_folder_and_extension(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "._000001.png", "1.png", "2.png", "10.jpg", ini=None)
    (folder / "img1/Thumbs.db").touch()
    (folder / "img1").rename(folder / "color")
    (folder / "seqinfo.ini").write_text("\ufeff[Sequence]\r\nimDir = color\r\nimExt=PNG\r\n")
    frames, _ = read_frames(folder)
    assert [file.name for file in frames.files] == ["1.png", "2.png"]


def test_boxes_outside_of_the_image_are_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edges = [(-9, 3), (-10, 3), (63, 3), (64, 3), (5, -19), (5, -20), (5, 47), (5, 48)]
    det = "".join(f"1,-1,{x},{y},10,20,0.9\n" for x, y in edges) + "2,-1,5,5,0,20,0.8\n2,-1,5,5,10,-20,0.8\n"
    gt = GT3 + "2,1,64,3,10,20,1,1,1\n2,5,5,5,0,0,0,1,1\n"
    folder = write(tmp_path / "a", gt=gt, det=det)
    inside = load(folder).detections
    assert inside[0].boxes[:, :2].tolist() == [[-9, 3], [63, 3], [5, -19], [5, 47]]
    assert len(inside[1]) == 0
    expected = "warning: a: 6 of 10 boxes are ignored: 6 without area or outside of the image\n"
    assert expected in capsys.readouterr().err
    sequence = load(folder, "gt")
    assert [len(objects) for objects in sequence.detections] == [2, 0, 1]
    assert [len(ids) for ids in sequence.ground_truth.ids] == [2, 2, 1], "the ground truth keeps outside objects"


def test_sequences_without_detections_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "a", det="")
    assert [len(objects) for objects in load(folder).detections] == [0, 0, 0]
    assert "warning: a: no detection in any of the 3 frames, so there will be no tracks\n" in capsys.readouterr().err


def test_data_without_sequences_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data: no folder "):
        open_box_detections(tmp_path / "none")
    with pytest.raises(InputError, match=r"data: no sequence in "):
        open_box_detections(tmp_path)
    write(tmp_path / "test" / "a", gt=None)
    with pytest.raises(InputError, match=r"data: no gt/gt.txt in .*test"):
        open_box_detections(tmp_path / "test")
