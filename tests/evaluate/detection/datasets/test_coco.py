import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset
from mec.evaluate.detection.datasets.coco import coco_files, open_coco

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
IMAGES = [
    {"id": 20, "file_name": "b.jpg", "height": 4, "width": 6},
    {"id": 10, "file_name": "a.jpg", "height": 10, "width": 10},
]
SQUARE = [2, 3, 5, 3, 5, 7, 2, 7]
"""Polygon of columns 2 to 4, rows 3 to 6."""


def make_annotation(annotation_id: int, image_id: int, box: list[float], **fields: Any) -> dict[str, Any]:
    return {"id": annotation_id, "image_id": image_id, "category_id": 3, "bbox": box, "iscrowd": 0, **fields}


def write_json(folder: Path, file: str, annotations: list[dict[str, Any]], **fields: Any) -> Path:
    """Write a JSON file, with empty image files beside it."""
    content = {"images": IMAGES, "annotations": annotations, "categories": CATEGORIES, **fields}
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for image in content["images"]:
        if "file_name" in image:
            (path.parent / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / image["file_name"]).touch()
    return path


def decode_target_masks(dataset: AnnotatedDataset) -> list[NDArray[np.uint8]]:
    return [coco_mask.decode(mask) for i in range(len(dataset)) for mask in dataset.targets(i).masks or []]


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_annotations_match_pycocotools(real_data: Path, split: str) -> None:
    pycocotools_coco = pytest.importorskip("pycocotools.coco")
    folder = real_data / "coco128"
    if not folder.is_dir():
        pytest.skip(f"no coco128 in {real_data}")
    path = folder / "annotations" / f"instances_{split}2017.json"
    reference = pycocotools_coco.COCO(str(path))
    dataset, _ = open_coco(path, None)
    assert dataset.image_ids.tolist() == [image["id"] for image in reference.dataset["images"]]
    assert dataset.category_ids.tolist() == sorted(reference.cats)
    assert dataset.categories == [reference.cats[i]["name"] for i in sorted(reference.cats)]
    counts = (len(dataset), len(dataset.boxes), dataset.is_crowd.sum())
    assert counts == {"train": (128, 939, 10), "val": (100, 712, 5)}[split]
    assert dataset.images.title(0) == str(folder / f"{split}2017" / dataset.images.names[0])
    assert dataset.rle_counts is not None
    for i, image_id in enumerate(dataset.image_ids.tolist()):
        annotations, objects = reference.imgToAnns[image_id], slice(*dataset.offsets[i : i + 2])
        boxes = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.allclose(dataset.boxes[objects], boxes)
        assert dataset.category_ids[dataset.labels[objects]].tolist() == [a["category_id"] for a in annotations]
        assert dataset.areas[objects].tolist() == [a["area"] for a in annotations]
        assert dataset.is_crowd[objects].tolist() == [a["iscrowd"] for a in annotations]
        for span, annotation in zip(dataset.rle_spans[objects], annotations, strict=True):
            counts = reference.annToRLE(annotation)["counts"]
            assert dataset.rle_counts[slice(*span)].tobytes() == (
                counts.encode() if isinstance(counts, str) else counts
            )
    assert not dataset.is_difficult.any()
    assert dataset.is_target.tolist() == (~dataset.is_crowd).tolist()


