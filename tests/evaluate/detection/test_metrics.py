"""COCO's metrics against pycocotools on detections derived from real annotations, and by hand."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec.data.dataset import FileDataset
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, Object
from mec.evaluate.detection.metrics import COCO_METRICS, detection_metrics

pytest.importorskip("pycocotools")
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Json = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with NumPy 2


@pytest.fixture(scope="module")
def ground_truth(real_data: Path) -> Json:
    """30 images of COCO128, including all with crowds, with all masks in compressed RLE."""
    path = real_data / "coco128/annotations/instances_val2017.json"
    if not path.exists():
        pytest.skip(f"no COCO images at {path}")
    content = json.loads(path.read_text())
    crowd_images = {a["image_id"] for a in content["annotations"] if a["iscrowd"]}
    content["images"].sort(key=lambda image: image["id"] not in crowd_images)
    content["images"] = content["images"][:30]
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in sizes]
    for annotation in content["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation["counts"], list):
            annotation["segmentation"] = coco_mask.frPyObjects(segmentation, *sizes[annotation["image_id"]])
        else:
            segmentation["counts"] = segmentation["counts"].encode()
    return renumber(content)


def renumber(content: Json) -> Json:
    """Make image ids start at 0, as in datasets of other sources, and category ids have gaps."""
    images = {image["id"]: i for i, image in enumerate(content["images"])}
    categories = {category["id"]: 3 * i for i, category in enumerate(content["categories"])}
    for image in content["images"]:
        image["id"] = images[image["id"]]
    for category in content["categories"]:
        category["id"] = categories[category["id"]]
    for i, annotation in enumerate(content["annotations"]):
        annotation["image_id"] = images[annotation["image_id"]]
        annotation["category_id"] = categories[annotation["category_id"]]
        annotation["id"] = i + 1
    return content


def make_dataset(ground_truth: Json, with_masks: bool = True) -> AnnotatedDataset:
    image_ids = [image["id"] for image in ground_truth["images"]]
    category_ids = [category["id"] for category in ground_truth["categories"]]
    annotations = sorted(ground_truth["annotations"], key=lambda a: image_ids.index(a["image_id"]))
    objects = []
    for a in annotations:
        (x, y, width, height), image = a["bbox"], image_ids.index(a["image_id"])
        label, counts = category_ids.index(a["category_id"]), a["segmentation"]["counts"] if with_masks else b""
        crowd = bool(a["iscrowd"])
        objects.append(Object(image, (x, y, x + width, y + height), label, a["area"], crowd, rle_counts=counts))
    return AnnotatedDataset.from_objects(
        objects,
        name="val",
        images=FileDataset("val", Path(), [f"{i}.jpg" for i in image_ids]),
        image_ids=np.array(image_ids),
        sizes=np.array([[image["height"], image["width"]] for image in ground_truth["images"]]),
        categories=[category["name"] for category in ground_truth["categories"]],
        category_ids=np.array(category_ids),
        ap_metric="coco",
    )


def shift_mask(segmentation: Json, pixels: int) -> Json:
    mask = np.roll(coco_mask.decode(segmentation), (pixels, pixels), axis=(0, 1))
    return coco_mask.encode(np.asfortranarray(mask))


def derive_results(ground_truth: Json, kind: str) -> list[Json]:
    """Return the annotations as results, by descending score: "perfect", or with errors of each kind ("errors":
    shifted, missing, duplicated, of another class), or shifted with "tied scores"; or "none"."""
    results = []
    annotations = [a for a in ground_truth["annotations"] if not a["iscrowd"] and kind != "none"]
    category_ids = [category["id"] for category in ground_truth["categories"]]
    for i, a in enumerate(annotations):
        x, y, w, h = a["bbox"]
        result = {
            "image_id": a["image_id"], "category_id": a["category_id"], "bbox": [x, y, w, h],
            "score": float(np.float32(1 - i / len(annotations) / 2)), "segmentation": a["segmentation"],
        }  # fmt: skip
        if kind != "perfect":
            shift = i % 7
            result |= {"bbox": [x + shift, y + shift, w, h], "segmentation": shift_mask(a["segmentation"], shift)}
        if kind == "tied scores":
            result["score"] = 0.5 + i % 3 / 4
        if kind == "errors":
            if i % 5 == 1:
                continue
            result["category_id"] = category_ids[(category_ids.index(a["category_id"]) + (i % 3 == 2)) % 80]
            if i % 2:
                results.append(result | {"score": float(np.float32(result["score"] - 1e-5))})
        results.append(result)
    return results


def to_detections(results: list[Json], ground_truth: Json, with_masks: bool = True) -> list[Detections]:
    category_ids = [category["id"] for category in ground_truth["categories"]]
    detections = []
    for image in ground_truth["images"]:
        own = [r for r in results if r["image_id"] == image["id"]]
        own.sort(key=lambda r: -r["score"])
        boxes = np.array([r["bbox"] for r in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([category_ids.index(r["category_id"]) for r in own], np.int64)
        scores = np.array([r["score"] for r in own], np.float32)
        detections.append(Detections(boxes, labels, scores, [r["segmentation"] for r in own] if with_masks else None))
    return detections


def pycocotools_metrics(ground_truth: Json, results: list[Json], iou_type: str) -> tuple[list[float], dict[str, float]]:
    """Return pycocotools' first six metrics, and the AP of each class."""
    # pycocotools takes the size of a mask from the box if there is one
    excluded = "segmentation" if iou_type == "bbox" else "bbox"
    results = [{key: value for key, value in result.items() if key != excluded} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = ground_truth | {"info": {}}
        coco.createIndex()
        loaded = coco.loadRes(results) if results else COCO()
        evaluation = COCOeval(coco, loaded, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    table = evaluation.eval["precision"][:, :, :, 0, -1]
    names = {c["id"]: c["name"] for c in ground_truth["categories"]}
    per_class = {names[c]: table[:, :, k].mean() for k, c in enumerate(evaluation.params.catIds) if table[0, 0, k] > -1}
    return evaluation.stats[:6].tolist(), per_class


@pytest.mark.parametrize("kind", ["perfect", "errors", "tied scores", "none"])
def test_metrics_match_pycocotools(ground_truth: Json, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    results = derive_results(ground_truth, kind)
    metrics = detection_metrics(make_dataset(ground_truth), to_detections(results, ground_truth))
    assert capfd.readouterr() == ("", "")
    assert len(metrics.overall) == 12
    for iou_type, prefix in (("bbox", ""), ("segm", "mask ")):
        overall, per_class = pycocotools_metrics(ground_truth, results, iou_type)
        assert [metrics.overall[prefix + name] for name in COCO_METRICS] == pytest.approx(overall, abs=1e-9)
        ours = {name: class_metrics[f"{prefix}AP"] for name, class_metrics in metrics.per_class.items()}
        assert ours == pytest.approx(per_class, abs=1e-9)
    if kind in ("perfect", "none"):
        assert set(metrics.overall.values()) == {float(kind == "perfect")}
    else:
        assert 0.1 < metrics.overall["mask AP"] < 0.99


def one_image(*annotations: Json, num_classes: int = 2) -> Json:
    """Return an image of 200 x 200 with objects of 40 x 40 (medium) at ``corner``, their x and y."""
    return {
        "images": [{"id": 0, "height": 200, "width": 200}],
        "categories": [{"id": i, "name": "ab"[i]} for i in range(num_classes)],
        "annotations": [
            {"image_id": 0, "category_id": 0, "iscrowd": 0, "area": 1600.0, "bbox": [*a.pop("corner"), 40, 40]} | a
            for a in annotations
        ],
    }


def detections_at(*corners_and_scores: tuple[float, float, float]) -> list[Detections]:
    """Return detections of 40 x 40 at x, y with a score."""
    values = np.array(corners_and_scores, np.float32).reshape(-1, 3)
    boxes = np.concatenate([values[:, :2], values[:, :2] + 40], axis=1)
    return [Detections(boxes, np.zeros(len(values), np.int64), values[:, 2], None)]


def test_average_precision_by_hand() -> None:
    """Two objects, a true positive, then a false positive: precision 1 up to recall 1/2, which is 51 of 101 points."""
    dataset = make_dataset(one_image({"corner": (10, 10)}, {"corner": (110, 10)}), with_masks=False)
    metrics = detection_metrics(dataset, detections_at((10, 10, 0.9), (60, 140, 0.8)))
    half = pytest.approx(51 / 101)
    assert metrics.overall == {"AP": half, "AP50": half, "AP75": half, "AP medium": half}
    assert metrics.per_class == {"a": {"AP": half, "AP50": half, "AP75": half}}


def test_iou_by_hand() -> None:
    """Shifted by 8 pixels, the IoU is 32 x 40 / (48 x 40) = 2/3, above four of the ten thresholds: 0.50 to 0.65."""
    dataset = make_dataset(one_image({"corner": (10, 10)}), with_masks=False)
    overall = detection_metrics(dataset, detections_at((18, 10, 0.9))).overall
    assert (overall["AP"], overall["AP50"], overall["AP75"]) == (pytest.approx(0.4), 1, 0)


def test_detections_within_a_crowd_are_not_false_positives() -> None:
    crowd = {"corner": (100, 100), "iscrowd": 1, "area": 10_000.0}
    dataset = make_dataset(one_image({"corner": (10, 10)}, crowd), with_masks=False)
    assert detection_metrics(dataset, detections_at((100, 100, 0.9), (10, 10, 0.5))).overall["AP"] == 1


def test_only_the_hundred_detections_of_highest_score_count() -> None:
    false_positives = [(100.0 + i % 10, 100.0, 0.9) for i in range(100)]
    dataset = make_dataset(one_image({"corner": (10, 10)}), with_masks=False)
    hundredth = detection_metrics(dataset, detections_at(*false_positives[:99], (10, 10, 0.5)))
    assert hundredth.overall["AP"] == pytest.approx(1 / 100)
    assert detection_metrics(dataset, detections_at(*false_positives, (10, 10, 0.5))).overall["AP"] == 0


def test_an_object_without_a_mask_is_not_matched_by_mask() -> None:
    square = np.zeros((200, 200), np.uint8, order="F")
    square[10:50, 10:50] = 1
    ground_truth = one_image(
        {"corner": (10, 10), "segmentation": coco_mask.encode(square)},
        {"corner": (110, 10), "segmentation": {"counts": b""}},
    )
    masks = [coco_mask.encode(square), coco_mask.encode(square * 0)]
    detections = detections_at((10, 10, 0.9), (110, 10, 0.8))[0]._replace(masks=masks)
    overall = detection_metrics(make_dataset(ground_truth), [detections]).overall
    assert overall["AP"] == 1
    assert overall["mask AP"] == pytest.approx(51 / 101)


def test_mask_metrics_need_masks_in_the_dataset_and_in_the_detections(ground_truth: Json) -> None:
    results = derive_results(ground_truth, "perfect")
    boxes_only = to_detections(results, ground_truth, with_masks=False)
    for metrics in (
        detection_metrics(make_dataset(ground_truth), boxes_only),
        detection_metrics(make_dataset(ground_truth, with_masks=False), to_detections(results, ground_truth)),
    ):
        assert set(metrics.overall) == set(COCO_METRICS)
        assert all(set(class_metrics) == {"AP", "AP50", "AP75"} for class_metrics in metrics.per_class.values())


@pytest.mark.parametrize("annotations", [[], [{"corner": (0, 0), "iscrowd": 1}]])
def test_a_dataset_without_objects_to_count_is_rejected(annotations: list[Json]) -> None:
    with pytest.raises(InputError, match=r"^data: no object to count in val$"):
        detection_metrics(make_dataset(one_image(*annotations), with_masks=False), detections_at((0, 0, 0.5)))
