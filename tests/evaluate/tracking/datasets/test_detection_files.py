"""Detections of users: other formats are read, refused with the line, or logged; never metrics without a word."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec.evaluate.tracking.datasets.motchallenge import open_box_detections
from mec.evaluate.tracking.datasets.mots import open_mask_detections
from mec.evaluate.tracking.datasets.posetrack import open_pose_detections
from mec.evaluate.tracking.sequences import UNUSABLE
from tests.evaluate.tracking.crossings import crossing, write_scene

NAME = "000001_a"
IMAGE_SIZE = np.array([320, 240, 320, 240])
FRAMES = 4
COUNT = 12  # boxes
NO_DETECTION = f"warning: {NAME}: no detection in any of the 4 frames, so there will be no tracks"
NO_OVERLAP = f"warning: {NAME}: none of "


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("detections")
    for task in ("mot", "mots", "pose"):
        write_scene(task, crossing(FRAMES), root, NAME)
    return root


def text(rows: np.ndarray, separator: str = ",") -> str:
    return "".join(separator.join(f"{value:g}" for value in row) + "\n" for row in rows)


def columns(**changes: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], str]:
    """Return a function that replaces columns of detections: frames, boxes or scores."""
    places = {"frames": 0, "boxes": slice(2, 6), "scores": 6}

    def change(rows: np.ndarray) -> str:
        changed = rows.copy()
        for name, function in changes.items():
            changed[:, places[name]] = function(rows)
        return text(changed)

    return change


def six_columns(rows: np.ndarray) -> str:
    return text(np.c_[rows[:, 0], np.arange(len(rows)), rows[:, 2:6]])


CORNERS = columns(boxes=lambda r: np.c_[r[:, 2:4], r[:, 2:4] + r[:, 4:6]])
BOXES: dict[str, tuple[Callable[[np.ndarray], str], int | str, str]] = {
    "tabs": (lambda rows: text(rows, "\t"), COUNT, ""),
    "byte order mark": (lambda rows: "\ufeff" + text(rows, " ; "), COUNT, ""),
    "header": (lambda rows: "frame,id,x,y,w,h,score\n" + text(rows), "line 1: expected numbers, got 'frame,id", ""),
    "frames from 0": (columns(frames=lambda r: r[:, 0] - 1), "line 1: expected a frame, counted from 1", ""),
    "other frames": (columns(frames=lambda r: r[:, 0] + 371), "expected frames 1 to 4, got 372 and later", ""),
    "fractions": (columns(boxes=lambda r: r[:, 2:6] / IMAGE_SIZE), "expected pixels, got no number above 1", ""),
    "larger images": (columns(boxes=lambda r: r[:, 2:6] * 4), "boxes are outside of images of 320x240", ""),
    "corners": (CORNERS, COUNT, f"warning: {NAME}: {NAME}.txt appears to have left, top, right, bottom"),
    "centers": (columns(boxes=lambda r: np.c_[r[:, 2:4] + r[:, 4:6] / 2, r[:, 4:6]]), COUNT, NO_OVERLAP),
    "six columns with ids": (six_columns, COUNT - 2, NO_OVERLAP),
    "six columns": (six_columns, COUNT - 2, f"{NAME}: the six columns of {NAME}.txt are read as frame, left, top, wid"),
    "equal scores": (columns(scores=lambda r: 0.2), COUNT, f"{NAME}: all scores of {NAME}.txt are 0.2; all boxes"),
    "low scores": (columns(scores=lambda r: r[:, 6] / 9), 0, "12 of 12 lines of 000001_a.txt are ignored: 12 with sco"),
    "no boxes": (lambda rows: "", 0, NO_DETECTION),
}  # fmt: skip


@pytest.mark.parametrize("name", BOXES)
def test_boxes(name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected, message = BOXES[name]
    rows = np.loadtxt(data / "mot" / NAME / "det" / "det.txt", delimiter=",")
    assert len(rows) == COUNT
    rows[:, 6] = np.linspace(0.6, 0.9, len(rows))
    (tmp_path / f"{NAME}.txt").write_text(change(rows), encoding="utf-8")
    load = open_box_detections(data / "mot", str(tmp_path))[NAME]
    if isinstance(expected, str):
        with pytest.raises(UNUSABLE, match=expected) as error:
            load()
        assert str(error.value).startswith(str(tmp_path / f"{NAME}.txt"))
        return
    assert sum(map(len, load().detections)) == expected
    log = capsys.readouterr().err
    assert message in log
    assert bool(log) == bool(message)


def mask_field(index: int, change: Callable[[str], str]) -> Callable[[list[list[str]]], str]:
    return lambda rows: "".join(" ".join([*r[:index], change(r[index]), *r[index + 1 :]]) + "\n" for r in rows)


MASKS: list[tuple[Callable[[list[list[str]]], str], str]] = [
    (mask_field(0, lambda frame: str(int(frame) - 1)), "line 1: expected a frame, counted from 1, got 0"),
    (mask_field(0, lambda frame: str(int(frame) + 371)), "line 1: expected frames 1 to 4, got 372"),
    (mask_field(2, lambda _: "0"), "line 1: expected class 1 (car), 2 (pedestrian) or 10 (ignored), got 0"),
    (mask_field(2, lambda _: "1"), f"masks of {NAME}.txt are ignored: "),
    (mask_field(2, lambda _: "1"), NO_DETECTION),
    (lambda rows: "\n".join(",".join(row) for row in rows), "line 1: expected frame id class height width run-length"),
    (lambda rows: "frame id class height width rle\n", "line 1: expected integers in columns 1 to 5"),
    (lambda rows: "\ufeff", NO_DETECTION),
]


@pytest.mark.parametrize(("change", "message"), MASKS)
def test_masks(
    change: Callable[[list[list[str]]], str], message: str, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [line.split() for line in (data / "mots" / NAME / "gt" / "gt.txt").read_text().splitlines()]
    (tmp_path / f"{NAME}.txt").write_text(change(rows), encoding="utf-8")
    try:
        open_mask_detections(data / "mots", str(tmp_path))[NAME]()
    except UNUSABLE as error:
        assert message in str(error)
    else:
        assert message in capsys.readouterr().err


def keypoints(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that changes the keypoints (17, 3) of every person."""

    def apply(content: dict[str, Any]) -> dict[str, Any]:
        for entry in content["annotations"]:
            entry["keypoints"] = change(np.reshape(entry["keypoints"], (-1, 3))).ravel().tolist()
        return content

    return apply


POSES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (keypoints(lambda points: points / [320, 240, 1]), "expected pixels, got no number above 1"),
    (keypoints(lambda points: points * [4, 4, 1]), "boxes are outside of images of 320x240"),
    (keypoints(lambda points: points * [1, 1, 0]), "are ignored: 12 without visible joints"),
    (keypoints(lambda points: points * [1, 1, 0]), NO_DETECTION),
    (keypoints(lambda points: points[:, [1, 0, 2]]), NO_OVERLAP),
    (lambda content: {**content, "annotations": []}, NO_DETECTION),
    (lambda content: content["annotations"], "not in PoseTrack's format"),
]


@pytest.mark.parametrize(("change", "message"), POSES)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_poses(
    change: Callable[[dict[str, Any]], Any], message: str, encoding: str, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    content = json.loads((data / "pose" / "annotations" / "val" / f"{NAME}.json").read_text())
    (tmp_path / f"{NAME}.json").write_text(json.dumps(change(copy.deepcopy(content))), encoding=encoding)
    try:
        open_pose_detections(data / "pose", str(tmp_path))[NAME]()
    except UNUSABLE as error:
        assert message in str(error)
    else:
        assert message in capsys.readouterr().err
