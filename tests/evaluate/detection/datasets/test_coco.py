import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask

from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset
from mec.evaluate.detection.datasets.coco import coco_files, open_coco

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
IMAGES = [
    {"id": 20, "file_name": "b.jpg", "height": 4, "width": 6},
    {"id": 10, "file_name": "a.jpg", "height": 10, "width": 10},
]
SQUARE = [2, 3, 5, 3, 5, 7, 2, 7]
"""Columns 2 to 4, rows 3 to 6."""


def annotation(number: int, image: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 3, "bbox": box, "iscrowd": 0, **more}


def write(folder: Path, file: str, annotations: list[dict[str, Any]], **more: Any) -> Path:
    """A json and empty files of its images beside it."""
    raw = {"images": IMAGES, "annotations": annotations, "categories": CATEGORIES, **more}
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(raw))
    for one in raw["images"]:
        if "file_name" in one:
            (path.parent / one["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / one["file_name"]).touch()
    return path


def decoded(part: AnnotatedDataset) -> list[np.ndarray]:
    """The mask of each object that can be learned."""
    return [coco_mask.decode(mask) for i in range(len(part)) for mask in part.targets(i).masks or []]


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_annotations_are_read_as_pycocotools_reads_them(real_data: Path, split: str) -> None:
    tools = pytest.importorskip("pycocotools.coco")
    folder = real_data / "coco128"
    if not folder.is_dir():
        pytest.skip(f"no coco128 in {real_data}")
    path = folder / "annotations" / f"instances_{split}2017.json"
    theirs = tools.COCO(str(path))
    part, _ = open_coco(path, None)
    assert part.ids.tolist() == [one["id"] for one in theirs.dataset["images"]]
    assert part.category_ids.tolist() == sorted(theirs.cats)
    assert part.categories == [theirs.cats[number]["name"] for number in sorted(theirs.cats)]
    assert (len(part), len(part.boxes), part.crowd.sum()) == {"train": (128, 939, 10), "val": (100, 712, 5)}[split]
    assert part.images.title(0) == str(folder / f"{split}2017" / part.images.names[0])
    for i, number in enumerate(part.ids.tolist()):
        annotations = theirs.imgToAnns[number]
        assert part.starts[i + 1] - part.starts[i] == len(annotations)
        for k, one in enumerate(annotations, int(part.starts[i])):
            x, y, width, height = one["bbox"]
            np.testing.assert_allclose(part.boxes[k], [x, y, x + width, y + height])
            assert part.category_ids[part.labels[k]] == one["category_id"]
            assert (part.areas[k], part.crowd[k]) == (one["area"], one["iscrowd"])
            assert not part.difficult[k]
            assert part.ends is not None
            assert part.counts is not None
            counts = part.counts[part.ends[k - 1] if k else 0 : part.ends[k]].tobytes()
            mask = coco_mask.decode({"size": part.sizes[i].tolist(), "counts": counts})
            np.testing.assert_array_equal(mask, theirs.annToMask(one))
    assert part.usable.tolist() == (~part.crowd).tolist()


def test_every_form_of_mask(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[3:7, 2:5] = 1
    rows = [3 + 2 * 10, 4, 6, 4, 6, 4, 100 - 47]  # column by column
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    forms = [[SQUARE], {"size": [10, 10], "counts": rows}, {"size": [10, 10], "counts": text}]
    two = [[0, 0, 1, 0, 1, 10, 0, 10], [9, 0, 10, 0, 10, 10, 9, 10], [1, 1, 5, 5], [1, 1, 5, 5, 7, 7, 8]]
    none = [
        None,
        [],
        [[]],
        [[1, 1, 5, 5]],
        [[1, 1, 5, 5, 7, 7, 8]],
        [[1e9, 0, 1e9, 5, 0, 5]],
        [[50, 50, 60, 50, 60, 60]],
    ]
    segments = [*forms, two, *none]
    annotations = [annotation(i, 10, [1, 1, 6, 6], segmentation=s) for i, s in enumerate(segments, 1)]
    part, _ = open_coco(write(tmp_path, "a.json", [*annotations, annotation(99, 10, [1, 1, 6, 6])]), None)
    assert part.usable.tolist() == [True] * 4 + [False] * 8
    edges = np.zeros((10, 10), np.uint8)
    edges[:, [0, 9]] = 1
    for found, expected in zip(decoded(part), [mask, mask, mask, edges], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert part.areas.tolist() == [12, 12, 12, 20] + [36] * 8, "of the mask, else of the box"


def test_objects_are_in_the_order_of_the_images_and_labels_in_that_of_the_numbers(tmp_path: Path) -> None:
    annotations = [
        annotation(5, 10, [0, 0, 4, 5], area=3.5),
        annotation(4, 20, [1, 1, 2, 2], category_id=7),
        annotation(3, 10, [2, 2, 1, 1], iscrowd=1),
    ]
    part, _ = open_coco(write(tmp_path, "a.json", annotations), None)
    assert part.ids.tolist() == [20, 10]
    assert part.sizes.tolist() == [[4, 6], [10, 10]]
    assert part.starts.tolist() == [0, 1, 3]
    assert (part.categories, part.category_ids.tolist()) == (["cat", "dog"], [3, 7])
    assert part.labels.tolist() == [1, 0, 0]
    assert part.boxes.tolist() == [[1, 1, 3, 3], [0, 0, 4, 5], [2, 2, 3, 3]]
    assert part.areas.tolist() == [4, 3.5, 1]
    assert part.crowd.tolist() == [False, False, True]
    assert (part.rules, part.has_masks) == ("coco", False)


def test_what_can_be_learned_without_masks(tmp_path: Path) -> None:
    boxes = [[0, 0, 5, 5], [-3, 2, 5, 20], [10, 0, 5, 5], [2, 2, 0, 5], [5, 5, -2, 3], [-9, 0, 9, 9], [3, 3, 1e-9, 4]]
    annotations = [annotation(i, 10, box) for i, box in enumerate(boxes, 1)]
    part, _ = open_coco(write(tmp_path, "a.json", annotations), None)
    assert part.usable.tolist() == [True, True, False, False, False, False, False]
    assert part.targets(1).boxes.tolist() == [[0, 0, 5, 5], [0, 2, 2, 10]]
    assert part.boxes[1].tolist() == [-3, 2, 2, 22], "counted as annotated"


def test_masks_that_one_part_lacks_are_left_out_of_both(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with_masks = write(tmp_path / "a", "x.json", [annotation(1, 10, [0, 0, 9, 9], segmentation=[SQUARE], area=12)])
    crowd = {"size": [10, 10], "counts": [0, 100]}
    annotations = [annotation(1, 10, [0, 0, 9, 9]), annotation(2, 10, [0, 0, 10, 10], iscrowd=1, segmentation=crowd)]
    without = write(tmp_path / "b", "x.json", annotations)
    for files in ((with_masks, without), (without, with_masks)):
        for part in open_coco(*files):
            assert part is not None
            assert not part.has_masks
            assert part.usable.sum() == 1
        assert "a/x.json has masks and b/x.json has none: both are read without" in capfd.readouterr().err


def test_roboflows_group_of_all_classes_may_share_a_name(tmp_path: Path) -> None:
    inner = {"id": 1, "name": "dog", "supercategory": "dog"}
    for group, expected in (("dog", ["dog"]), ("animals", ["animals", "dog"])):
        categories = [{"id": 0, "name": group, "supercategory": "none"}, inner]
        one = annotation(1, 10, [0, 0, 2, 2], category_id=1)
        part, _ = open_coco(write(tmp_path, "a.json", [one], categories=categories), None)
        assert [part.categories[i] for i in part.labels] == ["dog"]
        assert part.categories == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("annotations/instances_train2017.json annotations/instances_val2017.json annotations/captions_train2017.json "
         "annotations/panoptic_val2017.json annotations/person_keypoints_val2017.json annotations/image_info_test.json",
         "annotations/instances_train2017.json annotations/instances_val2017.json"),
        ("annotations/train.json annotations/test.json", "annotations/train.json annotations/test.json"),
        ("annotations/train.json annotations/val.json annotations/test.json",
         "annotations/train.json annotations/val.json"),
        ("train.json valid.json", "train.json valid.json"),
        ("train/_annotations.coco.json valid/_annotations.coco.json test/_annotations.coco.json",
         "train/_annotations.coco.json valid/_annotations.coco.json"),
        ("train/_annotations.coco.json test/_annotations.coco.json",
         "train/_annotations.coco.json test/_annotations.coco.json"),
        ("train/_annotations.coco.json", "train/_annotations.coco.json"),
        ("annotations.json", "annotations.json"),
        ("annotations/instances_default.json", "annotations/instances_default.json"),
    ],
)  # fmt: skip
def test_the_files_of_each_part(tmp_path: Path, files: str, expected: str) -> None:
    for file in files.split():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    found = coco_files(tmp_path)
    assert found is not None
    assert [str(f.relative_to(tmp_path)) for f in found if f] == expected.split()


def test_files_that_may_both_be_meant(tmp_path: Path) -> None:
    assert coco_files(tmp_path) is None
    for file in ("instances_train2014.json", "instances_train2017.json", "instances_val2017.json"):
        (tmp_path / file).touch()
    with pytest.raises(InputError, match=r"expected one .json for train .*, got instances_train2014.json, "):
        coco_files(tmp_path)


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/train_annotations.json", "train"),
        ("annotations/my.json", "images"),
        ("annotations/my.json", "."),
        ("train/_annotations.coco.json", "train"),
        ("a.json", "a"),
        ("a.json", "images"),
    ],
)
def test_where_images_are_looked_for(tmp_path: Path, file: str, images: str) -> None:
    images = [{**IMAGES[0], "file_name": "deep/b.jpg"}, IMAGES[1]]
    path = write(tmp_path, file, [annotation(1, 10, [0, 0, 2, 2])], images=images)
    for name in ("deep/b.jpg", "a.jpg"):
        (tmp_path / images / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).replace(tmp_path / images / name)
    part, _ = open_coco(path, None)
    assert [Path(part.images.title(i)) for i in range(2)] == [tmp_path / images / n for n in ("deep/b.jpg", "a.jpg")]


def test_missing_images_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", [])
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError) as error:
        open_coco(path, None)
    assert str(error.value) == (
        f"data: 1 of 2 images of {path} are missing, the first is a.jpg; looked for in {tmp_path}"
    )


