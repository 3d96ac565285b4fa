import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.data import FileDataset
from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, Object, to_coco_results

BOX = [1, 1, 4, 4]
SIZES = [(4, 6), (5, 5), (8, 3)]
MASK_BOXES = [(0, 0, 2, 2), (1, 1, 6, 4), (0, 0, 3, 8)]
"""Rectangular masks in the images 0, 0 and 2: x1, y1, x2, y2."""


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    mask = np.zeros(size, np.uint8, order="F")
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 1
    return mask


@pytest.fixture
def dataset() -> AnnotatedDataset:
    """Return three images: two objects with masks and one without; none; an object and a crowd."""
    masks = [coco_mask.encode(rectangle(SIZES[i], box))["counts"] for i, box in zip((0, 0, 2), MASK_BOXES, strict=True)]
    return AnnotatedDataset.from_objects(
        [
            Object(0, (0, 0, 2, 2), 0, 4.0, rle_counts=masks[0]),
            Object(0, (1, 0, 2, 3), 1, 3.0),
            Object(0, (1, 1, 7.5, 4), 1, 15.0, rle_counts=masks[1]),
            Object(2, (-1, 0, 3, 9), 0, 24.0, rle_counts=masks[2]),
            Object(2, (0, 0, 1, 1), 0, 1.0, is_crowd=True),
        ],
        name="three",
        images=FileDataset("three", Path("/data"), ["a.jpg", "b.jpg", "c.jpg"]),
        image_ids=np.array([30, 10, 20]),
        sizes=np.array(SIZES),
        categories=["cat", "dog"],
        category_ids=np.array([3, 7]),
        ap_metric="coco",
    )


def test_targets_are_clipped_to_the_image(dataset: AnnotatedDataset) -> None:
    first, second, third = (dataset.targets(i) for i in range(3))
    assert first.boxes.tolist() == [[0, 0, 2, 2], [1, 1, 6, 4]]
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [0, 1]
    assert first.masks is not None
    for mask, box in zip(first.masks, MASK_BOXES[:2], strict=True):
        np.testing.assert_array_equal(coco_mask.decode(mask), rectangle((4, 6), box))
    assert second.boxes.shape == (0, 4)
    assert second.masks == []
    assert third.boxes.tolist() == [[0, 0, 3, 8]]
    assert third.masks is not None
    assert coco_mask.decode(third.masks[0]).all()


@pytest.mark.parametrize("indices", [[2, 0], [0, 1, 2], [1], [2], []])
def test_a_subset_has_the_objects_of_its_images(dataset: AnnotatedDataset, indices: list[int]) -> None:
    subset = dataset.subset(np.array(indices, np.int64))
    assert len(subset) == len(indices)
    assert subset.image_ids.tolist() == [[30, 10, 20][i] for i in indices]
    assert [subset.images.title(i) for i in range(len(subset))] == [dataset.images.title(i) for i in indices]
    assert subset.offsets[-1] == len(subset.boxes) == sum([3, 0, 2][i] for i in indices)
    for new_index, old_index in enumerate(indices):
        targets, expected = subset.targets(new_index), dataset.targets(old_index)
        np.testing.assert_array_equal(targets.boxes, expected.boxes)
        np.testing.assert_array_equal(targets.labels, expected.labels)
        assert targets.masks == expected.masks
    assert subset.has_masks


