import re
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from PIL import Image

from mec.errors import InputError
from mec.evaluate.tracking.datasets.mask_rows import read_mask_rows
from mec.evaluate.tracking.datasets.mots import open_mask_detections
from mec.evaluate.tracking.sequences import UNUSABLE, FrameObjects
from tests.evaluate.tracking.mots_scenes import (
    HEIGHT,
    WIDTH,
    block,
    mask_lines,
    rle,
    write_images,
    write_instances,
    write_kitti,
    write_motschallenge,
)

CORNER = block(50, 30, 5, 5)
LINES = [
    (1, 2001, 2, block(3, 4)),
    (1, 10000, 10, CORNER),
    (1, 2005, 2, block(20, 4)),
    (3, 2005, 2, block(22, 5)),
]
KITTI_LINES = [(0, 1003, 1, block(3, 4)), (0, 2001, 2, block(20, 4)), (0, 10000, 10, CORNER), (2, 1003, 1, block(5, 4))]


def decode_masks(objects: FrameObjects) -> list[np.ndarray]:
    return [coco_mask.decode(mask) for mask in objects.masks or ()]


def test_motschallenge_ground_truth_masks(tmp_path: Path) -> None:
    write_motschallenge(tmp_path, LINES)
    loads = open_mask_detections(tmp_path)
    assert list(loads) == ["MOTS20-02"]
    sequence = loads["MOTS20-02"]()
    assert (sequence.name, len(sequence.frames), sequence.frames.frame_rate) == ("MOTS20-02", 3, 25)
    assert [frame[0, 0, 0] for frame in sequence.frames] == [1, 2, 3]
    assert [objects.boxes.tolist() for objects in sequence.detections] == [
        [[3, 4, 8, 10], [20, 4, 8, 10]], [], [[22, 5, 8, 10]]
    ]  # fmt: skip
    assert all(objects.ids is None and (objects.scores == 1).all() for objects in sequence.detections)
    assert (np.array(decode_masks(sequence.detections[0])) == [block(3, 4), block(20, 4)]).all()
    ground_truth = sequence.ground_truth
    assert [ids.tolist() for ids in ground_truth.ids] == [[2001, 2005], [], [2005]]
    assert (coco_mask.decode(ground_truth.ignored[0]) == CORNER).all()
    assert [coco_mask.area(region) for region in ground_truth.ignored] == [25, 0, 0]


def test_data_may_be_a_parent_folder_or_one_sequence(tmp_path: Path) -> None:
    write_motschallenge(tmp_path, LINES)
    for data in (".", "train", "train/MOTS20-02"):
        assert list(open_mask_detections(tmp_path / data)) == ["MOTS20-02"]


@pytest.mark.parametrize("location", ["gt", "../instances/MOTS20-02"])
def test_instance_images_equal_the_text(tmp_path: Path, location: str) -> None:
    folder = write_motschallenge(tmp_path, LINES)
    of_text = open_mask_detections(tmp_path)["MOTS20-02"]()
    (folder / "gt" / "gt.txt").unlink()
    write_instances(folder / location, [(f, i % 1000, c, m) for f, i, c, m in LINES], 1, 3)
    of_images = open_mask_detections(tmp_path)["MOTS20-02"]()
    for a, b in zip(of_text.detections, of_images.detections, strict=True):
        assert (np.array(decode_masks(a)) == np.array(decode_masks(b))).all()
    assert [ids.tolist() for ids in of_images.ground_truth.ids] == [[2001, 2005], [], [2005]]
    assert [coco_mask.area(region) for region in of_images.ground_truth.ignored] == [25, 0, 0]


