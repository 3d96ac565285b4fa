import re
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from PIL import Image

from mec.errors import InputError
from mec.evaluate.tracking.datasets.mots import open_mask_detections
from mec.evaluate.tracking.sequences import FrameObjects, SequenceError
from tests.evaluate.tracking.mots_scenes import (
    HEIGHT,
    WIDTH,
    block,
    challenge,
    images,
    instances,
    kitti,
    rle,
    text,
)

CORNER = block(50, 30, 5, 5)
LINES = [
    (1, 2001, 2, block(3, 4)),
    (1, 10000, 10, CORNER),
    (1, 2005, 2, block(20, 4)),
    (3, 2005, 2, block(22, 5)),
]
KITTIS = [(0, 1003, 1, block(3, 4)), (0, 2001, 2, block(20, 4)), (0, 10000, 10, CORNER), (2, 1003, 1, block(5, 4))]


def decoded(found: FrameObjects) -> list[np.ndarray]:
    return [coco_mask.decode(mask) for mask in found.masks or ()]


def test_motschallenge_with_the_truths_own_masks(tmp_path: Path) -> None:
    challenge(tmp_path, LINES)
    loads = open_mask_detections(tmp_path)
    assert list(loads) == ["MOTS20-02"]
    sequence = loads["MOTS20-02"]()
    assert (sequence.name, len(sequence.frames), sequence.frames.rate) == ("MOTS20-02", 3, 25)
    assert [frame[0, 0, 0] for frame in sequence.frames] == [1, 2, 3]
    assert [found.boxes.tolist() for found in sequence.given] == [
        [[3, 4, 8, 10], [20, 4, 8, 10]], [], [[22, 5, 8, 10]]
    ]  # fmt: skip
    assert all(found.ids is None and (found.scores == 1).all() for found in sequence.given)
    assert (np.array(decoded(sequence.given[0])) == [block(3, 4), block(20, 4)]).all()
    truth = sequence.truth
    assert [ids.tolist() for ids in truth.ids] == [[2001, 2005], [], [2005]]
    assert (coco_mask.decode(truth.ignored[0]) == CORNER).all()
    assert [coco_mask.area(region) for region in truth.ignored] == [25, 0, 0]


@pytest.mark.parametrize("data", [".", "train", "train/MOTS20-02"])
def test_a_folder_above_or_the_sequence_itself(tmp_path: Path, data: str) -> None:
    challenge(tmp_path, LINES)
    assert list(open_mask_detections(tmp_path / data)) == ["MOTS20-02"]


@pytest.mark.parametrize("place", ["gt", "../instances/MOTS20-02"])
def test_images_of_instances_are_read_as_the_text(tmp_path: Path, place: str) -> None:
    folder = challenge(tmp_path, LINES)
    of_text = open_mask_detections(tmp_path)["MOTS20-02"]()
    (folder / "gt" / "gt.txt").unlink()
    instances(folder / place, [(f, i % 1000, c, m) for f, i, c, m in LINES], 1, 3)
    of_images = open_mask_detections(tmp_path)["MOTS20-02"]()
    for a, b in zip(of_text.given, of_images.given, strict=True):
        assert (np.array(decoded(a)) == np.array(decoded(b))).all()
    assert [ids.tolist() for ids in of_images.truth.ids] == [[2001, 2005], [], [2005]]
    assert [coco_mask.area(region) for region in of_images.truth.ignored] == [25, 0, 0]


@pytest.mark.parametrize("as_images", [False, True])
def test_kittis_classes_are_sequences_of_their_own(tmp_path: Path, as_images: bool) -> None:
    file = kitti(tmp_path, KITTIS)
    if as_images:
        file.unlink()
        instances(tmp_path / "instances" / "0002", [(f, i % 1000, c, m) for f, i, c, m in KITTIS], 0, 3)
    loads = open_mask_detections(tmp_path)
    assert list(loads) == ["0002 car", "0002 pedestrian"]
    car, pedestrian = (load() for load in loads.values())
    assert [frame[0, 0, 0] for frame in car.frames] == [0, 1, 2]
    assert [found.boxes.tolist() for found in car.given] == [[[3, 4, 8, 10]], [], [[5, 4, 8, 10]]]
    assert [found.boxes.tolist() for found in pedestrian.given] == [[[20, 4, 8, 10]], [], []]
    assert [ids.tolist() for ids in car.truth.ids] == [[1003], [], [1003]]
    assert [coco_mask.area(one.truth.ignored[0]) for one in (car, pedestrian)] == [25, 25]