def test_to_coco_uses_the_ids_of_the_annotation_files(dataset: AnnotatedDataset) -> None:
    content = dataset.to_coco()
    json.dumps(content)
    assert content["images"][2] == {"id": 20, "file_name": "c.jpg", "height": 8, "width": 3}
    assert content["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert [annotation["image_id"] for annotation in content["annotations"]] == [30, 30, 30, 20, 20]
    assert [annotation["id"] for annotation in content["annotations"]] == [1, 2, 3, 4, 5]
    annotation = content["annotations"][2]
    mask = coco_mask.decode(annotation.pop("segmentation"))
    np.testing.assert_array_equal(mask, rectangle((4, 6), MASK_BOXES[1]))
    assert annotation == {"id": 3, "image_id": 30, "category_id": 7, "bbox": [1, 1, 6.5, 3], "area": 15, "iscrowd": 0}


def test_to_coco_and_open_annotated_are_inverse(dataset: AnnotatedDataset, tmp_path: Path) -> None:
    content = dataset.to_coco()
    for annotation in content["annotations"]:
        if not annotation["segmentation"]["counts"]:
            del annotation["segmentation"]
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    for image in dataset.images.names:
        (tmp_path / image).touch()
    for split in open_annotated(tmp_path):
        for name in (
            "image_ids", "sizes", "category_ids", "offsets", "boxes", "labels", "areas", "is_crowd", "is_difficult",
            "is_target", "rle_counts", "rle_spans",
        ):  # fmt: skip
            np.testing.assert_array_equal(getattr(split, name), getattr(dataset, name), err_msg=name)


def test_to_coco_results() -> None:
    mask = coco_mask.encode(rectangle((4, 6), MASK_BOXES[0]))
    boxes, labels = np.array([[1, 2, 4, 8], [0, 0, 2, 2]], np.float32), np.array([1, 0])
    detections = Detections(boxes, labels, np.array([0.75, 0.5], np.float32), [mask, mask])
    results = to_coco_results(detections, 30, np.array([3, 7]))
    json.dumps(results)
    assert results[0]["segmentation"] == {"size": [4, 6], "counts": mask["counts"].decode()}
    assert [{k: v for k, v in result.items() if k != "segmentation"} for result in results] == [
        {"image_id": 30, "category_id": 7, "bbox": [1, 2, 3, 6], "score": 0.75},
        {"image_id": 30, "category_id": 3, "bbox": [0, 0, 2, 2], "score": 0.5},
    ]
    assert "segmentation" not in to_coco_results(detections._replace(masks=None), 30, [3, 7])[0]


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
    first, *unusual, unlisted, unseen = capfd.readouterr().err.splitlines()
    assert first == (
        "coco128: COCO, boxes and masks, 80 classes; "
        "train: annotations/instances_train2017.json, 128 images, 939 objects of 71 classes; "
        "test: annotations/instances_val2017.json, 100 images, 712 objects of 72 classes"
    )
    assert unusual == [
        "annotations/instances_train2017.json (train): crowd regions 10 (not used), "
        "images without objects 2 (not used)",
        "annotations/instances_val2017.json (test): crowd regions 5 (not counted)",
    ]
    assert unlisted.startswith("28 images in the same folders, in neither split; the first: ")
    assert "5 classes with objects in the test split only" in unseen


def test_one_json_is_always_split_the_same_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_coco(tmp_path / "mine" / "a.json", [{"image_id": i, "bbox": [0, 0, i + 1, 5]} for i in range(10)])
    train, test = open_annotated(path)
    assert (len(train), len(test)) == (8, 2)
    assert sorted([*train.image_ids, *test.image_ids]) == list(range(10))
    for split in (train, test):
        assert split.boxes[:, 2].tolist() == (split.image_ids + 1).tolist(), "objects stay with their images"
        assert split.images.names == [f"mine{i}.jpg" for i in split.image_ids]
    assert capfd.readouterr().err == (
        "a.json: COCO, boxes only, 2 classes; train: mine/a.json, 4/5, 8 images, 8 objects of 1 class; "
        "test: mine/a.json, 1/5, 2 images, 2 objects of 1 class, held out because there is no test split\n"
    )
    again, _ = open_annotated(str(tmp_path / "mine"))
    assert np.array_equal(again.image_ids, train.image_ids)


def test_unusual_annotations_are_counted_in_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    boxes = [BOX, [-1, -1, 22, 12], [-1.5, 0, 5, 5], [0, 0, 5, 12], [20, 0, 5, 5], [3, 3, 0, 2]]
    annotations = [{"image_id": i, "bbox": box, "segmentation": square} for i, box in enumerate(boxes)]
    annotations += [{"image_id": 6, "bbox": BOX}, {"image_id": 7, "bbox": [0, 0, 99, 99], "iscrowd": 1}]
    train, test = open_annotated(write_roboflow(tmp_path, annotations, annotations))
    assert train.is_target.tolist() == test.is_target.tolist() == [True, True, True, True, False, False, False, False]
    assert capfd.readouterr().err.splitlines()[-2:] == [
        "train/_annotations.coco.json (train): boxes beyond the edge of the image 2 (clipped), "
        "boxes outside the image or without area 2 (not used), objects without a mask 1 (not used), "
        "crowd regions 1 (not used), images without objects 6 (not used)",
        "valid/_annotations.coco.json (test): boxes beyond the edge of the image 2 (as annotated), "
        "boxes outside the image or without area 2 (as annotated), objects without a mask 1 (no mask can match), "
        "crowd regions 1 (not counted), images without objects 2 (counted)",
    ]


def test_a_usual_dataset_is_described_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    annotations = [{"image_id": i, "bbox": BOX} for i in range(10)]
    open_annotated(write_roboflow(tmp_path / "bolts", annotations, annotations))
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        "bolts: COCO, boxes only, 2 classes; train: train/_annotations.coco.json, 10 images, 10 objects of 1 class; "
        "test: valid/_annotations.coco.json, 10 images, 10 objects of 1 class"
    )


def test_images_in_both_splits_are_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        write_coco(tmp_path / f"{split}.json", [{"image_id": i, "bbox": BOX} for i in range(10)])
    open_annotated(tmp_path)
    assert "warning: 10 images in both " in capfd.readouterr().err


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