@pytest.mark.parametrize("as_images", [False, True])
def test_kitti_classes_are_separate_sequences(tmp_path: Path, as_images: bool) -> None:
    file = write_kitti(tmp_path, KITTI_LINES)
    if as_images:
        file.unlink()
        write_instances(tmp_path / "instances" / "0002", [(f, i % 1000, c, m) for f, i, c, m in KITTI_LINES], 0, 3)
    loads = open_mask_detections(tmp_path)
    assert list(loads) == ["0002 car", "0002 pedestrian"]
    car, pedestrian = (load() for load in loads.values())
    assert [frame[0, 0, 0] for frame in car.frames] == [0, 1, 2]
    assert [objects.boxes.tolist() for objects in car.detections] == [[[3, 4, 8, 10]], [], [[5, 4, 8, 10]]]
    assert [objects.boxes.tolist() for objects in pedestrian.detections] == [[[20, 4, 8, 10]], [], []]
    assert [ids.tolist() for ids in car.ground_truth.ids] == [[1003], [], [1003]]
    assert [coco_mask.area(sequence.ground_truth.ignored[0]) for sequence in (car, pedestrian)] == [25, 25]


@pytest.mark.parametrize(("end", "scores"), [("", [1, 1]), (" 0.25", [0.25, 0.25])])
def test_detections_may_overlap_and_have_scores(
    tmp_path: Path, end: str, scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_kitti(tmp_path, KITTI_LINES)
    lines = [(1, 7, 1, block(10, 9)), (1, 7, 1, block(12, 9)), (1, 9, 2, block(30, 3)), (2, 9, 1, block(0, 0, 0))]
    (tmp_path / "detections").mkdir()
    (tmp_path / "detections" / "0002.txt").write_text(mask_lines(lines, end))
    car = open_mask_detections(tmp_path, "~/detections", ["* car"])["0002 car"]()
    assert [len(objects) for objects in car.detections] == [0, 2, 0], "empty masks are dropped"
    assert car.detections[1].scores.tolist() == scores
    assert car.detections[1].boxes.tolist() == [[10, 9, 8, 10], [12, 9, 8, 10]]
    assert [ids.tolist() for ids in car.ground_truth.ids] == [[1003], [], [1003]]


def test_masks_after_the_last_frame_are_ignored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_motschallenge(tmp_path, LINES, count=2)
    sequence = open_mask_detections(tmp_path)["MOTS20-02"]()
    assert [len(objects) for objects in sequence.detections] == [2, 0]
    assert "MOTS20-02: 1 of 4 masks are ignored: 1 after frame 2, the last one" in capfd.readouterr().err


GOOD = f"1 2001 2 {HEIGHT} {WIDTH} {rle(block(3, 4))['counts'].decode()}"
RUNS = GOOD.split()[5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2001 2 40 60", "expected frame id class height width run-lengths [score], got 5 columns"),
        (GOOD.replace("2001", "x"), "expected integers in columns 1 to 5, and a score, got 1 x 2 40 60"),
        (GOOD.replace("2001", "9" * 30), "expected an id of at most 15 digits"),
        (GOOD.replace(" 2 ", " 3 "), "expected class 1 (car), 2 (pedestrian) or 10 (ignored), got 3"),
        (f"{GOOD} nan", "and a finite score, got 2001 and nan"),
        (f"{GOOD} high", "and a score, got 1 2001 2 40 60"),
        (f"1 2001 2 40 61 {RUNS}", "expected run lengths of 40 x 61 pixels in total, got 2400"),
        (f"1 2001 2 -40 -60 {RUNS}", "expected run lengths of -40 x -60"),
        ("1 2001 2 40 60 P", "expected COCO's compressed RLE counts, got 'P'"),
        ("1 2001 2 40 60 !!", "expected COCO's compressed RLE counts"),
        ("1 2001 2 40 60 @0", "got a run of -16"),
    ],
)
def test_damaged_lines_are_rejected_with_their_number(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(UNUSABLE) as error:
        read_mask_rows(file)
    assert str(error.value).startswith(f"{file}: line 3: ")
    assert message in str(error.value)


@pytest.mark.parametrize("in_ground_truth", [True, False])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"1 2001 2 60 40 {RUNS}", "expected a mask of 60x40 as the first frame, got 40x60"),
        (f"0 2001 2 40 60 {RUNS}", "expected a frame, counted from 1, got 0"),
    ],
)
def test_lines_that_do_not_fit_the_video_are_rejected(
    tmp_path: Path, line: str, message: str, in_ground_truth: bool
) -> None:
    folder = write_motschallenge(tmp_path, LINES)
    file = folder / "gt" / "gt.txt" if in_ground_truth else tmp_path / "MOTS20-02.txt"
    file.write_text(f"{mask_lines(LINES)}\n{line}\n")
    with pytest.raises(UNUSABLE, match=re.escape(f"{file}: line {len(LINES) + 2}: {message}")):
        open_mask_detections(tmp_path, None if in_ground_truth else str(tmp_path))["MOTS20-02"]()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((1, 2009, 2, block(9, 12)), "line 5: objects 2001 and 2009 overlap in frame 1"),
        ((1, 2009, 2, block(48, 28)), "line 5: objects 10000 and 2009 overlap in frame 1"),
        ((1, 2005, 2, block(40, 4)), "line 5: object 2005 occurs twice in frame 1"),
        ((2, 2009, 2, block(9, 12, 0)), "line 5: the mask of object 2009 is empty"),
    ],
)
def test_invalid_ground_truth_is_rejected(tmp_path: Path, more: tuple, message: str) -> None:
    folder = write_motschallenge(tmp_path, [*LINES, more])
    with pytest.raises(UNUSABLE, match=re.escape(f"{folder / 'gt' / 'gt.txt'}: {message}")):
        open_mask_detections(tmp_path)["MOTS20-02"]()