@pytest.mark.parametrize(("end", "scores"), [("", [1, 1]), (" 0.25", [0.25, 0.25])])
def test_detections_may_overlap_and_have_scores(
    tmp_path: Path, end: str, scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    kitti(tmp_path, KITTIS)
    lines = [(1, 7, 1, block(10, 9)), (1, 7, 1, block(12, 9)), (1, 9, 2, block(30, 3)), (2, 9, 1, block(0, 0, 0))]
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "0002.txt").write_text(text(lines, end))
    car = open_mask_detections(tmp_path, "~/found", ["* car"])["0002 car"]()
    assert [len(found) for found in car.given] == [0, 2, 0], "without what has no pixel"
    assert car.given[1].scores.tolist() == scores
    assert car.given[1].boxes.tolist() == [[10, 9, 8, 10], [12, 9, 8, 10]]
    assert [ids.tolist() for ids in car.truth.ids] == [[1003], [], [1003]]


def test_masks_of_frames_that_were_cut_off_are_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    challenge(tmp_path, LINES, count=2)
    sequence = open_mask_detections(tmp_path)["MOTS20-02"]()
    assert [len(found) for found in sequence.given] == [2, 0]
    assert "MOTS20-02: 1 of 4 masks are of frames after 2, the last; they are left out" in capfd.readouterr().err


GOOD = f"1 2001 2 {HEIGHT} {WIDTH} {rle(block(3, 4))['counts'].decode()}"
RUNS = GOOD.split()[5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2001 2 40 60", "expected frame id class height width run-lengths [score], got 5 columns"),
        (f"{GOOD} 1 2", "got 8 columns"),
        (GOOD.replace("2001", "x"), "expected whole numbers in columns 1 to 5, got 1 x 2 40 60"),
        (GOOD.replace("2001", "nan"), "expected whole numbers in columns 1 to 5"),
        (GOOD.replace("2001", "9" * 30), "expected an id of fewer digits"),
        (GOOD.replace(" 2 ", " 3 "), "expected class 1 (car), 2 (pedestrian) or 10 (ignored), got 3"),
        (f"{GOOD} nan", "expected a finite number as score, got 'nan'"),
        (f"{GOOD} inf", "expected a finite number as score"),
        (f"{GOOD} high", "expected a finite number as score, got 'high'"),
        (f"1 2001 2 40 61 {RUNS}", "expected run lengths of 40 x 61 pixels in all, got 2400"),
        (f"1 2001 2 60 40 {RUNS}", "a mask of 40x60, expected 60x40 as the first frame"),
        (f"1 2001 2 -40 -60 {RUNS}", "expected run lengths of -40 x -60"),
        (f"1 2001 2 40 60 {RUNS}0", "expected run lengths of 40 x 60 pixels in all"),
        ("1 2001 2 40 60 P", "expected COCO's compressed run lengths, got 'P'"),
        ("1 2001 2 40 60 oooooooooooo0", "expected COCO's compressed run lengths"),
        ("1 2001 2 40 60 !!", "expected COCO's compressed run lengths"),
        ("1 2001 2 40 60 éé", "expected COCO's compressed run lengths"),
        ("1 2001 2 40 60 @0", "got -16 and more"),
        ("1 2001 2 40 60 KU[2", "expected run lengths of 40 x 60 pixels in all, got -5 and more"),
        (f"0 2001 2 40 60 {RUNS}", "expected a frame, counted from 1, got 0"),
    ],
)
@pytest.mark.parametrize("truth", [True, False])
def test_damaged_lines_are_named(tmp_path: Path, line: str, message: str, truth: bool) -> None:
    folder = challenge(tmp_path, LINES)
    file = folder / "gt" / "gt.txt" if truth else tmp_path / "MOTS20-02.txt"
    file.write_text(f"{text(LINES)}\n{line}\n")
    load = open_mask_detections(tmp_path, None if truth else str(tmp_path))["MOTS20-02"]
    with pytest.raises(SequenceError) as error:
        load()
    assert str(error.value).startswith(f"{file}: line {len(LINES) + 2}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((1, 2009, 2, block(9, 12)), "line 5: objects 2001 and 2009 overlap in frame 1"),
        ((1, 2009, 2, block(48, 28)), "line 5: objects 10000 and 2009 overlap in frame 1"),
        ((1, 2005, 2, block(40, 4)), "line 5: object 2005 is twice in frame 1"),
        ((2, 2009, 2, block(9, 12, 0)), "line 5: the mask of object 2009 has no pixel"),
    ],
)
def test_what_the_truth_must_not_have(tmp_path: Path, more: tuple, message: str) -> None:
    folder = challenge(tmp_path, [*LINES, more])
    with pytest.raises(SequenceError, match=re.escape(f"{folder / 'gt' / 'gt.txt'}: {message}")):
        open_mask_detections(tmp_path)["MOTS20-02"]()


