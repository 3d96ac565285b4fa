"""COCO's figures against pycocotools on detections that are made from real annotations, and by hand."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec.data.dataset import FileDataset
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections
from mec.evaluate.detection.metrics import COLUMNS, figures

pytest.importorskip("pycocotools")
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Json = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with NumPy 2


@pytest.fixture(scope="module")
def truth(real_data: Path) -> Json:
    path = real_data / "coco128/annotations/instances_val2017.json"
    if not path.exists():
        pytest.skip(f"no COCO images at {path}")
    content = json.loads(path.read_text())
    crowded = {a["image_id"] for a in content["annotations"] if a["iscrowd"]}
    content["images"].sort(key=lambda image: image["id"] not in crowded)
    content["images"] = content["images"][:50]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        if isinstance(annotation["segmentation"]["counts"], list):
            annotation["segmentation"] = masks.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
    return renumbered(content)


def renumbered(content: Json) -> Json:
    """From 0, since sets made by others have that; categories with a gap."""
    images = {image["id"]: i for i, image in enumerate(content["images"])}
    categories = {category["id"]: 3 * i for i, category in enumerate(content["categories"])}
    for image in content["images"]:
        image["id"] = images[image["id"]]
    for category in content["categories"]:
        category["id"] = categories[category["id"]]
    for number, annotation in enumerate(content["annotations"]):
        annotation["image_id"], annotation["category_id"] = (
            images[annotation["image_id"]],
            categories[annotation["category_id"]],
        )
        annotation["id"] = number + 1
    return content


def annotated_of(truth: Json, with_masks: bool = True) -> AnnotatedDataset:
    numbers = [image["id"] for image in truth["images"]]
    ids = [category["id"] for category in truth["categories"]]
    objects = sorted(truth["annotations"], key=lambda a: numbers.index(a["image_id"]))
    of = [numbers.index(a["image_id"]) for a in objects]
    boxes = np.array([a["bbox"] for a in objects], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    counts = [np.frombuffer(encoded(a), np.uint8) for a in objects] if with_masks else None
    crowd = np.array([a["iscrowd"] for a in objects], bool)
    return AnnotatedDataset(
        "val", FileDataset("val", Path(), [f"{i}.jpg" for i in numbers]), np.array(numbers),
        np.array([[p["height"], p["width"]] for p in truth["images"]]), [c["name"] for c in truth["categories"]],
        np.array(ids), "coco", np.searchsorted(of, np.arange(len(numbers) + 1)), boxes,
        np.array([ids.index(a["category_id"]) for a in objects], np.int64), np.array([a["area"] for a in objects]),
        crowd, np.zeros(len(objects), bool), ~crowd,
        *((np.concatenate(counts), np.cumsum([len(c) for c in counts])) if counts else (None, None)),
    )  # fmt: skip


def encoded(annotation: Json) -> bytes:
    counts = annotation["segmentation"]["counts"]
    return counts if isinstance(counts, bytes) else counts.encode()


def moved(segmentation: Json, pixels: int) -> Json:
    mask = np.roll(masks.decode(segmentation), (pixels, pixels), axis=(0, 1))
    return masks.encode(np.asfortranarray(mask))


def detections(truth: Json, kind: str) -> list[Json]:
    """Records, best first, by what is wrong with them."""
    records = []
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    ids = [category["id"] for category in truth["categories"]]
    for i, a in enumerate(objects):
        x, y, w, h = a["bbox"]
        record = {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": [x, y, w, h],
                  "score": float(np.float32(1 - i / len(objects) / 2)), "segmentation": a["segmentation"]}  # fmt: skip
        if kind == "shifted":
            by = i % 7
            record |= {"bbox": [x + by, y + by, w, h], "segmentation": moved(a["segmentation"], by)}
        if kind == "wrong":
            record["category_id"] = ids[(ids.index(a["category_id"]) + i % 2) % len(ids)]
        if kind == "tied":
            by = i % 5
            record |= {"bbox": [x + by, y + by, w, h], "segmentation": moved(a["segmentation"], by)}
            record["score"] = 0.5 + i % 3 / 4
        if kind != "dropped" or i % 3:
            records.append(record)
        if kind == "duplicated":
            records.append(record | {"score": float(np.float32(record["score"] - 1e-5))})
    return [] if kind == "none" else records


def found_of(records: list[Json], truth: Json, with_masks: bool = True) -> list[Detections]:
    ids = [category["id"] for category in truth["categories"]]
    found = []
    for image in truth["images"]:
        own = [r for r in records if r["image_id"] == image["id"]]
        own.sort(key=lambda r: -r["score"])
        boxes = np.array([r["bbox"] for r in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.append(Detections(boxes, np.array([ids.index(r["category_id"]) for r in own], np.int64),
                                np.array([r["score"] for r in own], np.float32),
                                [r["segmentation"] for r in own] if with_masks else None))  # fmt: skip
    return found


def reference(truth: Json, records: list[Json], of: str) -> tuple[list[float], dict[str, float]]:
    """The first six figures and AP of each class by pycocotools, which takes a mask's size from a box if it has one."""
    kept = [{k: v for k, v in r.items() if k != ("segmentation" if of == "bbox" else "bbox")} for r in records]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth | {"info": {}}
        coco.createIndex()
        results = coco.loadRes(kept) if kept else COCO()
        evaluation = COCOeval(coco, results, of)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    table = evaluation.eval["precision"][:, :, :, 0, -1]
    names = {c["id"]: c["name"] for c in truth["categories"]}
    each = {names[c]: table[:, :, k].mean() for k, c in enumerate(evaluation.params.catIds) if table[0, 0, k] > -1}
    return evaluation.stats[:6].tolist(), each


