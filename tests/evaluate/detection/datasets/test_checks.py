import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mec.cli.main import main
from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.checks import check_images
from tests.evaluate.detection.datasets.test_annotations import write_coco, write_roboflow
from tests.evaluate.detection.datasets.test_voc import object_xml, write_image, write_lists
from tests.evaluate.detection.scenes import coco_dataset, voc_dataset

Content = dict[str, Any]


def change_json(data: Path, split: str, change: Callable[[Content], Any]) -> None:
    path = data / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def enlarge(content: Content) -> None:
    """Annotate images at four times their size."""
    for image in content["images"]:
        image["width"], image["height"] = 4 * image["width"], 4 * image["height"]
    for annotation in content["annotations"]:
        annotation["bbox"] = [4 * value for value in annotation["bbox"]]


def add_orientation(file: Path) -> None:
    """Mark an image as rotated by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(file) as image:
        image.save(file, exif=exif)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("enlarged", r"6 of 6 images .* pixels, but 384 x 320 in .*\(all annotated at 4 times their size\)"),
        ("rotated", r"6 of 6 images .* 96 x 80 pixels, but 80 x 96 in .*EXIF rotation\?"),
        ("one of six", r"1 of 6 images .*0\.png: 20 x 20 pixels, but 80 x 96 in the annotations$"),
        ("damaged", r"1 of 6 images .*0\.png: "),
    ],
)
def test_images_of_another_size_are_refused_in_every_split(tmp_path: Path, split: str, fault: str, found: str) -> None:
    data = coco_dataset(tmp_path, train=6, test=6, masks=False)
    if fault == "enlarged":
        found = found.replace("384 x 320", "320 x 384")
        change_json(data, split, enlarge)
    files = sorted((data / f"{split}2017").iterdir())
    if fault == "rotated":
        for file in files:
            add_orientation(file)
    elif fault == "one of six":
        Image.new("RGB", (20, 20)).save(files[0])
    elif fault == "damaged":
        files[0].write_bytes(b"none")
    checks = check_images(*open_annotated(data))
    bad = "train" if split == "train" else "test"
    with pytest.raises(InputError, match=rf"^data: annotations/instances_{split}2017.json \({bad}\): {found}"):
        checks[bad].refuse_or_log()
    checks["test" if split == "train" else "train"].refuse_or_log()


def test_voc_is_checked_by_its_xml(tmp_path: Path) -> None:
    data = voc_dataset(tmp_path)
    for file in sorted((data / "VOC2007" / "JPEGImages").iterdir())[4:]:
        add_orientation(file)
    checks = check_images(*open_annotated(data))
    checks["train"].refuse_or_log()
    with pytest.raises(InputError, match=r"^data: VOC2007 test \(test\): 3 of 3 images .* but 96 x 80 in the annotat"):
        checks["test"].refuse_or_log()


def test_a_sample_is_refused_beyond_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coco_dataset(tmp_path, train=40, test=2, masks=False)
    for file in sorted((data / "train2017").iterdir())[::4]:
        file.write_bytes(b"none")
    train, test = open_annotated(data)
    monkeypatch.setattr("mec.evaluate.detection.datasets.checks.MAX_CHECKED_IMAGES", 14)
    sampled = check_images(train, test)["train"]
    assert sampled.num_checked == 14
    assert 2 <= len(sampled.problems) <= 4
    sampled.refuse_or_log()  # 0.05 * 14 and four standard deviations: 4.05
    with pytest.raises(InputError, match="10 of 40 images cannot be used"):
        check_images(train, test, all_images=True)["train"].refuse_or_log()


def box_row(i: int, box: list[float], **fields: Any) -> dict[str, Any]:
    return {"image_id": i, "bbox": box, **fields}


GOOD = [box_row(i, [1, 1, 4, 4]) for i in range(10)]
CORNERS = [box_row(i, [9, 4, 9 + 9, 4 + 5]) for i in range(10)]  # in images of 20 x 10 pixels


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        ([box_row(i, [0.1, 0.2, 0.3, 0.4]) for i in range(9)], "expected boxes in pixels, got fractions .*at most 0.6"),
        (CORNERS, "expected each bbox as x, y, width, height; 10 of 10 extend beyond their image"),
        ([box_row(i, [30, 1, 4, 4]) for i in range(3)],
         r"has no object to .* \(boxes outside the image or without area 3, images without objects"),
        ([box_row(0, [1, 1, 4, 4], iscrowd="1"), box_row(1, [-9, 1, 4, 4])],
         r"has no object to .* \(boxes outside the image or without area 1, crowd regions 1"),
        ([], r"has no object to .* \(images without objects 10\)"),
    ],
    ids=["fractions", "corners", "outside", "crowd", "none"],
)  # fmt: skip
@pytest.mark.parametrize("split", ["train", "test"])
def test_boxes_that_cannot_be_meant_are_refused_in_every_split(
    tmp_path: Path, annotations: list[dict[str, Any]], reason: str, split: str
) -> None:
    splits = (annotations, GOOD) if split == "train" else (GOOD, annotations)
    with pytest.raises(InputError, match=rf"^data: \w+/_annotations.coco.json \({split}\):? {reason}"):
        open_annotated(write_roboflow(tmp_path, *splits))


@pytest.mark.parametrize(
    "annotations",
    [
        [box_row(i, [0, 0, 20, 10]) for i in range(10)],  # full images
        [*CORNERS[:9], box_row(9, [9, 4, 3, 3])],  # one of ten is none
        [box_row(i, [0, 0, 1, 1]) for i in range(9)] + [box_row(9, [0, 0, 3, 1])],
    ],
)
def test_other_boxes_are_not_refused(tmp_path: Path, annotations: list[dict[str, Any]]) -> None:
    open_annotated(write_roboflow(tmp_path, annotations, annotations))


def test_objects_annotated_twice_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    twice = [*GOOD, *GOOD[:3], GOOD[0], box_row(0, [1, 1, 4, 4], category_id=2)]
    train, _ = open_annotated(write_roboflow(tmp_path, twice, GOOD))
    assert len(train.boxes) == 15, "all are used"
    assert "(train): objects annotated twice 4 (used)" in capfd.readouterr().err


def test_classes_of_the_test_split_only_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_annotated(write_roboflow(tmp_path, GOOD, [box_row(0, [1, 1, 4, 4], category_id=2)]))
    line = "warning: 1 class with objects in the test split only, which detectors cannot learn: nut\n"
    assert capfd.readouterr().err.endswith(line)


def test_classes_that_differ_in_case_or_spaces_only_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for i, name in enumerate(("Wolf", "wolf ", "red wolf", "red  wolf", "ant")):
        write_image(tmp_path, f"p{i}", object_xml(name))
    write_lists(tmp_path, train="p0 p1 p2 p3 p4", test="p4")
    open_annotated(tmp_path)
    line = "warning: 4 classes that differ in case or spaces only: Wolf, red  wolf, red wolf, wolf\n"
    assert capfd.readouterr().err.endswith(line)


def test_images_and_files_that_are_not_used_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_roboflow(tmp_path, GOOD, GOOD)
    write_coco(data / "test" / "_annotations.coco.json", GOOD)
    for name in ("extra.jpg", "._extra.jpg", "extra.txt"):
        (data / "train" / name).touch()
    open_annotated(data)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"{data}: not used: test/_annotations.coco.json"
    assert lines[-1] == f"1 image in the same folders, in neither split; the first: {data}/train/extra.jpg"


def run_check(data: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[str]], str]:
    """Return status, rows of the table and standard error of the command."""
    status = main(["evaluate", "detect", str(data), "--check"])
    captured = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.out.splitlines() if "│" in line]
    return status, {name: cells for name, *cells in rows}, captured.err


def test_check_prints_what_both_splits_contain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = coco_dataset(tmp_path / "discs", train=5, test=41)

    def add_crowd(content: Content) -> None:
        content["annotations"].append({**content["annotations"][0], "id": 99, "iscrowd": 1})

    change_json(data, "train", add_crowd)
    Image.new("RGB", (30, 20)).save(data / "val2017" / "1003.png")
    (data / "val2017" / "1004.png").write_bytes(b"none")
    status, rows, err = run_check(data, capsys)
    assert status == 0
    assert rows == {
        "images": ["5", "41"], "images not of the annotated size": ["0", "1"], "unreadable images": ["0", "1"],
        "objects": ["6", "41"], "objects with a mask": ["6", "41"], "classes": ["1", "1"],
        "classes with objects": ["1", "1"], "crowd regions": ["1", "0"],
    }  # fmt: skip
    assert "discs: COCO, boxes and masks, 1 class; train: annotations/instances_train2017.json, 5 images" in err
    assert err.splitlines()[-1].startswith("warning: annotations/instances_val2017.json (test): 2 of 41 images cannot")
    assert [path.name for path in tmp_path.iterdir()] == ["discs"], "nothing is written"
    (data / "val2017" / "1005.png").write_bytes(b"none")
    status, rows, err = run_check(data, capsys)
    assert (status, rows["unreadable images"]) == (2, ["0", "2"])
    assert err.splitlines()[-1].startswith("mec: data: annotations/instances_val2017.json (test): 3 of 41 images")


def test_check_needs_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "detect", "--check"]) == 2
    assert capsys.readouterr().err.startswith("mec: data: expected a VOCdevkit")