def test_one_broken_sequence_does_not_lose_the_others(tmp_path: Path) -> None:
    challenge(tmp_path, LINES)
    other = challenge(tmp_path, LINES, name="MOTS20-05")
    (other / "gt" / "gt.txt").unlink()
    loads = open_mask_detections(tmp_path)
    assert len(loads["MOTS20-02"]().given) == 3
    with pytest.raises(SequenceError, match=r"no .*gt\.txt"):
        loads["MOTS20-05"]()


@pytest.mark.parametrize("lacking", ["000001.png", "000000.png"])
def test_frames_that_are_missing(tmp_path: Path, lacking: str) -> None:
    kitti(tmp_path, KITTIS)
    (tmp_path / "training" / "image_02" / "0002" / lacking).unlink()
    with pytest.raises(SequenceError, match=r"expected frames 000000, 000001 \.\.\. without gaps, got 0"):
        open_mask_detections(tmp_path)["0002 car"]()


def test_damaged_images_of_instances(tmp_path: Path) -> None:
    folder = challenge(tmp_path, LINES)
    (folder / "gt" / "gt.txt").unlink()
    instances(folder / "gt", LINES, 1, 3)
    file, load = folder / "gt" / "000002.png", open_mask_detections(tmp_path)["MOTS20-02"]
    whole = file.read_bytes()
    for damage, message in [
        (lambda: file.write_bytes(whole[:40]), "000002.png"),
        (lambda: images(folder / "gt", 2, 1), "expected one whole number a pixel"),
        (lambda: Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint16)).save(file), "expected class 1 .* got 0"),
        (lambda: Image.fromarray(np.full((9, WIDTH), 2007, np.uint16)).save(file), "a mask of 60x9, expected 60x40"),
        (lambda: file.unlink(), "No such file"),
    ]:
        damage()
        with pytest.raises(SequenceError, match=message):
            load()


def test_what_makes_the_whole_call_impossible(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data: no folder"):
        open_mask_detections(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data: no sequence in .*expected MOTSChallenge's .* or KITTI MOTS'"):
        open_mask_detections(tmp_path)
    folder = challenge(tmp_path, LINES)
    with pytest.raises(
        InputError, match=r"sequences: 'MOTS-02' fits none of the 1 sequences; the nearest is 'MOTS20-02'"
    ):
        open_mask_detections(tmp_path, names=["MOTS-02"])
    with pytest.raises(InputError, match=r"detections: expected a file of each sequence in .* such as MOTS20-02.txt"):
        open_mask_detections(tmp_path, str(tmp_path / "train"))
    (folder / "gt" / "gt.txt").unlink()
    with pytest.raises(InputError, match=r"data: no masks of the truth in .*; expected .*MOTS20-02/gt/gt.txt"):
        open_mask_detections(tmp_path)