@pytest.mark.parametrize("kind", ["perfect", "shifted", "dropped", "duplicated", "wrong", "tied", "none"])
def test_as_pycocotools(truth: Json, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    records = detections(truth, kind)
    measured = figures(annotated_of(truth), found_of(records, truth))
    assert capfd.readouterr() == ("", "")
    assert len(measured.overall) == 12
    for of, prefix in (("bbox", ""), ("segm", "mask ")):
        overall, by_class = reference(truth, records, of)
        assert [measured.overall[prefix + c] for c in COLUMNS] == pytest.approx(overall, abs=1e-9)
        assert {name: row[f"{prefix}AP"] for name, row in measured.by_class.items()} == pytest.approx(
            by_class, abs=1e-9
        )
    if kind == "perfect":
        assert set(measured.overall.values()) == {1.0}
    if kind == "none":
        assert set(measured.overall.values()) == {0.0}
    if kind not in ("perfect", "none"):
        assert 0.1 < measured.overall["mask AP"] < 0.99


def small(*objects: Json, categories: int = 2) -> Json:
    """One image of 200 x 200 with objects of 40 x 40 (medium) at their corner."""
    return {
        "images": [{"id": 0, "height": 200, "width": 200}],
        "categories": [{"id": i, "name": "ab"[i]} for i in range(categories)],
        "annotations": [
            {"image_id": 0, "category_id": 0, "iscrowd": 0, "area": 1600.0, "bbox": [*o.pop("corner"), 40, 40]} | o
            for o in objects
        ],
    }


def at(*corners: tuple[float, float, float]) -> list[Detections]:
    """Detections of 40 x 40 at x, y with a score."""
    where = np.array(corners, np.float32).reshape(-1, 3)
    boxes = np.concatenate([where[:, :2], where[:, :2] + 40], axis=1)
    return [Detections(boxes, np.zeros(len(where), np.int64), where[:, 2], None)]


def test_by_hand() -> None:
    """Two objects; the best detection is right, the next is nowhere: precision 1 up to recall 1/2, 51 of 101 points."""
    annotated = annotated_of(small({"corner": (10, 10)}, {"corner": (110, 10)}), with_masks=False)
    measured = figures(annotated, at((10, 10, 0.9), (60, 140, 0.8)))
    half = pytest.approx(51 / 101)
    assert measured.overall == {"AP": half, "AP50": half, "AP75": half, "AP medium": half}
    assert measured.by_class == {"a": {"AP": half, "AP50": half, "AP75": half}}


def test_overlap_by_hand() -> None:
    """8 pixels aside: 32 x 40 of 48 x 40 is 2/3, above 0.50, 0.55, 0.60 and 0.65 of the ten."""
    measured = figures(annotated_of(small({"corner": (10, 10)}), with_masks=False), at((18, 10, 0.9)))
    assert (measured.overall["AP"], measured.overall["AP50"], measured.overall["AP75"]) == (pytest.approx(0.4), 1, 0)


def test_detections_within_a_crowd_are_not_wrong() -> None:
    crowd = {"corner": (100, 100), "iscrowd": 1, "area": 10_000.0}
    measured = figures(
        annotated_of(small({"corner": (10, 10)}, crowd), with_masks=False), at((100, 100, 0.9), (10, 10, 0.5))
    )
    assert measured.overall["AP"] == 1


def test_the_best_hundred_count() -> None:
    nowhere = [(100.0 + i % 10, 100.0, 0.9) for i in range(100)]
    annotated = annotated_of(small({"corner": (10, 10)}), with_masks=False)
    assert figures(annotated, at(*nowhere[:99], (10, 10, 0.5))).overall["AP"] == pytest.approx(1 / 100)
    assert figures(annotated, at(*nowhere, (10, 10, 0.5))).overall["AP"] == 0


def test_an_object_without_mask_cannot_be_found_by_its_mask() -> None:
    square = np.zeros((200, 200), np.uint8, order="F")
    square[10:50, 10:50] = 1
    objects = small({"corner": (10, 10), "segmentation": masks.encode(square)},
                    {"corner": (110, 10), "segmentation": {"counts": b""}})  # fmt: skip
    found = at((10, 10, 0.9), (110, 10, 0.8))[0]._replace(masks=[masks.encode(square), masks.encode(square * 0)])
    measured = figures(annotated_of(objects), [found]).overall
    assert measured["AP"] == 1
    assert measured["mask AP"] == pytest.approx(51 / 101)


def test_masks_are_measured_where_both_have_them(truth: Json) -> None:
    boxes_only = found_of(detections(truth, "perfect"), truth, with_masks=False)
    for measured in (
        figures(annotated_of(truth), boxes_only),
        figures(annotated_of(truth, with_masks=False), found_of(detections(truth, "perfect"), truth)),
    ):
        assert set(measured.overall) == set(COLUMNS)
        assert all(set(row) == {"AP", "AP50", "AP75"} for row in measured.by_class.values())


@pytest.mark.parametrize("objects", [[], [{"corner": (0, 0), "iscrowd": 1}]])
def test_nothing_to_count(objects: list[Json]) -> None:
    with pytest.raises(InputError, match=r"^data: no object to count in val$"):
        figures(annotated_of(small(*objects), with_masks=False), at((0, 0, 0.5)))
