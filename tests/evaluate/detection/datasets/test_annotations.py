import json
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask

from mec.data import FileDataset
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, as_records

SIZES = [(4, 6), (5, 5), (8, 3)]
SPANS = [(0, 0, 2, 2), (1, 1, 6, 4), (0, 0, 3, 8)]
"""Of the masks, in images 0, 0 and 2: x1, y1, x2, y2."""


def filled(size: tuple[int, int], span: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8, order="F")
    x1, y1, x2, y2 = span
    mask[y1:y2, x1:x2] = 1
    return mask


@pytest.fixture
def part() -> AnnotatedDataset:
    """Two objects with masks and one without in the first image, none in the second, one and a crowd in the third."""
    masks = [coco_mask.encode(filled(SIZES[i], span))["counts"] for i, span in zip((0, 0, 2), SPANS, strict=True)]
    counts = [masks[0], b"", masks[1], masks[2], b""]
    return AnnotatedDataset(
        name="three",
        images=FileDataset("three", Path("/data"), ["a.jpg", "b.jpg", "c.jpg"]),
        ids=np.array([30, 10, 20]),
        sizes=np.array(SIZES),
        categories=["cat", "dog"],
        category_ids=np.array([3, 7]),
        rules="coco",
        starts=np.array([0, 3, 3, 5]),
        boxes=np.array([[0, 0, 2, 2], [1, 0, 2, 3], [1, 1, 7.5, 4], [-1, 0, 3, 9], [0, 0, 1, 1]], np.float64),
        labels=np.array([0, 1, 1, 0, 0]),
        areas=np.array([4.0, 3, 15, 24, 1]),
        crowd=np.array([False, False, False, False, True]),
        difficult=np.zeros(5, bool),
        usable=np.array([True, False, True, True, False]),
        counts=np.frombuffer(b"".join(counts), np.uint8),
        ends=np.cumsum([len(c) for c in counts]),
    )


def test_targets_are_what_can_be_learned_within_the_image(part: AnnotatedDataset) -> None:
    first, second, third = (part.targets(i) for i in range(3))
    assert first.boxes.tolist() == [[0, 0, 2, 2], [1, 1, 6, 4]]
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [0, 1]
    assert first.masks is not None
    for mask, span in zip(first.masks, SPANS[:2], strict=True):
        np.testing.assert_array_equal(coco_mask.decode(mask), filled((4, 6), span))
    assert second.boxes.shape == (0, 4)
    assert second.masks == []
    assert third.boxes.tolist() == [[0, 0, 3, 8]]
    assert third.masks is not None
    assert coco_mask.decode(third.masks[0]).all()


@pytest.mark.parametrize("chosen", [[2, 0], [0, 1, 2], [1], [2], []])
def test_a_subset_has_the_objects_of_its_images(part: AnnotatedDataset, chosen: list[int]) -> None:
    some = part.subset(np.array(chosen, np.int64))
    assert len(some) == len(chosen)
    assert some.ids.tolist() == [[30, 10, 20][i] for i in chosen]
    assert [some.images.title(i) for i in range(len(some))] == [part.images.title(i) for i in chosen]
    assert some.starts[-1] == len(some.boxes) == sum([3, 0, 2][i] for i in chosen)
    for place, i in enumerate(chosen):
        ours, whole = some.targets(place), part.targets(i)
        np.testing.assert_array_equal(ours.boxes, whole.boxes)
        np.testing.assert_array_equal(ours.labels, whole.labels)
        assert ours.masks == whole.masks
    assert some.has_masks


def test_as_coco_names_the_numbers_of_the_files(part: AnnotatedDataset) -> None:
    written = part.as_coco()
    json.dumps(written)
    assert written["images"][2] == {"id": 20, "file_name": "c.jpg", "height": 8, "width": 3}
    assert written["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert [one["image_id"] for one in written["annotations"]] == [30, 30, 30, 20, 20]
    assert [one["id"] for one in written["annotations"]] == [1, 2, 3, 4, 5]
    one = written["annotations"][2]
    mask = coco_mask.decode(one.pop("segmentation"))
    np.testing.assert_array_equal(mask, filled((4, 6), SPANS[1]))
    assert one == {"id": 3, "image_id": 30, "category_id": 7, "bbox": [1, 1, 6.5, 3], "area": 15, "iscrowd": 0}


def test_what_is_written_as_coco_is_read_again(part: AnnotatedDataset, tmp_path: Path) -> None:
    written = part.as_coco()
    for one in written["annotations"]:
        if not one["segmentation"]["counts"]:
            del one["segmentation"]
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text(json.dumps(written))
    for image in part.images.names:
        (tmp_path / image).touch()
    for read in open_annotated(tmp_path):
        for name in ("ids", "sizes", "category_ids", "starts", "boxes", "labels", "areas", "crowd", "difficult",
                     "usable", "counts", "ends"):  # fmt: skip
            np.testing.assert_array_equal(getattr(read, name), getattr(part, name), err_msg=name)


def test_detections_as_records() -> None:
    mask = coco_mask.encode(filled((4, 6), SPANS[0]))
    boxes, labels = np.array([[1, 2, 4, 8], [0, 0, 2, 2]], np.float32), np.array([1, 0])
    found = Detections(boxes, labels, np.array([0.75, 0.5], np.float32), [mask, mask])
    records = as_records(found, 30, np.array([3, 7]))
    json.dumps(records)
    assert records[0]["segmentation"] == {"size": [4, 6], "counts": mask["counts"].decode()}
    assert [{k: v for k, v in one.items() if k != "segmentation"} for one in records] == [
        {"image_id": 30, "category_id": 7, "bbox": [1, 2, 3, 6], "score": 0.75},
        {"image_id": 30, "category_id": 3, "bbox": [0, 0, 2, 2], "score": 0.5},
    ]
    assert "segmentation" not in as_records(found._replace(masks=None), 30, [3, 7])[0]
