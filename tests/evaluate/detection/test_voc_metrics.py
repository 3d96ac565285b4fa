"""VOC's figures by hand, and against loops over text as its result files have it."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mec.data.dataset import FileDataset
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, Rules
from mec.evaluate.detection.metrics import figures
from mec.evaluate.detection.voc_metrics import precisions

Object = tuple[Sequence[float], int, bool]
"""x1, y1, x2, y2 from the outer edges; class; difficult."""
FrameObjects = tuple[Sequence[float], int, float]
SQUARE = (10, 10, 50, 50)
"""40 x 40 pixels, VOC's 11, 11, 50, 50."""
NOWHERE = (300, 300, 340, 340)


def scene(rules: Rules, images: list[list[Object]], categories: int = 2) -> AnnotatedDataset:
    flat = [one for objects in images for one in objects]
    none, n = np.zeros(len(flat), bool), len(images)
    return AnnotatedDataset(
        "VOC", FileDataset("VOC", Path(), [f"{i}.jpg" for i in range(n)]), np.arange(n), np.full((n, 2), 500),
        ["cat", "dog", "cow", "emu"][:categories], np.arange(categories), rules,
        np.cumsum([0, *map(len, images)]), np.array([o[0] for o in flat], float).reshape(-1, 4),
        np.array([o[1] for o in flat], np.int64), np.ones(len(flat)), none, np.array([o[2] for o in flat], bool), ~none,
    )  # fmt: skip


def found_in(images: list[list[FrameObjects]]) -> list[Detections]:
    return [
        Detections(
            np.array([f[0] for f in own], np.float32).reshape(-1, 4),
            np.array([f[1] for f in own], np.int64),
            np.array([f[2] for f in own], np.float32),
            None,
        )
        for own in images
    ]


def precision_of(found: list[list[FrameObjects]], objects: list[list[Object]], rules: Rules = "voc") -> float:
    """Of the first class at an overlap above 0.5."""
    return float(precisions(scene(rules, objects), found_in(found))[0, 0])


OBJECTS: list[list[Object]] = [[(SQUARE, 0, False), ((100, 100, 140, 140), 0, True)], [((200, 10, 240, 50), 0, False)]]
FOUND: list[list[FrameObjects]] = [
    [((100, 100, 140, 140), 0, 0.95), (SQUARE, 0, 0.9), (SQUARE, 0, 0.8)],
    [(NOWHERE, 0, 0.7), ((200, 10, 240, 50), 0, 0.6)],
]


def test_area_by_hand() -> None:
    """Best first: on a difficult object, right, a second of the same, nowhere, right. Of two objects that count the
    recall is 0, 1/2, 1/2, 1/2, 1 and the precision 0 (of none), 1, 1/2, 1/3, 1/2: half of 1 and half of 1/2."""
    assert precision_of(FOUND, OBJECTS, "voc") == pytest.approx(0.75)


def test_eleven_points_by_hand() -> None:
    """As above: 1 at recall 0, 0.1 ... 0.5, and 1/2 at 0.6 ... 1."""
    assert precision_of(FOUND, OBJECTS, "voc07") == pytest.approx((6 + 5 / 2) / 11)


@pytest.mark.parametrize(("right", "points"), [(3, 3), (4, 5), (6, 6), (7, 7), (10, 11)])
def test_points_of_recall_are_sums_of_tenths(right: int, points: int) -> None:
    """3 x 0.1 is a little above 3 / 10, as are 6 and 7 tenths: the point is not reached."""
    objects: list[Object] = [((40 * i, 0, 40 * i + 30, 30), 0, False) for i in range(10)]
    found = [[(box, 0, 0.9) for box, _, _ in objects[:right]]]
    assert precision_of(found, [objects], "voc07") == pytest.approx(points / 11)


@pytest.mark.parametrize(
    ("x2", "right"),
    # 20 x 40 of 40 x 40 pixels is 1/2, which is not above 1/2; 30.04 is written 30.0, and 30.06 is written 30.1
    [(30, False), (30.04, False), (30.06, True), (31, True)],
)
def test_overlap_is_of_boxes_with_one_decimal(x2: float, right: bool) -> None:
    assert precision_of([[((10, 10, x2, 50), 0, 0.9)]], [[(SQUARE, 0, False)]]) == right


def test_scores_have_three_decimals_and_equal_ones_stay_in_order() -> None:
    """0.9001 and 0.9004 are both 0.900: the wrong one stays first, so the precision is 1/2."""
    objects: list[list[Object]] = [[], [(SQUARE, 0, False)]]
    assert precision_of([[(NOWHERE, 0, 0.9001)], [(SQUARE, 0, 0.9004)]], objects) == pytest.approx(0.5)
    assert precision_of([[(NOWHERE, 0, 0.9001)], [(SQUARE, 0, 0.9006)]], objects) == 1


