"""A ground truth in which nothing counts is a broken sequence, named, in every task; never metrics of 0."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mec import evaluate
from mec.errors import InputError
from tests.evaluate.tracking.crossings import TASKS, crossing, narrow_encoder, write_scene

GOOD, BROKEN = "000001_good", "000002_broken"
MOT, MOTS, POSE = "{}/gt/gt.txt", "{}/gt/gt.txt", "annotations/val/{}.json"
SOT = "{}/groundtruth_rect.txt"
Change = Callable[[Path, str], object]


def lines(file: str, change: Callable[[list[str]], list[str]], separator: str = ",") -> Change:
    """Return a function that changes the fields of every line of a sequence's file."""

    def apply(root: Path, name: str) -> None:
        path = root / file.format(name)
        rows = [change(line.split(separator)) for line in path.read_text().splitlines()]
        path.write_text("".join(separator.join(row) + "\n" for row in rows))

    return apply


def persons(change: Callable[[dict[str, Any]], object], key: str = "annotations") -> Change:
    def apply(root: Path, name: str) -> None:
        path = root / POSE.format(name)
        content = json.loads(path.read_text())
        for entry in content[key]:
            change(entry)
        path.write_text(json.dumps(content))

    return apply


def field(index: int, value: str) -> Callable[[list[str]], list[str]]:
    return lambda row: [*row[:index], value, *row[index + 1 :]]


def later(row: list[str]) -> list[str]:
    return [str(int(row[0]) + 371), *row[1:]]


def scaled(row: list[str]) -> list[str]:
    """Divide the boxes of MOT by the size of the image, 320 x 240."""
    return [*row[:2], *(str(float(row[2 + i]) / (320, 240)[i % 2]) for i in range(4)), *row[6:]]


def invisible(entry: dict[str, Any]) -> None:
    entry["keypoints"] = [0.0 if i % 3 == 2 else number for i, number in enumerate(entry["keypoints"])]


def ignored(entry: dict[str, Any]) -> None:
    entry["ignore_regions_x"], entry["ignore_regions_y"] = [[-999, 999, 999, -999]], [[-999, -999, 999, 999]]


def divided(entry: dict[str, Any]) -> None:
    entry["keypoints"] = [k if i % 3 == 2 else k / 320 for i, k in enumerate(entry["keypoints"])]


def masks(change: Callable[[np.ndarray], np.ndarray], first: int) -> Change:
    """Return a function that changes the masks of frames ``first`` and later."""

    def apply(root: Path, name: str) -> None:
        for file in sorted((root / "Annotations/480p" / name).iterdir())[first:]:
            with Image.open(file) as image:
                changed = Image.fromarray(change(np.array(image)))
                changed.putpalette(image.getpalette() or [])
            changed.save(file)

    return apply


def unlabeled(entry: dict[str, Any]) -> None:
    entry["is_labeled"] = False


