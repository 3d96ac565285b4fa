"""VOC's average precision by hand, and against plain loops over lines of text in the format of VOC's result files."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mec.data.dataset import FileDataset
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, ApMetric, Detections
from mec.evaluate.detection.datasets.annotations import Object as Annotated
from mec.evaluate.detection.metrics import detection_metrics, voc_average_precisions

Object = tuple[Sequence[float], int, bool]
"""Box x1, y1, x2, y2 from the outer edges, class, and whether it is difficult."""
Detection = tuple[Sequence[float], int, float]
"""Box, class and score."""
SQUARE = (10, 10, 50, 50)
"""40 x 40 pixels; 11, 11, 50, 50 in VOC's coordinates."""
NO_OBJECT = (300, 300, 340, 340)


def make_dataset(ap_metric: ApMetric, images: list[list[Object]], num_classes: int = 2) -> AnnotatedDataset:
    return AnnotatedDataset.from_objects(
        (
            Annotated(i, tuple(box), label, 1.0, is_difficult=difficult)
            for i, objects in enumerate(images)
            for box, label, difficult in objects
        ),
        name="VOC",
        images=FileDataset("VOC", Path(), [f"{i}.jpg" for i in range(len(images))]),
        image_ids=np.arange(len(images)),
        sizes=np.full((len(images), 2), 500),
        categories=["cat", "dog", "cow", "emu"][:num_classes],
        category_ids=np.arange(num_classes),
        ap_metric=ap_metric,
    )


def make_detections(images: list[list[Detection]]) -> list[Detections]:
    return [
        Detections(
            np.array([box for box, _, _ in image], np.float32).reshape(-1, 4),
            np.array([label for _, label, _ in image], np.int64),
            np.array([score for _, _, score in image], np.float32),
            None,
        )
        for image in images
    ]


def ap50_of_first_class(
    detections: list[list[Detection]], objects: list[list[Object]], ap_metric: ApMetric = "voc"
) -> float:
    return float(voc_average_precisions(make_dataset(ap_metric, objects), make_detections(detections))[0, 0])


OBJECTS: list[list[Object]] = [[(SQUARE, 0, False), ((100, 100, 140, 140), 0, True)], [((200, 10, 240, 50), 0, False)]]
DETECTIONS: list[list[Detection]] = [
    [((100, 100, 140, 140), 0, 0.95), (SQUARE, 0, 0.9), (SQUARE, 0, 0.8)],
    [(NO_OBJECT, 0, 0.7), ((200, 10, 240, 50), 0, 0.6)],
]


def test_area_under_the_curve_by_hand() -> None:
    """By descending score: a difficult object, a true positive, a duplicate, a false positive, a true positive. Of two
    counted objects, the recall is 0, 1/2, 1/2, 1/2, 1 and the precision 0 / 0, 1, 1/2, 1/3, 1/2: half of 1 and half of
    1/2."""
    assert ap50_of_first_class(DETECTIONS, OBJECTS, "voc") == pytest.approx(0.75)


def test_eleven_point_average_by_hand() -> None:
    """As above: 1 at recall 0, 0.1 ... 0.5, and 1/2 at 0.6 ... 1."""
    assert ap50_of_first_class(DETECTIONS, OBJECTS, "voc07") == pytest.approx((6 + 5 / 2) / 11)


@pytest.mark.parametrize(("num_true", "num_points"), [(3, 3), (4, 5), (7, 7), (10, 11)])
def test_recall_points_are_multiples_of_0_1_in_floating_point(num_true: int, num_points: int) -> None:
    """3 * 0.1 is slightly above 3 / 10, as are 6 * 0.1 and 7 * 0.1: the point is not reached."""
    objects: list[Object] = [((40 * i, 0, 40 * i + 30, 30), 0, False) for i in range(10)]
    detections = [[(box, 0, 0.9) for box, _, _ in objects[:num_true]]]
    assert ap50_of_first_class(detections, [objects], "voc07") == pytest.approx(num_points / 11)


@pytest.mark.parametrize(
    ("x2", "is_match"),
    # 20 x 40 of 40 x 40 pixels is 1/2, which is not above 1/2; 30.04 is rounded to 30.0, and 30.06 to 30.1
    [(30, False), (30.04, False), (30.06, True), (31, True)],
)
def test_iou_is_of_boxes_rounded_to_one_decimal(x2: float, is_match: bool) -> None:
    assert ap50_of_first_class([[((10, 10, x2, 50), 0, 0.9)]], [[(SQUARE, 0, False)]]) == is_match


def test_scores_are_rounded_to_three_decimals_and_ties_stay_in_order() -> None:
    """0.9001 and 0.9004 are both 0.900: the false positive stays first, so the precision is 1/2."""
    objects: list[list[Object]] = [[], [(SQUARE, 0, False)]]
    assert ap50_of_first_class([[(NO_OBJECT, 0, 0.9001)], [(SQUARE, 0, 0.9004)]], objects) == pytest.approx(0.5)
    assert ap50_of_first_class([[(NO_OBJECT, 0, 0.9001)], [(SQUARE, 0, 0.9006)]], objects) == 1


