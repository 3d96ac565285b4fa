import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated

BOX = [1, 1, 4, 4]


def write_coco(path: Path, annotations: list[dict[str, Any]], num_images: int = 10) -> Path:
    """Write a COCO JSON of images of 20 x 10 pixels, with empty files beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{path.parent.name}{i}.jpg" for i in range(num_images)]
    for name in names:
        (path.parent / name).touch()
    content = {
        "images": [{"id": i, "file_name": name, "height": 10, "width": 20} for i, name in enumerate(names)],
        "annotations": [{"id": i, "category_id": 1, **annotation} for i, annotation in enumerate(annotations)],
        "categories": [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}],
    }
    path.write_text(json.dumps(content))
    return path


def write_roboflow(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Path:
    for split, annotations in (("train", train), ("valid", test)):
        write_coco(folder / split / "_annotations.coco.json", annotations)
    return folder


def test_both_splits_of_coco(real_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not (real_data / "coco128").is_dir():
        pytest.skip(f"no coco128 in {real_data}")
    train, test = open_annotated(real_data / "coco128")
    assert (len(train), len(test)) == (128, 100)
    assert train.has_masks
    assert test.has_masks
    assert train.categories == test.categories
    assert sum(len(train.targets(i).boxes) > 0 for i in range(128)) == 126
    assert capfd.readouterr().err.splitlines() == [
        "annotations/instances_train2017.json (train): crowd regions 10 (not used), "
        "images without objects 2 (not used)",
        "annotations/instances_val2017.json (test): crowd regions 5 (not counted)",
    ]


def test_one_json_is_always_split_the_same_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_coco(tmp_path / "mine" / "a.json", [{"image_id": i, "bbox": [0, 0, i + 1, 5]} for i in range(10)])
    train, test = open_annotated(path)
    assert (len(train), len(test)) == (8, 2)
    assert sorted([*train.image_ids, *test.image_ids]) == list(range(10))
    for split in (train, test):
        assert split.boxes[:, 2].tolist() == (split.image_ids + 1).tolist(), "objects stay with their images"
        assert split.images.names == [f"mine{i}.jpg" for i in split.image_ids]
    assert capfd.readouterr().err == "mine/a.json has no test split: 2 of its 10 images are held out\n"
    again, _ = open_annotated(str(tmp_path / "mine"))
    assert np.array_equal(again.image_ids, train.image_ids)


def test_unusual_annotations_are_counted_in_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    boxes = [BOX, [-1, -1, 22, 12], [-1.5, 0, 5, 5], [0, 0, 5, 12], [20, 0, 5, 5], [3, 3, 0, 2]]
    annotations = [{"image_id": i, "bbox": box, "segmentation": square} for i, box in enumerate(boxes)]
    annotations += [{"image_id": 6, "bbox": BOX}, {"image_id": 7, "bbox": [0, 0, 99, 99], "iscrowd": 1}]
    train, test = open_annotated(write_roboflow(tmp_path, annotations, annotations))
    assert train.is_target.tolist() == test.is_target.tolist() == [True, True, True, True, False, False, False, False]
    assert capfd.readouterr().err.splitlines() == [
        "train/_annotations.coco.json (train): boxes beyond the edge of the image 2 (clipped), "
        "boxes outside the image or without area 2 (not used), objects without a mask 1 (not used), "
        "crowd regions 1 (not used), images without objects 6 (not used)",
        "valid/_annotations.coco.json (test): boxes beyond the edge of the image 2 (as annotated), "
        "boxes outside the image or without area 2 (as annotated), objects without a mask 1 (no mask can match), "
        "crowd regions 1 (not counted), images without objects 2 (counted)",
    ]


def test_usual_annotations_are_not_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    annotations = [{"image_id": i, "bbox": BOX} for i in range(10)]
    open_annotated(write_roboflow(tmp_path, annotations, annotations))
    assert capfd.readouterr().err == ""


def test_images_in_both_splits_are_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        write_coco(tmp_path / f"{split}.json", [{"image_id": i, "bbox": BOX} for i in range(10)])
    open_annotated(tmp_path)
    assert "10 images are both in " in capfd.readouterr().err


def test_splits_without_objects_are_rejected(tmp_path: Path) -> None:
    good, crowd = {"image_id": 0, "bbox": BOX}, {"image_id": 1, "bbox": BOX, "iscrowd": 1}
    with pytest.raises(InputError, match=r"data: train/.* \(train\) has no object to train on"):
        open_annotated(write_roboflow(tmp_path, [crowd, {**good, "bbox": [50, 50, 4, 4]}], [good]))
    with pytest.raises(InputError, match=r"data: valid/.* \(test\) has no object to count"):
        open_annotated(write_roboflow(tmp_path, [good], [crowd]))
    with pytest.raises(InputError, match=r"data: one/a.json has one image, expected at least 2"):
        open_annotated(write_coco(tmp_path / "one" / "a.json", [good], num_images=1))


def test_unknown_formats_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data: .*/none does not exist; expected a VOCdevkit, a folder with"):
        open_annotated(tmp_path / "none")
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match=r"data: no annotations in .*; expected a VOCdevkit, a folder with"):
        open_annotated(tmp_path)
    path = write_coco(tmp_path / "a.json", [{"image_id": 0, "bbox": BOX}])
    with pytest.raises(InputError, match=r"data: .*a.json is in COCO's format, expected a VOCdevkit for VOC2007"):
        open_annotated(path, (2007, 2012))