CASES: dict[str, list[tuple[Change, str]]] = {
    "mot": [
        (lines(MOT, field(6, "0.91")), "line 1: expected a flag of 1, or 0 for a box that is not"),
        (lines(MOT, field(6, "0")), r"none of the \d+ lines is evaluated: \d+ with flag 0$"),
        (lines(MOT, field(7, "3")), r"none of the \d+ lines is evaluated: \d+ of other classes than 1$"),
        (lines(MOT, later), r"none of the \d+ lines is evaluated: \d+ after frame 3, the last one$"),
        (lines(MOT, lambda row: later(row) if row[0] == "1" else field(6, "0")(row)), "after frame 3.* flag 0$"),
        (lines(MOT, scaled), "gt.txt: expected pixels, got no number above 1; multiply by 320 and 240"),
        (lines(MOT, field(2, "2000")), "boxes are outside of images of 320x240"),
    ],
    "mots": [
        (lines(MOTS, field(2, "1"), " "), r"expected masks of class 2 \(pedestrian\), got \d+ of class 1$"),
        (lines(MOTS, field(2, "10"), " "), r"expected masks of class 2 \(pedestrian\), got \d+ of class 10$"),
        (lines(MOTS, later, " "), "line 1: expected frames 1 to 3, got 372$"),
        (lambda root, name: (root / MOTS.format(name)).write_text("\n"), "got none$"),
    ],
    "pose": [
        (persons(invisible), "no visible joint outside of the ignored regions in 3 frames"),
        (persons(ignored, "images"), "no visible joint outside of the ignored regions in 3 frames"),
        (persons(unlabeled, "images"), "none of the 3 frames is labeled"),
        (persons(divided), "expected pixels, got no number above 1"),
    ],
    "vos": [
        (masks(np.zeros_like, 0), "00000.png: no object in the first mask"),
        (masks(np.zeros_like, 1), "no object of the first mask in the 1 masks that are evaluated"),
        (masks(lambda mask: np.where(mask, mask + 3, 0).astype(np.uint8), 1), "no object of the first mask in"),
        (masks(lambda mask: np.where(mask, 255, 0).astype(np.uint8), 0), "no object in the first mask"),
    ],
    "sot": [
        (lines(SOT, lambda _: ["nan"] * 4), "line 1: expected a finite box with an area, got nan"),
        (lines(SOT, lambda _: ["0"] * 4), "line 1: expected a finite box with an area, got 0, 0, 0, 0"),
        (lines(SOT, lambda row: ["0.1", "0.2", "0.1", "0.3"]), "expected pixels, got no number above 1"),
        (lines(SOT, field(0, "400")), "line 1: expected a box within the image of 320 x 240"),
        (lambda root, name: (root / name / "out_of_view.txt").write_text("0,1,1"), "not visible in any frame after"),
        (lambda root, name: (root / name / "full_occlusion.txt").write_text("1,1,1"), "not visible in the first frame"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_sequences_in_which_nothing_counts_are_left_out_and_named(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene, root = crossing(3), tmp_path / task
    write_scene(task, scene, tmp_path, GOOD)
    names = [f"{BROKEN}{i}" for i in range(len(CASES[task]))]
    for name, (change, _) in zip(names, CASES[task], strict=True):
        write_scene(task, scene, tmp_path, name)
        change(root, name)
    function, encoder = getattr(evaluate, task), narrow_encoder()
    result = function(root, encoder)
    log = capsys.readouterr().err.splitlines()
    for name, (_, message) in zip(names, CASES[task], strict=True):
        assert re.search(message, result.skipped[name]), result.skipped[name]
        assert f"warning: {name}: left out: {result.skipped[name]}" in log
    assert result.rows == function(root, encoder, sequences=[GOOD]).rows
    (line,) = (line for line in log if line.startswith("data: "))
    assert re.match(rf"data: 1 of {len(names) + 1} sequences, 3 frames, [123] objects?; .*{task}", line)
    with pytest.raises(InputError, match=r"^data: no sequence of .* can be used"):
        function(root, encoder, sequences=names[:1])


def corners(first: int) -> Callable[[list[str]], list[str]]:
    def change(row: list[str]) -> list[str]:
        left, top, width, height = map(float, row[first : first + 4])
        return [*row[: first + 2], str(left + width), str(top + height), *row[first + 4 :]]

    return change


READ_AS = "read as left, top, width, height"
DOUBTFUL: list[tuple[str, Change, str]] = [
    ("mot", lines(MOT, corners(2)), f"gt.txt appears to have left, top, right, bottom; it is {READ_AS}"),
    ("sot", lines(SOT, corners(0)), f"groundtruth_rect.txt appears to have left, top, right, bottom; it is {READ_AS}"),
    ("mot", lines(MOT, lambda row: row if row[0] == "1" else later(row)), "no object is evaluated in 2 of 3 frames"),
    ("mots", lines(MOTS, lambda row: row if row[0] == "1" else later(row), " "), "no object is evaluated in 2 of 3"),
    ("mot", lines(MOT, lambda row: [*row, "0"]), "has no classes, so all boxes are evaluated as people, as in MOT15"),
    ("mot", lambda root, name: (root / name / "seqinfo.ini").unlink(), "no frameRate in seqinfo.ini, 30 per"),
    ("sot", lambda root, name: (root / name / "out_of_view.txt").write_text("0,1,0"), "1 of 3 frames are ignored: 1"),
    ("sot", lambda root, name: (root / name / "cfg.json").write_text("{"), "cfg.json is ignored: "),
    ("sot", lambda root, name: (root / name / "attrs.txt").write_bytes(b"\xff"), "ignored: "),
    ("sot", lambda root, name: (root / name / "img/cover.jpg").touch(), "img ignored, such as cover.jpg"),
    ("vos", masks(lambda mask: np.where(mask == 1, 1, 0).astype(np.uint8), 1), "appear in the first mask only"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "change", "message"), DOUBTFUL)
def test_a_doubtful_ground_truth_is_logged_before_tracking(
    task: str, change: Change, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(task, crossing(3), tmp_path, GOOD)
    change(tmp_path / task, GOOD)
    getattr(evaluate, task)(tmp_path / task, narrow_encoder())
    log = capsys.readouterr().err
    assert message in log[: log.index("data: 1 sequence, 3 frames, ")]


def test_masks_of_first_frames_only_are_refused_before_tracking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene("vos", crossing(3), tmp_path, GOOD)
    for file in sorted((tmp_path / "vos/Annotations/480p" / GOOD).iterdir())[1:]:
        file.unlink()
    with pytest.raises(InputError, match=r"^data: .* has masks for first frames only, .*; pass --out to keep"):
        evaluate.vos(tmp_path / "vos", narrow_encoder())
    assert "per second" not in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^data: .* has masks for first frames only, .*; the predicted masks are in"):
        evaluate.vos(tmp_path / "vos", narrow_encoder(), out=tmp_path / "out")
    assert len(list((tmp_path / "out" / "tracks" / GOOD).iterdir())) == 3


def test_one_frame_per_sequence_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene("pose", crossing(1), tmp_path, GOOD)
    evaluate.pose(tmp_path / "pose", narrow_encoder())
    assert "warning: data: one frame per sequence, so no identity can be confused" in capsys.readouterr().err


def test_the_log_names_the_folders_and_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene("vos", crossing(3), tmp_path, GOOD)
    root = tmp_path / "vos"
    for other in ("JPEGImages/1080p", "Annotations/1080p", "Annotations_unsupervised/480p", "Annotations/480p/extra"):
        (root / other).mkdir(parents=True)
    evaluate.vos(root, narrow_encoder())
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("data: "))
    assert line == (
        f"data: 1 sequence, 3 frames, 3 objects; DAVIS's layout, masks in {root}/Annotations/480p, not "
        f"Annotations_unsupervised/480p, Annotations/1080p; the 1 sequence of {root}/ImageSets/2017/val.txt, of 2 in "
        "the folders"
    )