def test_a_detection_is_matched_to_the_object_of_largest_iou_even_if_it_is_taken() -> None:
    """12 to 52 overlaps 10 to 50 by 38/42 and 16 to 56 by 36/44: the second detection is a false positive."""
    objects: list[list[Object]] = [[(SQUARE, 0, False), ((16, 10, 56, 50), 0, False)]]
    detections = [[(SQUARE, 0, 0.9), ((12, 10, 52, 50), 0, 0.8)]]
    assert ap50_of_first_class(detections, objects) == pytest.approx(0.5)


def test_ten_thresholds_by_hand() -> None:
    """The IoU is 0.75, above 0.50, 0.55, 0.60, 0.65 and 0.70. Classes without counted objects are left out."""
    dataset = make_dataset("voc", [[(SQUARE, 1, False), (NO_OBJECT, 2, True)]], 4)
    detections = make_detections([[((10, 10, 40, 50), 1, 0.9), (NO_OBJECT, 2, 0.9), (NO_OBJECT, 3, 0.9)]])
    expected = {"AP": pytest.approx(0.5), "AP50": 1.0, "AP75": 0.0}
    metrics = detection_metrics(dataset, detections)
    assert metrics.overall == expected
    assert metrics.per_class == {"dog": expected}


def test_no_detections_and_no_objects() -> None:
    no_detections = make_detections([[], []])
    metrics = detection_metrics(make_dataset("voc07", OBJECTS), no_detections)
    assert metrics.overall == {"AP": 0, "AP50": 0, "AP75": 0}
    with pytest.raises(InputError, match=r"^data: no object to count in VOC$"):
        detection_metrics(make_dataset("voc07", [[(SQUARE, 0, True)], []]), no_detections)


def reference_average_precision(
    images: list[list[Object]], detections: list[Detections], c: int, threshold: float, eleven_points: bool
) -> float:
    """Compute the average precision from lines of text, as in VOC's result files, in plain loops."""
    lines = []
    for image, image_detections in enumerate(detections):
        for (x1, y1, x2, y2), label, score in zip(
            image_detections.boxes, image_detections.labels, image_detections.scores, strict=True
        ):
            if label == c:
                one = np.float32(1)
                lines.append(f"{image} {score:.3f} {x1 + one:.1f} {y1 + one:.1f} {x2:.1f} {y2:.1f}".split())
    lines.sort(key=lambda line: -float(line[1]))
    matched, curve, num_true, num_false = set(), [], 0, 0
    num_objects = sum(label == c and not difficult for objects in images for _, label, difficult in objects)
    for line in lines:
        left, top, right, bottom = map(float, line[2:])
        best_iou, best_object = 0.0, None
        for k, ((x1, y1, x2, y2), label, difficult) in enumerate(images[int(line[0])]):
            if label == c:
                width = min(right, x2) - max(left, x1 + 1) + 1
                height = min(bottom, y2) - max(top, y1 + 1) + 1
                intersection = width * height if width > 0 and height > 0 else 0.0
                union = (right - left + 1) * (bottom - top + 1) + (x2 - x1) * (y2 - y1) - intersection
                if intersection / union > best_iou:
                    best_iou, best_object = intersection / union, (line[0], k, difficult)
        if best_iou <= threshold or best_object is None:
            num_false += 1
        elif not best_object[2]:
            num_false, num_true = num_false + (best_object in matched), num_true + (best_object not in matched)
            matched.add(best_object)
        precision = num_true / (num_true + num_false) if num_true + num_false else 0.0
        curve.append((num_true / num_objects, precision))
    if eleven_points:
        return sum(max((p for r, p in curve if r >= i * 0.1), default=0.0) for i in range(11)) / 11
    recalls = sorted({r for r, _ in curve} | {0.0})
    return sum((high - low) * max(p for r, p in curve if r >= high) for low, high in pairwise(recalls))


@pytest.mark.parametrize(("seed", "ap_metric"), [(0, "voc07"), (1, "voc07"), (1, "voc"), (2, "voc")])
def test_average_precision_matches_plain_loops(seed: int, ap_metric: ApMetric) -> None:
    """Random objects of three classes, some difficult; detections near them, some duplicates, some of other classes."""
    rng = np.random.default_rng(seed)
    images: list[list[Object]] = []
    detections: list[list[Detection]] = []
    for _ in range(30):
        corners, sides = rng.integers(0, 100, (4, 2)), rng.integers(20, 120, (4, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1)
        images.append([(box, int(rng.integers(3)), bool(rng.random() < 0.25)) for box in boxes])
        detections.append([])
        for box, label, _ in images[-1]:
            for _ in range(rng.integers(4)):
                detected_label = int(rng.integers(3)) if rng.random() < 0.2 else label
                detected_box = box + rng.normal(0, rng.choice([0.5, 3, 8]), 4)
                detections[-1].append((detected_box, detected_label, round(rng.random(), 2)))
    converted = make_detections(detections)
    table = voc_average_precisions(make_dataset(ap_metric, images, 3), converted)
    for c in range(3):
        for t, threshold in enumerate(range(50, 100, 5)):
            expected = reference_average_precision(images, converted, c, threshold / 100, ap_metric == "voc07")
            assert table[c, t] == pytest.approx(expected, abs=1e-12)
    assert 0.05 < table.mean() < 0.95