def test_a_corrupt_sequence_does_not_affect_the_others(tmp_path: Path) -> None:
    write_motschallenge(tmp_path, LINES)
    other = write_motschallenge(tmp_path, LINES, name="MOTS20-05")
    (other / "gt" / "gt.txt").unlink()
    loads = open_mask_detections(tmp_path)
    assert len(loads["MOTS20-02"]().detections) == 3
    with pytest.raises(UNUSABLE, match=r"gt\.txt cannot be read .No such file"):
        loads["MOTS20-05"]()


def test_missing_frames_are_rejected(tmp_path: Path) -> None:
    write_kitti(tmp_path, KITTI_LINES)
    images = tmp_path / "training" / "image_02" / "0002"
    for missing in (1, 0):
        (images / f"{missing:06d}.png").unlink()
        with pytest.raises(UNUSABLE, match=rf"lacks .* the frames 0 to 2, the first is number {missing}"):
            open_mask_detections(tmp_path)["0002 car"]()


def test_damaged_instance_images_are_rejected(tmp_path: Path) -> None:
    folder = write_motschallenge(tmp_path, LINES)
    (folder / "gt" / "gt.txt").unlink()
    write_instances(folder / "gt", LINES, 1, 3)
    file, load = folder / "gt" / "000002.png", open_mask_detections(tmp_path)["MOTS20-02"]
    intact = file.read_bytes()
    for damage, message in [
        (lambda: file.write_bytes(intact[:40]), "000002.png"),
        (lambda: write_images(folder / "gt", 2, 1), "expected one integer per pixel"),
        (lambda: Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint16)).save(file), "expected class 1 .* got 0"),
        (
            lambda: Image.fromarray(np.full((9, WIDTH), 2007, np.uint16)).save(file),
            "expected a mask of 60x40 as the first frame, got 60x9",
        ),
        (lambda: file.unlink(), "No such file"),
    ]:
        damage()
        with pytest.raises(UNUSABLE, match=message):
            load()


def test_invalid_data_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data: no folder"):
        open_mask_detections(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data: no sequence in .* or KITTI MOTS'"):
        open_mask_detections(tmp_path)
    folder = write_motschallenge(tmp_path, LINES)
    with pytest.raises(InputError, match=r"^sequences: .*'MOTS20-02'"):
        open_mask_detections(tmp_path, names=["MOTS-02"])
    with pytest.raises(InputError, match=r"detections: expected a file for each .*MOTS20-02.txt"):
        open_mask_detections(tmp_path, str(tmp_path / "train"))
    (folder / "gt" / "gt.txt").unlink()
    with pytest.raises(InputError, match=r"data: no ground truth masks in .*; expected .*MOTS20-02/gt/gt.txt"):
        open_mask_detections(tmp_path)