def test_every_format_of_masks(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[3:7, 2:5] = 1
    runs = [3 + 2 * 10, 4, 6, 4, 6, 4, 100 - 47]  # in column-major order
    compressed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    same_mask = [[SQUARE], {"size": [10, 10], "counts": runs}, {"size": [10, 10], "counts": compressed}]
    # the last two are no polygons
    two_polygons = [[0, 0, 1, 0, 1, 10, 0, 10], [9, 0, 10, 0, 10, 10, 9, 10], [1, 1, 5, 5], [1, 1, 5, 5, 7, 7, 8]]
    no_mask = [
        None, [], [[]], [[1, 1, 5, 5]], [[1, 1, 5, 5, 7, 7, 8]], [[1e9, 0, 1e9, 5, 0, 5]], [[50, 50, 60, 50, 60, 60]],
    ]  # fmt: skip
    segmentations = [*same_mask, two_polygons, *no_mask]
    annotations = [make_annotation(i, 10, [1, 1, 6, 6], segmentation=s) for i, s in enumerate(segmentations, 1)]
    annotations.append(make_annotation(99, 10, [1, 1, 6, 6]))
    dataset, _ = open_coco(write_json(tmp_path, "a.json", annotations), None)
    assert dataset.is_target.tolist() == [True] * 4 + [False] * 8
    edges = np.zeros((10, 10), np.uint8)
    edges[:, [0, 9]] = 1
    for decoded, expected in zip(decode_target_masks(dataset), [mask, mask, mask, edges], strict=True):
        np.testing.assert_array_equal(decoded, expected)
    assert dataset.areas.tolist() == [12, 12, 12, 20] + [36] * 8, "of the mask, otherwise of the box"


def test_objects_are_sorted_by_image_and_labels_by_category_id(tmp_path: Path) -> None:
    annotations = [
        make_annotation(5, 10, [0, 0, 4, 5], area=3.5),
        make_annotation(4, 20, [1, 1, 2, 2], category_id=7),
        make_annotation(3, 10, [2, 2, 1, 1], iscrowd=1),
    ]
    dataset, _ = open_coco(write_json(tmp_path, "a.json", annotations), None)
    assert dataset.image_ids.tolist() == [20, 10]
    assert dataset.sizes.tolist() == [[4, 6], [10, 10]]
    assert dataset.offsets.tolist() == [0, 1, 3]
    assert (dataset.categories, dataset.category_ids.tolist()) == (["cat", "dog"], [3, 7])
    assert dataset.labels.tolist() == [1, 0, 0]
    assert dataset.boxes.tolist() == [[1, 1, 3, 3], [0, 0, 4, 5], [2, 2, 3, 3]]
    assert dataset.areas.tolist() == [4, 3.5, 1]
    assert dataset.is_crowd.tolist() == [False, False, True]
    assert (dataset.ap_metric, dataset.has_masks) == ("coco", False)


def test_boxes_without_area_in_the_image_are_no_targets(tmp_path: Path) -> None:
    boxes = [[0, 0, 5, 5], [-3, 2, 5, 20], [10, 0, 5, 5], [2, 2, 0, 5], [5, 5, -2, 3], [-9, 0, 9, 9], [3, 3, 1e-9, 4]]
    annotations = [make_annotation(i, 10, box) for i, box in enumerate(boxes, 1)]
    dataset, _ = open_coco(write_json(tmp_path, "a.json", annotations), None)
    assert dataset.is_target.tolist() == [True, True, False, False, False, False, False]
    assert dataset.targets(1).boxes.tolist() == [[0, 0, 5, 5], [0, 2, 2, 10]]
    assert dataset.boxes[1].tolist() == [-3, 2, 2, 22], "evaluated as annotated"


def test_masks_in_one_split_only_are_not_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    annotations = [make_annotation(1, 10, [0, 0, 9, 9], segmentation=[SQUARE], area=12)]
    with_masks = write_json(tmp_path / "a", "x.json", annotations)
    crowd_mask = {"size": [10, 10], "counts": [0, 100]}
    annotations = [
        make_annotation(1, 10, [0, 0, 9, 9]),
        make_annotation(2, 10, [0, 0, 10, 10], iscrowd=1, segmentation=crowd_mask),
    ]
    without_masks = write_json(tmp_path / "b", "x.json", annotations)
    for files in ((with_masks, without_masks), (without_masks, with_masks)):
        for dataset in open_coco(*files):
            assert dataset is not None
            assert not dataset.has_masks
            assert dataset.is_target.sum() == 1
        assert "a/x.json has masks and b/x.json has none: masks are not used" in capfd.readouterr().err


def test_roboflows_supercategory_may_share_the_name_of_a_class(tmp_path: Path) -> None:
    category = {"id": 1, "name": "dog", "supercategory": "dog"}
    for supercategory, expected in (("dog", ["dog"]), ("animals", ["animals", "dog"])):
        categories = [{"id": 0, "name": supercategory, "supercategory": "none"}, category]
        annotation = make_annotation(1, 10, [0, 0, 2, 2], category_id=1)
        dataset, _ = open_coco(write_json(tmp_path, "a.json", [annotation], categories=categories), None)
        assert [dataset.categories[i] for i in dataset.labels] == ["dog"]
        assert dataset.categories == expected


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
def test_files_of_the_splits_are_found_by_name(tmp_path: Path, files: str, expected: str) -> None:
    for file in files.split():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    splits = coco_files(tmp_path)
    assert splits is not None
    assert [str(f.relative_to(tmp_path)) for f in splits if f] == expected.split()


def test_ambiguous_files_are_rejected(tmp_path: Path) -> None:
    assert coco_files(tmp_path) is None
    for file in ("instances_train2014.json", "instances_train2017.json", "instances_val2017.json"):
        (tmp_path / file).touch()
    with pytest.raises(InputError, match=r"expected one .json for train .*, got instances_train2014.json, "):
        coco_files(tmp_path)


@pytest.mark.parametrize(
    ("file", "image_folder"),
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
def test_folders_that_are_searched_for_images(tmp_path: Path, file: str, image_folder: str) -> None:
    images = [{**IMAGES[0], "file_name": "deep/b.jpg"}, IMAGES[1]]
    path = write_json(tmp_path, file, [make_annotation(1, 10, [0, 0, 2, 2])], images=images)
    expected = [tmp_path / image_folder / name for name in ("deep/b.jpg", "a.jpg")]
    for name, target in zip(("deep/b.jpg", "a.jpg"), expected, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).replace(target)
    dataset, _ = open_coco(path, None)
    assert [Path(dataset.images.title(i)) for i in range(2)] == expected


def test_missing_images_are_counted(tmp_path: Path) -> None:
    path = write_json(tmp_path, "a.json", [])
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError) as error:
        open_coco(path, None)
    assert str(error.value) == f"data: 1 of 2 images of {path} are missing, the first is a.jpg; searched {tmp_path}"


VALID = {
    "images": IMAGES,
    "annotations": [make_annotation(1, 10, [0, 0, 5, 5]), make_annotation(2, 20, [0, 0, 2, 2])],
    "categories": CATEGORIES,
}
RLE = {"size": [10, 10], "counts": [0, 100]}


@pytest.mark.parametrize(
    ("key_path", "value", "named"),
    [
        ("images", None, "images"),
        ("annotations", {}, "annotations"),
        ("categories", [], "categories"),
        ("images.0.width", None, "width of b.jpg"),
        ("images.0.height", "4", "height and width of b.jpg"),
        ("images.0.id", "2a", "image id, got '2a'"),
        ("images.0.id", 10, "image 10 twice"),
        ("images.0.file_name", "a.jpg", "image a.jpg twice"),
        ("categories.0.id", 3, "category 3 twice"),
        ("categories.0.name", None, "name for every category"),
        ("annotations.1.image_id", 5, "annotation 2 is of image 5"),
        ("annotations.1.category_id", [7], "annotation 2 is of category [7]"),
        ("annotations.1.image_id", "5", "annotation 2 is of image 5"),
        ("annotations.1.iscrowd", "no", "annotation 2 has the iscrowd 'no'; expected 0 or 1"),
        ("annotations.1.bbox", [1, 2, 3], "annotation 2 has the bbox [1, 2, 3]"),
        ("annotations.1.bbox", [1, 2, 3, float("nan")], "annotation 2 has the bbox"),
        ("annotations.1.segmentation", RLE, "annotation 2: expected the size of its image, [4, 6]"),
        ("annotations.0.segmentation", {**RLE, "counts": [0, 99]}, "run lengths of 100 pixels"),
        ("annotations.0.segmentation", {**RLE, "counts": [-1, 101]}, "run lengths of 100"),
        ("annotations.0.segmentation", {**RLE, "counts": "PPP"}, "RLE counts, got 'PPP'"),
        ("annotations.0.segmentation", {**RLE, "counts": ""}, "RLE counts, got ''"),
        ("annotations.0.segmentation", {**RLE, "counts": "0"}, "run lengths of 100 pixels"),
        ("annotations.0.segmentation", "polygon", "polygons, or RLE"),
    ],
)
def test_invalid_annotations_are_rejected_in_one_line(tmp_path: Path, key_path: str, value: Any, named: str) -> None:
    content = copy.deepcopy(VALID)
    *keys, last_key = (int(key) if key.isdigit() else key for key in key_path.split("."))
    parent: Any = content
    for key in keys:
        parent = parent[key]
    parent[last_key] = value
    if value is None:
        del parent[last_key]
    path = write_json(tmp_path, "a.json", [])
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        open_coco(path, None)
    assert str(error.value).startswith(f"data: {path}")
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("id_type", [str, float])
def test_ids_that_are_text_or_floats_are_read_as_integers(tmp_path: Path, id_type: type) -> None:
    """Exporters write the ids of some lists as text; pycocotools then drops the annotations."""
    annotations = [make_annotation(1, 10, [0, 0, 4, 5]), make_annotation(2, 20, [1, 1, 2, 2])]
    expected, _ = open_coco(write_json(tmp_path / "a", "x.json", annotations), None)
    text_ids = [{**a, "image_id": id_type(a["image_id"])} for a in annotations]
    images = [{**image, "id": id_type(image["id"])} for image in IMAGES]
    categories = [{**category, "id": id_type(category["id"])} for category in CATEGORIES]
    for fields in ({}, {"images": images}, {"images": images, "categories": categories}):
        dataset, _ = open_coco(write_json(tmp_path / "b", "x.json", text_ids, **fields), None)
        for name in ("image_ids", "offsets", "labels", "category_ids"):
            assert getattr(dataset, name).tolist() == getattr(expected, name).tolist()


def test_category_ids_may_start_at_0(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    annotations = [make_annotation(i, 10, [0, 0, 4, 5], category_id=i) for i in (0, 1)]
    dataset, _ = open_coco(write_json(tmp_path, "a.json", annotations, categories=categories), None)
    assert [dataset.categories[i] for i in dataset.labels] == ["cat", "dog"]
    assert dataset.category_ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, False), (1, True), ("0", False), ("1", True), (False, False), (True, True), (None, False)],
)
def test_iscrowd_may_be_a_number_text_or_absent(tmp_path: Path, value: Any, expected: bool) -> None:
    path = write_json(tmp_path, "a.json", [make_annotation(1, 10, [0, 0, 4, 5]) | {"iscrowd": value}])
    assert open_coco(path, None)[0].is_crowd.tolist() == [expected]


def test_files_of_other_formats_are_rejected(tmp_path: Path) -> None:
    for text in ("", "{", "[1, 2]", "\xff"):
        (tmp_path / "a.json").write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match=r"a.json (cannot be read as JSON|has no list of images|is not text in)"):
            open_coco(tmp_path / "a.json", None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = write_json(tmp_path, "a.json", [make_annotation(1, 10, [0, 0, 2, 2])])
    path.write_text(path.read_text(), encoding=encoding)
    assert len(open_coco(path, None)[0].boxes) == 1


def test_splits_of_different_categories_are_rejected(tmp_path: Path) -> None:
    train = write_json(tmp_path / "a", "x.json", [make_annotation(1, 10, [0, 0, 2, 2])])
    for names, message in (
        (["wolf", "cat"], "7 is 'dog' in .* and 'wolf' in "),
        (["dog"], "3 is 'cat' in .*'none' in "),
    ):
        categories = [{"id": i, "name": name} for i, name in zip((7, 3), names, strict=False)]
        test = write_json(tmp_path / "b", "x.json", [], categories=categories)
        with pytest.raises(InputError, match=f"category {message}"):
            open_coco(train, test)
