import json
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.data import FileDataset
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, Object, to_coco_results

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
