import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated

BOX = [1, 1, 4, 4]


def write(path: Path, annotations: list[dict[str, Any]], images: int = 10) -> Path:
    """A COCO json of images of 20 x 10 pixels, empty files, beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{path.parent.name}{i}.jpg" for i in range(images)]
    for name in names:
        (path.parent / name).touch()
    raw = {
        "images": [{"id": i, "file_name": name, "height": 10, "width": 20} for i, name in enumerate(names)],
        "annotations": [{"id": k, "category_id": 1, **one} for k, one in enumerate(annotations)],
        "categories": [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}],
    }
    path.write_text(json.dumps(raw))
    return path


def roboflow(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Path:
    for part, annotations in (("train", train), ("valid", test)):
        write(folder / part / "_annotations.coco.json", annotations)
    return folder


def test_both_parts_of_coco(real_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not (real_data / "coco128").is_dir():
        pytest.skip(f"no coco128 in {real_data}")
    train, test = open_annotated(real_data / "coco128")
    assert (len(train), len(test)) == (128, 100)
    assert train.has_masks
    assert test.has_masks
    assert train.categories == test.categories
    assert sum(len(train.targets(i).boxes) > 0 for i in range(128)) == 126
    assert capfd.readouterr().err.splitlines() == [
        "annotations/instances_train2017.json, for training: crowd regions 10 (not learned), "
        "images without objects 2 (not learned)",
        "annotations/instances_val2017.json, for testing: crowd regions 5 (not counted)",
    ]


def test_one_json_is_divided_once_and_for_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "mine" / "a.json", [{"image_id": i, "bbox": [0, 0, i + 1, 5]} for i in range(10)])
    train, test = open_annotated(path)
    assert (len(train), len(test)) == (8, 2)
    assert sorted([*train.ids, *test.ids]) == list(range(10))
    for part in (train, test):
        assert part.boxes[:, 2].tolist() == (part.ids + 1).tolist(), "objects stay with their images"
        assert part.images.names == [f"mine{i}.jpg" for i in part.ids]
    assert capfd.readouterr().err == "mine/a.json is one part: 2 of its 10 images are held out for testing\n"
    again, _ = open_annotated(str(tmp_path / "mine"))
    assert np.array_equal(again.ids, train.ids)


def test_what_is_odd_is_counted_in_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    boxes = [BOX, [-1, -1, 22, 12], [-1.5, 0, 5, 5], [0, 0, 5, 12], [20, 0, 5, 5], [3, 3, 0, 2]]
    objects = [{"image_id": i, "bbox": box, "segmentation": square} for i, box in enumerate(boxes)]
    objects += [{"image_id": 6, "bbox": BOX}, {"image_id": 7, "bbox": [0, 0, 99, 99], "iscrowd": 1}]
    train, test = open_annotated(roboflow(tmp_path, objects, objects))
    assert train.usable.tolist() == test.usable.tolist() == [True, True, True, True, False, False, False, False]
    assert capfd.readouterr().err.splitlines() == [
        "train/_annotations.coco.json, for training: boxes that reach beyond the image 2 (clipped), boxes "
        "outside the image or without area 2 (not learned), objects without a mask 1 (not learned), "
        "crowd regions 1 (not learned), images without objects 6 (not learned)",
        "valid/_annotations.coco.json, for testing: boxes that reach beyond the image 2 (as annotated), boxes "
        "outside the image or without area 2 (as annotated), objects without a mask 1 (cannot be found by mask), "
        "crowd regions 1 (not counted), images without objects 2 (counted)",
    ]


def test_nothing_odd_nothing_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    objects = [{"image_id": i, "bbox": BOX} for i in range(10)]
    open_annotated(roboflow(tmp_path, objects, objects))
    assert capfd.readouterr().err == ""


def test_images_in_both_parts_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "val"):
        write(tmp_path / f"{part}.json", [{"image_id": i, "bbox": BOX} for i in range(10)])
    open_annotated(tmp_path)
    assert "10 images are both in " in capfd.readouterr().err


def test_nothing_to_learn_or_to_find(tmp_path: Path) -> None:
    good, crowd = {"image_id": 0, "bbox": BOX}, {"image_id": 1, "bbox": BOX, "iscrowd": 1}
    with pytest.raises(InputError, match=r"data: train/.*, for training, has no object that can be learned"):
        open_annotated(roboflow(tmp_path, [crowd, {**good, "bbox": [50, 50, 4, 4]}], [good]))
    with pytest.raises(InputError, match=r"data: valid/.*, for testing, has no object that counts"):
        open_annotated(roboflow(tmp_path, [good], [crowd]))
    with pytest.raises(InputError, match=r"data: one/a.json has one image, expected at least 2"):
        open_annotated(write(tmp_path / "one" / "a.json", [good], images=1))


def test_what_is_no_detection_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data: .*/none does not exist; expected a VOCdevkit, a folder with"):
        open_annotated(tmp_path / "none")
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match=r"data: no annotations in .*; expected a VOCdevkit, a folder with"):
        open_annotated(tmp_path)
    path = write(tmp_path / "a.json", [{"image_id": 0, "bbox": BOX}])
    with pytest.raises(InputError, match=r"data: .*a.json is in COCO's format, expected a VOCdevkit for VOC2007"):
        open_annotated(path, (2007, 2012))