GOOD = {"images": IMAGES, "annotations": [annotation(1, 10, [0, 0, 5, 5]), annotation(2, 20, [0, 0, 2, 2])],
        "categories": CATEGORIES}  # fmt: skip
RUNS = {"size": [10, 10], "counts": [0, 100]}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("images", None, "has no list of images"),
        ("annotations", {}, "has no list of annotations"),
        ("categories", [], "the list of categories is empty"),
        ("images.0.width", None, "an image or category has no width"),
        ("images.0.width", 0, "expected height and width of b.jpg in whole pixels, got (4, 0)"),
        ("images.0.height", "4", "expected height and width of b.jpg"),
        ("images.0.id", "20", "expected a whole number of up to 63 bits as image id, got '20'"),
        ("images.0.id", 2**63, "expected a whole number of up to 63 bits as image id"),
        ("images.0.id", 10, "has image 10 twice"),
        ("images.0.file_name", "a.jpg", "has image a.jpg twice"),
        ("categories.0.id", 3, "has category 3 twice"),
        ("categories.0.name", "cat", "has category cat twice"),
        ("categories.0.name", None, "an image or category has no name"),
        ("annotations.1.id", 1, "has annotation 1 twice"),
        ("annotations.1.image_id", None, "annotation 2 has no image_id"),
        ("annotations.1.image_id", 5, "annotation 2 is of image 5, which the file does not list"),
        ("annotations.1.category_id", None, "annotation 2 has no category_id"),
        ("annotations.1.category_id", [7], "annotation 2 is of category [7], which the file does not list"),
        ("annotations.1.bbox", None, "annotation 2 has no bbox"),
        ("annotations.1.bbox", [1, 2, 3], "annotation 2 has the bbox [1, 2, 3]; expected 4 finite numbers"),
        ("annotations.1.bbox", [1, 2, 3, float("nan")], "expected 4 finite numbers"),
        ("annotations.1.bbox", [1, 2, 3, "4"], "expected 4 finite numbers"),
        ("annotations.1.segmentation", RUNS, "annotation 2: expected the size of its image, [4, 6], got [10, 10]"),
        ("annotations.0.segmentation", {**RUNS, "counts": [0, 99]}, "expected run lengths of 100 pixels in all"),
        ("annotations.0.segmentation", {**RUNS, "counts": [-1, 101]}, "expected run lengths of 100"),
        ("annotations.0.segmentation", {**RUNS, "counts": "zz"}, "expected COCO's compressed run lengths, got 'zz'"),
        ("annotations.0.segmentation", {**RUNS, "counts": "PPP"}, "expected COCO's compressed run lengths, got 'PPP'"),
        ("annotations.0.segmentation", {**RUNS, "counts": ""}, "expected COCO's compressed run lengths, got ''"),
        ("annotations.0.segmentation", {**RUNS, "counts": "0"}, "expected run lengths of 100 pixels in all"),
        ("annotations.0.segmentation", "polygon", "expected polygons, or a size and counts"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, place: str, value: Any, message: str) -> None:
    raw = copy.deepcopy(GOOD)
    *way, last = (int(key) if key.isdigit() else key for key in place.split("."))
    inner: Any = raw
    for key in way:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    write(tmp_path, "a.json", [])
    (tmp_path / "a.json").write_text(json.dumps(raw))
    with pytest.raises(InputError) as error:
        open_coco(tmp_path / "a.json", None)
    assert str(error.value).startswith(f"data: {tmp_path / 'a.json'}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\xff"])
def test_files_that_are_not_cocos(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"a.json (cannot be read as JSON|has no list of images)"):
        open_coco(tmp_path / "a.json", None)


def test_parts_of_other_categories(tmp_path: Path) -> None:
    train = write(tmp_path / "a", "x.json", [annotation(1, 10, [0, 0, 2, 2])])
    for other, said in ((["wolf", "cat"], "7 is 'dog' in .* and 'wolf' in "), (["dog"], "3 is 'cat' in .*'none' in ")):
        categories = [{"id": number, "name": name} for number, name in zip((7, 3), other, strict=False)]
        test = write(tmp_path / "b", "x.json", [], categories=categories)
        with pytest.raises(InputError, match=f"category {said}"):
            open_coco(train, test)