def test_a_detection_goes_to_what_it_overlaps_most_even_if_that_is_taken() -> None:
    """12 to 52 overlaps 10 to 50 by 38/42 and 16 to 56 by 36/44: the second detection is wrong, not the other's."""
    objects: list[list[Object]] = [[(SQUARE, 0, False), ((16, 10, 56, 50), 0, False)]]
    assert precision_of([[(SQUARE, 0, 0.9), ((12, 10, 52, 50), 0, 0.8)]], objects) == pytest.approx(0.5)


def test_ten_thresholds_by_hand() -> None:
    """30 x 40 of 40 x 40 is 0.75: above 0.50, 0.55, 0.60, 0.65 and 0.70. Only classes with objects that count do."""
    annotated = scene("voc", [[(SQUARE, 1, False), (NOWHERE, 2, True)]], 4)
    found = found_in([[((10, 10, 40, 50), 1, 0.9), (NOWHERE, 2, 0.9), (NOWHERE, 3, 0.9)]])
    expected = {"AP": pytest.approx(0.5), "AP50": 1.0, "AP75": 0.0}
    measured = figures(annotated, found)
    assert measured.overall == expected
    assert measured.by_class == {"dog": expected}


def test_nothing_found_and_nothing_to_find() -> None:
    nothing = found_in([[], []])
    assert figures(scene("voc07", OBJECTS), nothing).overall == {"AP": 0, "AP50": 0, "AP75": 0}
    with pytest.raises(InputError, match=r"^data: no object to count in VOC$"):
        figures(scene("voc07", [[(SQUARE, 0, True)], []]), nothing)


def slowly(images: list[list[Object]], found: list[Detections], c: int, threshold: float, points: bool) -> float:
    """From lines of text as result files have them, in plain loops."""
    lines = []
    for image, own in enumerate(found):
        for (x1, y1, x2, y2), label, score in zip(own.boxes, own.labels, own.scores, strict=True):
            if label == c:
                one = np.float32(1)
                lines.append(f"{image} {score:.3f} {x1 + one:.1f} {y1 + one:.1f} {x2:.1f} {y2:.1f}".split())
    lines.sort(key=lambda line: -float(line[1]))
    taken, curve, right, wrong = set(), [], 0, 0
    total = sum(label == c and not difficult for objects in images for _, label, difficult in objects)
    for line in lines:
        a, b, d, e = map(float, line[2:])
        best, which = 0.0, None
        for k, ((x1, y1, x2, y2), label, difficult) in enumerate(images[int(line[0])]):
            if label == c:
                wide, high = min(d, x2) - max(a, x1 + 1) + 1, min(e, y2) - max(b, y1 + 1) + 1
                common = wide * high if wide > 0 and high > 0 else 0.0
                share = common / ((d - a + 1) * (e - b + 1) + (x2 - x1) * (y2 - y1) - common)
                if share > best:
                    best, which = share, (line[0], k, difficult)
        if best <= threshold or which is None:
            wrong += 1
        elif not which[2]:
            wrong, right = wrong + (which in taken), right + (which not in taken)
            taken.add(which)
        curve.append((right / total, right / (right + wrong) if right + wrong else 0.0))
    if points:
        return sum(max((p for r, p in curve if r >= i * 0.1), default=0.0) for i in range(11)) / 11
    steps = sorted({r for r, _ in curve} | {0.0})
    return sum((high - low) * max(p for r, p in curve if r >= high) for low, high in pairwise(steps))


@pytest.mark.parametrize("rules", ["voc07", "voc"])
@pytest.mark.parametrize("seed", range(3))
def test_against_plain_loops(rules: Rules, seed: int) -> None:
    """Random objects of three classes, some difficult; detections about them, several of one, some of other classes."""
    draws = np.random.default_rng(seed)
    images: list[list[Object]] = []
    found: list[list[FrameObjects]] = []
    for _ in range(30):
        corners, sides = draws.integers(0, 100, (4, 2)), draws.integers(20, 120, (4, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1)
        images.append([(box, int(draws.integers(3)), bool(draws.random() < 0.25)) for box in boxes])
        found.append([])
        for box, label, _ in images[-1]:
            for _ in range(draws.integers(4)):
                other = int(draws.integers(3)) if draws.random() < 0.2 else label
                near = box + draws.normal(0, draws.choice([0.5, 3, 8]), 4)
                found[-1].append((near, other, round(draws.random(), 2)))
    annotated, detections = scene(rules, images, 3), found_in(found)
    table = precisions(annotated, detections)
    for c in range(3):
        for t, threshold in enumerate(range(50, 100, 5)):
            expected = slowly(images, detections, c, threshold / 100, rules == "voc07")
            assert table[c, t] == pytest.approx(expected, abs=1e-12)
    assert 0.05 < table.mean() < 0.95
