import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask

from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.coco import open_coco
from mec.evaluate.detection.datasets.masks import MaskReader
from tests.evaluate.detection.datasets.test_coco import SQUARE, make_annotation, write_json
from tests.evaluate.detection.scenes import coco_dataset

SIZE, BOX = (10, 10), (2.0, 3.0, 3.0, 4.0)
POINTS = [[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]
LEFT, RIGHT = [2, 3, 4, 3, 4, 7, 2, 7], [[4, 3], [5, 3], [5, 7], [4, 7]]
RUNS = [3 + 2 * 10, 4, 6, 4, 6, 4, 100 - 47]  # in column-major order
RLE = {"size": [10, 10], "counts": RUNS}


@pytest.mark.parametrize(
    "segmentation",
    [[SQUARE], SQUARE, POINTS, [POINTS], [LEFT, RIGHT], [LEFT, [], RIGHT], [[*POINTS, POINTS[0]]], RLE, [RLE]],
    ids=str,
)
def test_the_nestings_of_a_polygon_are_the_same_mask(segmentation: Any) -> None:
    expected = np.zeros(SIZE, np.uint8)
    expected[3:7, 2:5] = 1
    reader = MaskReader()
    counts, num_pixels = reader.read(segmentation, SIZE, BOX, 1)
    np.testing.assert_array_equal(coco_mask.decode({"size": list(SIZE), "counts": counts}), expected)
    assert num_pixels == 12
    assert (reader.num_segmentations, reader.num_masks) == (1, 1)
    assert not reader.unread
    assert not reader.far_from_box


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[2, 3, 5, 7]], "a box of two corners"),
        ([2, 3, 5, 7], "a box of two corners"),
        ([[2, 3], [5, 7]], "a box of two corners"),
        ([[[2, 3], [5, 7]]], "a box of two corners"),
        ([[2, 3]], "fewer than three corners"),
        ([[2, 3, 2], [5, 3, 2], [5, 7, 1]], "an odd number of coordinates"),
        ([[[2, 3, 2], [5, 3, 2], [5, 7, 1]]], "not lists of x and y"),
        ([[[[2, 3], [5, 3], [5, 7]]]], "not lists of x and y"),
        ([[[2, 3], [5, 3], [5]]], "not lists of x and y"),
        ([["2", "3", "5", "3", "5", "7"]], "not lists of x and y"),
        ([{"x": 2, "y": 3}, [5, 3]], "not lists of x and y"),
        ([[2, 3, 5, 3, 5, 7, 2]], "an odd number of coordinates"),
        ([[1e9, 0, 1e9, 5, 0, 5]], "impossible coordinates"),
        ([[2, 3, 5, 3, 5, float("nan")]], "impossible coordinates"),
        ([[50, 50, 60, 50, 60, 60]], "no pixel in the image"),
        ({"size": [10, 10], "counts": [100]}, "no pixel in the image"),
    ],
)
def test_other_lists_are_no_mask_and_counted(segmentation: Any, reason: str) -> None:
    reader = MaskReader()
    assert reader.read(segmentation, SIZE, BOX, 7) == (b"", 0)
    assert (dict(reader.unread), reader.first_unread, reader.num_segmentations) == ({reason: 1}, 7, 1)


@pytest.mark.parametrize("segmentation", [None, [], {}, [[]]])
def test_an_empty_segmentation_is_not_counted_as_unread(segmentation: Any) -> None:
    reader = MaskReader()
    assert reader.read(segmentation, SIZE, BOX, 1) == (b"", 0)
    assert not reader.unread


def test_a_mask_of_two_parts_is_read_without_the_unreadable_one() -> None:
    reader = MaskReader()
    assert reader.read([SQUARE, [0, 0, 9, 9]], SIZE, BOX, 1)[1] == 12
    assert dict(reader.unread) == {"a box of two corners": 1}


@pytest.mark.parametrize(
    ("box", "is_far"),
    # IoU of the 3 x 4 pixels of the square: 12/12, 12/81, 12/130, 0
    [(BOX, False), ((1, 1, 9, 9), False), ((0, 0, 13, 10), True), ((6, 0, 4, 4), True)],
)
def test_masks_far_from_their_box_are_counted(box: tuple[float, ...], is_far: bool) -> None:
    reader = MaskReader()
    reader.read([SQUARE], SIZE, box, 5)
    assert reader.far_from_box == ([5] if is_far else [])


def test_a_dataset_none_of_whose_masks_can_be_read_is_a_warning_in_capitals(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = coco_dataset(tmp_path / "discs")
    for split, corners in (("train", [1, 1, 9, 9]), ("val", [1, 1])):
        path = data / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            annotation["segmentation"] = [corners]
        path.write_text(json.dumps(content))
    train, test = open_annotated(data)
    assert not train.has_masks
    assert not test.has_masks
    in_train, in_test, contents = capfd.readouterr().err.splitlines()
    assert in_train == (
        "warning: annotations/instances_train2017.json: 6 of 6 segmentations CANNOT BE READ (a box of two corners 6); "
        "the first: annotation 1. THERE ARE NO MASKS: THE DETECTOR LEARNS BOXES ONLY"
    )
    assert "4 of 4 segmentations CANNOT BE READ (fewer than three corners 4)" in in_test
    assert contents.startswith("discs: COCO, boxes only, 1 class; ")


def test_some_unread_masks_are_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    segmentations: list[Any] = [[SQUARE], SQUARE, [[0, 0, 9, 9]], [[1, 2, 3]], [[0, 0, 9, 9]], []]
    annotations = [make_annotation(i, 10, [2, 3, 3, 4], segmentation=s) for i, s in enumerate(segmentations)]
    annotations.append(make_annotation(9, 20, [2, 3, 3, 1], segmentation=[[0, 0, 1, 0, 1, 1, 0, 1]]))
    dataset, _ = open_coco(write_json(tmp_path / "mine", "a.json", annotations), None)
    assert dataset.has_masks
    first, second = capfd.readouterr().err.splitlines()
    assert first == (
        "warning: mine/a.json: 3 of 6 segmentations could not be read, or only in part (a box of two corners 2, "
        "an odd number of coordinates 1); the first: annotation 2"
    )
    assert "mine/a.json: 1 of 3 masks lie outside the bbox of their annotation (IoU below 0.1), used as" in second


@pytest.mark.parametrize(
    "polygon",
    [
        [2, 3, 2, 5, 3, 2, 5, 7, 1, 2, 7, 1],  # x, y and visibility of key points
        [4, 1, 5, 1, 5, 2, 4, 2],  # of the image at a third of its size
        [3, 12, 3, 15, 7, 15, 7, 12],  # y before x
    ],
)
def test_a_file_with_most_masks_outside_their_boxes_is_refused(tmp_path: Path, polygon: list[int]) -> None:
    images = [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 20}]
    annotations = [make_annotation(i, 1, [12, 3, 3, 4], segmentation=[polygon]) for i in range(6)]
    right = [make_annotation(i, 1, [12, 3, 3, 4], segmentation=[[12, 3, 15, 3, 15, 7, 12, 7]]) for i in range(6, 12)]
    for number, is_refused in ((4, True), (6, False)):
        path = write_json(tmp_path / "mine", "a.json", [*annotations, *right[:number]], images=images)
        if is_refused:
            with pytest.raises(InputError, match=r"^data: mine/a.json: 6 of 10 masks lie outside the bbox of "):
                open_coco(path, None)
        else:
            assert open_coco(path, None)[0].has_masks
